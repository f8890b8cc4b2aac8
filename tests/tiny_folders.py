"""Tiny bases on disk, in the true formats: every U-Net weight random, saved by diffusers' own pipelines."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import tiny
from controlnet.checkpoints.architecture import scheduler_config
from controlnet.checkpoints.contents import Prediction
from controlnet.checkpoints.parts import BaseParts
from controlnet.checkpoints.text_encoders import TEXT_ENCODERS


def save_tiny_base(folder: Path, family: tiny.Family = "sd1", prediction_type: str = "epsilon") -> Path:
    """A base of `family` for pictures of 128x128 in `folder`, in diffusers layout."""
    make_pipeline(folder, family, prediction_type).save_pretrained(folder)
    return folder


def make_pipeline(folder: Path, family: tiny.Family, prediction_type: str) -> Any:
    torch.manual_seed(0)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.3,
    )
    tokenizer = make_tokenizer(folder, pad="!" if family == "sd2" else "<|endoftext|>")
    parts = {"vae": vae, "unet": tiny.unet(family), "scheduler": scheduler, "tokenizer": tokenizer}
    if family == "sdxl":
        width = tiny.CONTEXT_WIDTH // 2
        parts["text_encoder"] = make_text_encoder(CLIPTextModel, tokenizer, width)
        parts["tokenizer_2"] = make_tokenizer(folder, pad="!")
        parts["text_encoder_2"] = make_text_encoder(CLIPTextModelWithProjection, tokenizer, width)
        return StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=False)
    parts["text_encoder"] = make_text_encoder(CLIPTextModel, tokenizer, tiny.CONTEXT_WIDTH)
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def make_true_parts(folder: Path, family: tiny.Family, prediction: Prediction = "epsilon") -> BaseParts:
    """A narrow base whose heads, groups, activations and layers of SD 2.x's text encoder are the full-size family's.

    So nothing but its tensors is needed to open its single file, and a tokenizer; `folder` gets the latter's words.
    """
    heads = (1, 2, 2, 2)[: len(tiny.SHAPES[family]["block_out_channels"])]  # of width 64
    shape: dict[str, Any] = {**tiny.SHAPES[family], "block_out_channels": tuple(64 * each for each in heads)}
    if family != "sd1":
        shape["attention_head_dim"] = heads
    if family == "sd2":
        shape["upcast_attention"] = True
    if family == "sdxl":
        shape["projection_class_embeddings_input_dim"] = 64 + 6 * tiny.SIZE_WIDTH
    text_width = 128 if family == "sdxl" else 64
    sizes = {("sd2", "v_prediction"): 96, ("sdxl", "epsilon"): 128}
    unet = UNet2DConditionModel(
        sample_size=sizes.get((family, prediction), 64), cross_attention_dim=text_width, **shape
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        scaling_factor=0.13025 if family == "sdxl" else 0.18215,
        sample_size=1024 if family == "sdxl" else 512,
    )
    texts, tokenizers = [], []
    for encoder in TEXT_ENCODERS[family]:
        tokenizers.append(make_tokenizer(folder, pad="!" if encoder.is_openclip else "<|endoftext|>"))
        config = CLIPTextConfig(
            vocab_size=len(tokenizers[-1]),
            hidden_size=64,
            projection_dim=64,
            intermediate_size=128,
            num_hidden_layers=23 if family == "sd2" else 3,
            num_attention_heads=1,
            hidden_act="gelu" if encoder.is_openclip else "quick_gelu",
            bos_token_id=tokenizers[-1].bos_token_id,
            eos_token_id=tokenizers[-1].eos_token_id,
            pad_token_id=tokenizers[-1].pad_token_id,
        )
        texts.append(encoder.kind(config))
    for number, model in enumerate((unet, vae, *texts)):
        tiny.randomised(model, seed=number).eval().requires_grad_(False)
    scheduler = {**scheduler_config(family), "prediction_type": prediction}
    return BaseParts(unet, vae, texts, tokenizers, scheduler, family)


def make_text_encoder(kind: Any, tokenizer: CLIPTokenizer, width: int) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=tiny.POOLED_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return tiny.randomised(kind(config)).eval()


def make_tokenizer(folder: Path, pad: str) -> CLIPTokenizer:
    """Single letters, as CLIP's own vocabulary begins, and one word, from a vocab.json and a merges.txt."""
    letters = "!abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    source = folder / "words"
    source.mkdir(parents=True, exist_ok=True)
    (source / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (source / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    return CLIPTokenizer.from_pretrained(source, pad_token=pad, model_max_length=77)
