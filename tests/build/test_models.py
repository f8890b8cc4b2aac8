"""Captions, CLIP scores and classifiers as stages, by tiny models in the true formats."""

import hashlib
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BlipForConditionalGeneration, ViTForImageClassification

from build import made, shape_clip, tiny_models
from controlnet.build.models import Caption, Classifier, ClipScore
from controlnet.build.pictures import inspected
from controlnet.build.rows import Row, identify
from controlnet.build.stage import Context
from controlnet.build.weights import revision
from controlnet.data.shapes import render
from controlnet.errors import UserError
from controlnet.images import decode, encoded

CPU = Context("cpu")


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    return tiny_models.blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return tiny_models.classifier(tmp_path_factory.mktemp("classifier"), {0: "clean", 1: "watermark"})


def pixels(row: Row) -> torch.Tensor:
    """What a processor of 32 pixels makes of a picture of 32 pixels: nothing is resized."""
    return torch.from_numpy(decode(row.files["image"]) / np.float32(127.5) - 1).movedim(-1, 0)[None]


def rows(count: int) -> list[Row]:
    known = [Row(identify(str(seed)), {"caption": f"shape {seed}"}) for seed in range(count)]
    return [inspected(row, made.picture(seed, tiny_models.SIZE)) for seed, row in enumerate(known)]


def test_captions_are_what_the_model_itself_writes_and_name_their_captioner(blip):
    captioned = Caption(model=str(blip), max_tokens=6).setup(CPU)(rows(3))
    model = BlipForConditionalGeneration.from_pretrained(blip).eval()
    words = [*tiny_models.VOCABULARY, "[PAD]"]
    for row in captioned:
        [ids] = model.generate(pixel_values=pixels(row), max_new_tokens=6, do_sample=False).tolist()
        assert row.values["caption"] == " ".join(words[id] for id in ids if words[id] not in tiny_models.SPECIAL)
    assert len({row.values["caption"] for row in captioned} - {""}) > 1  # or the model says one thing of all
    weights = hashlib.sha256((blip / "model.safetensors").read_bytes()).hexdigest()
    assert captioned[0].values["captioner"] == f"{blip.name}@{weights[:12]}"


def test_captions_do_not_depend_on_the_rows_beside_them(blip):
    work = Caption(model=str(blip), max_tokens=6).setup(CPU)
    together = [row.values["caption"] for row in work(rows(5))]
    assert together == [work([row])[0].values["caption"] for row in rows(5)]


def test_captions_begin_as_asked(blip):
    captioned = Caption(model=str(blip), begin="a red circle", max_tokens=4).setup(CPU)(rows(2))
    assert all(row.values["caption"].startswith("a red circle") for row in captioned)


def test_captions_that_are_there_are_kept_if_so_asked(blip):
    first, second = rows(2)
    second = replace(second, values={name: it for name, it in second.values.items() if name != "caption"})
    kept, new = Caption(model=str(blip), max_tokens=4, keep=True).setup(CPU)([first, second])
    assert (kept.values["caption"], kept.get("captioner")) == ("shape 0", None)
    assert new.values["captioner"].startswith(blip.name)


def test_the_smallest_picture_is_captioned_too(blip):
    row = inspected(Row("1"), encoded(np.zeros((2, 2, 3), np.uint8), "png"))
    [captioned] = Caption(model=str(blip), max_tokens=4).setup(CPU)([row])
    assert "caption" in captioned.values


def test_opening_a_captioner_draws_nothing(blip, capfd):
    Caption(model=str(blip)).setup(CPU)
    assert capfd.readouterr().err == ""


def test_pictures_that_are_not_what_their_captions_say_are_dropped(clip_folder):
    scenes = shape_clip.scenes(20, seed=2)
    right = [scene.caption for scene in scenes]
    wrong = right[1:] + right[:1]
    pictures = [encoded(render(scene, 64), "png") for scene in scenes]
    told = [*zip(right, pictures, strict=True), *zip(wrong, pictures, strict=True)]
    asked = [inspected(Row(identify(f"{place}"), {"caption": it[0]}), it[1]) for place, it in enumerate(told)]
    scored = ClipScore(model=str(clip_folder), least=-1).setup(CPU)(asked)
    scores = [row.values["clip_score"] for row in scored]
    assert np.mean(np.array(scores[:20]) > np.array(scores[20:])) > 0.9
    middle = float(np.median(scores))
    judged = ClipScore(model=str(clip_folder), least=middle).setup(CPU)(asked)
    assert [row.status == "ok" for row in judged] == [score >= middle for score in scores]
    assert {row.reason for row in judged} == {"", "not what its caption says"}


def test_a_classifier_drops_what_it_finds_to_be_of_its_kind(classifier):
    asked = rows(8)
    model = ViTForImageClassification.from_pretrained(classifier).eval()
    with torch.inference_mode():
        true = [model(pixel_values=pixels(row)).logits.softmax(-1)[0, 1].item() for row in asked]
    most = float(np.median(true))
    stage = Classifier(model=str(classifier), label="watermark", score="watermark_score", most=most)
    judged = stage.setup(CPU)(asked)
    assert [row.values["watermark_score"] for row in judged] == pytest.approx(true, abs=1e-5)
    assert [row.status for row in judged] == ["ok" if it <= most else "dropped" for it in true]
    assert {row.reason for row in judged} == {"", "watermark"}


def test_a_label_that_the_model_does_not_have_is_an_error_that_tells_those_it_has(classifier):
    stage = Classifier(model=str(classifier), label="nsfw", score="nsfw_score")
    with pytest.raises(UserError, match="expected one of: clean, watermark"):
        stage.setup(CPU)


def test_a_model_that_cannot_be_had_is_an_error_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match="hf download"):
        Caption(model="nobody/nothing").setup(CPU)
    with pytest.raises(UserError, match="no such file"):
        Caption(model=str(tmp_path)).setup(CPU)


def test_a_model_of_the_hub_is_told_with_its_revision(classifier, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--owner--sorter"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text(commit)
    shutil.copytree(classifier, cached / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert revision("owner/sorter") == "owner/sorter@0123456789ab"
    [judged] = Classifier(model="owner/sorter", label="clean", score="nsfw_score").setup(CPU)(rows(1))
    assert 0 < judged.values["nsfw_score"] < 1
