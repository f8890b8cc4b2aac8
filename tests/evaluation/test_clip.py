"""What our reader of CLIP's folder sees, against transformers itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

import tiny
from controlnet.errors import UserError
from controlnet.evaluation.clip import Clip, cosines, open_clip
from tiny_folders import make_tokenizer

SIDE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = make_tokenizer(folder, pad="<|endoftext|>")
    narrow = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config={**narrow, **ids, "vocab_size": len(tokenizer)},
        vision_config={**narrow, "image_size": SIDE, "patch_size": 8},
        projection_dim=12,
    )
    tiny.randomised(CLIPModel(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return open_clip(folder, torch.device("cpu"))


def test_pictures_and_prompts_are_seen_as_transformers_sees_them(folder: Path, clip: Clip) -> None:
    theirs = CLIPModel.from_pretrained(folder).eval()
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    pixels = torch.from_numpy((picture / 255 - clip.preparation["image_mean"]) / clip.preparation["image_std"])
    with torch.no_grad():
        tokens = clip.tokenizer(["red", "a red b"], padding=True, return_tensors="pt")
        out = theirs(**tokens, pixel_values=pixels.permute(2, 0, 1)[None].float())
    ours = cosines(np.repeat(clip.see([picture]), 2, axis=0), clip.read(["red", "a red b"]))
    expected = (out.image_embeds * out.text_embeds).sum(dim=1)
    assert ours == pytest.approx(expected.tolist(), abs=1e-5)


def test_pictures_of_any_size_are_resized_and_cut(clip: Clip) -> None:
    wide = Image.effect_noise((90, 50), 80).convert("RGB")
    assert clip.see([np.asarray(wide), np.asarray(wide.resize((45, 25)))]).shape == (2, 12)


def test_features_of_one_direction_have_cosine_one() -> None:
    assert cosines(np.array([[1.0, 2.0], [1.0, 0.0]]), np.array([[2.0, 4.0], [0.0, 3.0]])) == pytest.approx([1, 0])


def test_a_folder_that_is_no_clip_is_refused_with_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json and no preprocessor_config\.json"):
        open_clip(tmp_path, torch.device("cpu"))
