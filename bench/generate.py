"""Pictures under control, ours beside diffusers' pipeline in turns, at the true size of SD 1.5; and the embedded base.

    python bench/generate.py [--quick] [--json FILE]

Weights are random, which cost the same time as trained ones. Both sides have equal weights, prompts, noise, scheduler,
steps and precision (bfloat16), diffusers its best settings: channels last, AttnProcessor2_0, no progress bar. A row's
errors are of the last latent against the same sampling in float32, and the bench fails where ours exceeds theirs. Peak
memory is that of a process of its own for each side. Seconds are the processor's where `cpu` says so, which others on
the machine disturb less. The last line is for 512: their time over ours, our memory over theirs.
"""

import copy
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from json import dumps
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from tempfile import TemporaryDirectory
from typing import Literal

import torch
import tyro
from control import in_turns, twin
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionControlNetPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from controlnet.base import Base, open_base
from controlnet.checkpoints.control_file import load_control
from controlnet.control import ControlNet
from controlnet.data.circles import draw_circle, ring
from controlnet.generation.batch import sample_batch
from controlnet.generation.pipeline import generate
from controlnet.generation.request import Request
from controlnet.generation.result import Stopwatch
from controlnet.generation.sampling import initial_noise
from controlnet.generation.settings import Settings
from controlnet.generation.unit import Unit
from controlnet.generation.voices import Voice
from controlnet.speed import suit

PROMPT, NEGATIVE, GUIDANCE_SCALE, STEPS = "cyan circle with pink background", "square", 9.0, 2
SD15 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}  # the rest is the class's default
SD15_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
COLD_START, SINGLE, SIXTEEN = 6.0, 1.0, 6.0  # seconds that the embedded base may take
Side = Literal["ours", "theirs"]
Pipeline = StableDiffusionControlNetPipeline


@dataclass(frozen=True)
class Row:
    """One size, and the part of the steps in which the control speaks."""

    side: int
    end: float
    target: float
    rounds: int


ROWS = {"512": Row(512, 1.0, 1.4, 3), "256": Row(256, 1.0, 1.3, 7), "512, window 0-50%": Row(512, 0.5, 1.6, 3)}


def true_size() -> Base:
    """As large as SD 1.5, with random weights in bfloat16; the VAE is the embedded base's and takes no part."""
    small = open_base(dtype="bfloat16", device="cpu")
    tokenizer = small.tokenizers[0]
    torch.set_default_dtype(torch.bfloat16)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**SD15).requires_grad_(False)
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    text = CLIPTextModel(CLIPTextConfig(**SD15_TEXT, **ids))
    torch.set_default_dtype(torch.float32)
    suit(unet)
    return Base(unet, small.vae, [text], small.tokenizers, small.scheduler_config, "sd1", "random")


def loud(control: ControlNet) -> ControlNet:
    """With zero convolutions that are heard."""
    for conv in (*control.zero_convs, control.zero_conv_middle, control.hint_encoder[-1]):
        nn.init.normal_(conv.weight, std=0.02)
    return control.requires_grad_(False)


def pipeline_of(base: Base, controlnet: ControlNetModel) -> Pipeline:
    """diffusers', whose U-Net shares the weights of ours and computes in diffusers' own way."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(base.unet.config)
    unet.load_state_dict(base.unet.state_dict(), assign=True)
    for model in (unet, controlnet):
        model.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        model.set_attn_processor(AttnProcessor2_0())
    parts = {"unet": unet, "controlnet": controlnet.to(base.dtype), "vae": base.vae, "tokenizer": base.tokenizers[0]}
    parts |= {"text_encoder": base.text_encoders[0], "scheduler": DDIMScheduler.from_config(base.scheduler_config)}
    pipeline = Pipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def hint(side: int) -> Image.Image:
    return Image.fromarray(ring(draw_circle(0, 0)[0], side, 2))


@torch.inference_mode()
def our_latent(base: Base, control: ControlNet, row: Row, seed: int) -> Tensor:
    settings = Settings(STEPS, GUIDANCE_SCALE, "ddim", NEGATIVE)
    units, size = [Unit(control, hint(row.side), end=row.end)], (row.side, row.side)
    request = Request(base, [PROMPT], [seed], units, settings, size, None, None, 1)
    voices = [Voice.of_unit(unit, size, STEPS) for unit in units]
    return sample_batch(request, [0], voices, None, Stopwatch(), None)


def their_latent(pipeline: Pipeline, row: Row, seed: int) -> Tensor:
    noise_bchw = initial_noise([seed], (4, row.side // 8, row.side // 8)).to(pipeline.unet.dtype)
    how = {"guidance_scale": GUIDANCE_SCALE, "negative_prompt": NEGATIVE, "control_guidance_end": row.end}
    return pipeline(PROMPT, hint(row.side), None, None, STEPS, latents=noise_bchw, output_type="latent", **how).images


def compare(row: Row, quick: bool, base: Base, control: ControlNet, pipeline: Pipeline) -> dict[str, float]:
    """Seconds, ratio and errors of a row."""
    spent = {"ours": list[float](), "theirs": list[float]()}
    ours = partial(_on_processor, partial(our_latent, base, control, row), spent["ours"])
    theirs = partial(_on_processor, partial(their_latent, pipeline, row), spent["theirs"])
    latents, figures = in_turns(ours, theirs, 2 if quick else row.rounds, warm_up=0 if quick else 1)
    precise = copy.copy(base)
    precise.unet, precise.text_encoders = (
        copy.deepcopy(base.unet).float(),
        [copy.deepcopy(base.text_encoders[0]).float()],
    )
    precise.__post_init__()
    wanted = our_latent(precise, copy.deepcopy(control).float(), row, 0)
    mine, peers = (((latent.float() - wanted).norm() / wanted.norm()).item() for latent in latents[0])
    processor = min(spent["theirs"]) / min(spent["ours"])
    return {**figures, "cpu ratio": processor, "our error": mine, "their error": peers, "target": row.target}


def _on_processor(call: Callable[[int], Tensor], spent: list[float], number: int) -> Tensor:
    start = time.process_time()
    latent = call(number)
    spent.append(time.process_time() - start)
    return latent


def embedded_seconds(rounds: int) -> dict[str, tuple[float, float]]:
    """What it takes, and may take, to make pictures of 20 steps and to run the command."""
    base = open_base(device="cpu")
    units = [Unit(load_control("circle", base)[0], hint(base.resolution))]
    seconds = {}
    for name, count, most in (("1 picture, 128", 1, SINGLE), ("16 pictures, 128", 16, SIXTEEN)):
        make = partial(generate, base, PROMPT, units, count=count, batch_size=16)
        seconds[name] = min(_seconds(make) for _ in range(rounds)), most
    return seconds | {"cold start": (min(_seconds(cold_start) for _ in range(rounds)), COLD_START)}


def cold_start() -> None:
    """`controlnet generate`, from nothing to a PNG."""
    with TemporaryDirectory() as folder:
        hint(128).save(f"{folder}/hint.png")
        words = ["generate", "--prompt", PROMPT, "--control", "circle", "--hint", f"{folder}/hint.png", "--out", folder]
        subprocess.run([sys.executable, "-m", "controlnet", *words, "--device", "cpu"], check=True, capture_output=True)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def use_memory(side: Side) -> None:
    """One sampling at 512 by one side, in this process; prints its peak in bytes."""
    base, row = true_size(), ROWS["512"]
    if side == "ours":
        our_latent(base, loud(ControlNet.from_base(base.unet)), row, 0)
    else:
        their_latent(pipeline_of(base, ControlNetModel.from_unet(base.unet).to(base.dtype)), row, 0)
    print(getrusage(RUSAGE_SELF).ru_maxrss * 1024)


def peak_of(side: Side) -> int:
    """Of memory, in bytes, in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", side]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main(quick: bool = False, json: Path | None = None, memory_of: Side | None = None) -> None:
    """Seconds, errors and memory of ours and of diffusers.

    Args:
        quick: Few rounds.
        json: Also write the figures to this file.
        memory_of: Only sample once, by this side, and print the peak of memory.
    """
    if memory_of is not None:
        use_memory(memory_of)
        return
    memory = {side: peak_of(side) for side in ("ours", "theirs")}  # first: nothing else is in memory yet
    seconds = embedded_seconds(1 if quick else 5)
    base = true_size()
    control = loud(ControlNet.from_base(base.unet))
    pipeline = pipeline_of(base, twin(base, control))
    rows = {name: compare(row, quick, base, control, pipeline) for name, row in ROWS.items()}
    show(rows, seconds, memory)
    if json is not None:
        json.write_text(dumps({"rows": rows, "seconds": seconds, "memory": memory}, indent=2) + "\n", encoding="utf-8")
    print(f"ratio {rows['512']['ratio']:.2f} memory {memory['ours'] / memory['theirs']:.2f}")
    worse = [name for name, row in rows.items() if row["our error"] > row["their error"]]
    if worse:
        sys.exit(f"our error is above diffusers' in: {', '.join(worse)}")


def show(rows: dict[str, dict[str, float]], seconds: dict[str, tuple[float, float]], memory: dict[Side, int]) -> None:
    print(f"bfloat16, {STEPS} steps, {torch.get_num_threads()} threads")
    print(f"{'':<18}{'ours':>9}{'diffusers':>11}{'ratio':>7}{'cpu':>6}{'target':>8}{'our error':>12}{'theirs':>9}")
    for name, it in rows.items():
        print(
            f"{name:<18}{it['ours']:>7.2f} s{it['theirs']:>9.2f} s{it['ratio']:>7.2f}{it['cpu ratio']:>6.2f}"
            f"{it['target']:>8.1f}{it['our error']:>12.4f}{it['their error']:>9.4f}"
        )
    print(f"{'memory at 512':<18}{memory['ours'] / 1e9:>6.2f} GB{memory['theirs'] / 1e9:>8.2f} GB")
    for name, (taken, most) in seconds.items():
        print(f"{name:<18}{taken:>7.2f} s   embedded base; target {most:.0f} s")


if __name__ == "__main__":
    tyro.cli(main)
