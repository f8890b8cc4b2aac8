"""A tiny CLIP, in the true format, that has learned the world of shapes: what is found by it can be judged."""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPConfig, CLIPModel

from controlnet.data.shapes import Scene, draw_scene, render
from controlnet.training.embedded.text import make_tokenizer

SIZE, PATCH, WIDTH = 64, 16, 64
STEPS, BATCH, RATE = 250, 64, 3e-3
SHAPE = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}


def train(folder: Path) -> Path:
    """Pictures and captions of one scene near each other, of two apart: CLIP's contrastive loss."""
    tokenizer = make_tokenizer(folder)
    tokenizer.save_pretrained(folder)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 77, **special, **SHAPE}
    vision = {"image_size": SIZE, "patch_size": PATCH, **SHAPE}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS, pct_start=0.1)
    random = np.random.default_rng(0)
    for _ in range(STEPS):
        scenes = [draw_scene(random) for _ in range(BATCH)]
        pictures = torch.from_numpy(np.stack([render(scene, SIZE) for scene in scenes])).movedim(-1, 1)
        tokens = tokenizer([scene.caption for scene in scenes], padding=True, return_tensors="pt")
        loss = model(pixel_values=pictures / 127.5 - 1, **tokens, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    model.save_pretrained(folder)
    preparation = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": SIZE},
        "crop_size": {"height": SIZE, "width": SIZE},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preparation))
    return folder


def scenes(count: int, seed: int) -> list[Scene]:
    """Scenes that training has not seen, no two of one caption."""
    random = np.random.default_rng([1, seed])
    found: dict[str, Scene] = {}
    while len(found) < count:
        scene = draw_scene(random)
        found.setdefault(scene.caption, scene)
    return list(found.values())
