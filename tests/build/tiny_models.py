"""Tiny random models in the true formats of transformers: a captioner and a classifier."""

import json
from pathlib import Path

import torch
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

SIZE = 32
WORDS = ["a", "red", "blue", "circle", "square", "on", "the", "left"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, *WORDS]
BEGIN = len(VOCABULARY)  # the token that BLIP begins captions with is unknown to its tokenizer
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
PICTURES = {"image_size": SIZE, "patch_size": 16}


def blip(folder: Path) -> Path:
    """BLIP for captions, every weight random."""
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "sep_token_id": 3, "eos_token_id": 3, "bos_token_id": BEGIN}
    text = {"vocab_size": BEGIN + 1, "encoder_hidden_size": 32, "max_position_embeddings": 64}
    config = BlipConfig(text_config={**text, **ids, **SHAPE}, vision_config={**SHAPE, **PICTURES}, projection_dim=32)
    model = BlipForConditionalGeneration(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[: len(SPECIAL)] = -100  # or it may end before it said a word
        model.text_decoder.cls.predictions.bias[BEGIN] = -100
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return _prepare(folder, "BlipImageProcessor")


def classifier(folder: Path, labels: dict[int, str]) -> Path:
    """A ViT with a head of random weights."""
    torch.manual_seed(0)
    model = ViTForImageClassification(
        ViTConfig(**SHAPE, **PICTURES, id2label=labels, label2id={name: number for number, name in labels.items()})
    )
    model.save_pretrained(folder)
    return _prepare(folder, "ViTImageProcessor")


def _prepare(folder: Path, kind: str) -> Path:
    told = {"image_processor_type": kind, "size": {"height": SIZE, "width": SIZE}}
    told |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return folder
