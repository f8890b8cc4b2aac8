"""Pictures under control, ours beside diffusers' pipeline in turns, at the true size of SD 1.5; and the embedded base.

    python bench/generate.py [--quick] [--json FILE]

Weights are random, which cost the same time as trained ones. Both sides have equal weights, prompts, noise, scheduler,
steps and precision, diffusers its best settings: channels last, AttnProcessor2_0, no progress bar. The precision is
bfloat16 where the processor multiplies it, else float32, then over fewer steps. A row's errors are of the last latent
against the same sampling in float32, or that of float32 in float64, and the bench fails where ours exceeds theirs. Peak
memory is that of a process of its own for each side. Seconds are the processor's where `cpu` says so, which others on
the machine disturb less. The last line is for 512: their time over ours, our memory over theirs.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from json import dumps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import tyro
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from measure import cpu_precision, hint, in_own_process, in_turns, loud, peak, pipeline_of, true_size, twin
from torch import Tensor

from controlnet.base import Base, open_base
from controlnet.checkpoints.control_file import load_control
from controlnet.cli.process import keep_freed_memory
from controlnet.control import ControlNet
from controlnet.devices import fastest_dtype
from controlnet.generation.batch import sample_batch
from controlnet.generation.pipeline import generate
from controlnet.generation.request import Request
from controlnet.generation.result import Stopwatch
from controlnet.generation.sampling import initial_noise
from controlnet.generation.settings import Settings
from controlnet.generation.unit import Unit
from controlnet.generation.voices import Voice

PROMPT, NEGATIVE, GUIDANCE_SCALE = "cyan circle with pink background", "square", 9.0
COLD_START, SINGLE, SIXTEEN = 6.0, 1.0, 6.0  # seconds that the embedded base may take
Side = Literal["ours", "theirs"]


@dataclass(frozen=True)
class Row:
    """One size, and the part of the steps in which the control speaks."""

    side: int
    end: float
    target: float
    rounds: int
    steps: int = 2
    warm_up: int = 1
    judged: bool = True
    """Whether its errors are measured, which costs as much again."""


ROWS = {"512": Row(512, 1.0, 1.4, 3), "256": Row(256, 1.0, 1.3, 7), "512, window 0-50%": Row(512, 0.5, 1.6, 3)}


def rows_of(quick: bool) -> dict[str, Row]:
    """What there is time for: in float32 a step at 512 takes ten seconds."""
    if not quick:
        return ROWS
    if cpu_precision() == torch.bfloat16:
        return {name: replace(row, rounds=2, warm_up=0) for name, row in ROWS.items()}
    return {
        "512": replace(ROWS["512"], rounds=1, steps=1, warm_up=0, judged=False),
        "256": replace(ROWS["256"], rounds=2, steps=1, warm_up=0),
        "512, window 0-50%": replace(ROWS["512, window 0-50%"], rounds=1, warm_up=0, judged=False),
    }


@torch.inference_mode()
def our_latent(base: Base, control: ControlNet, row: Row, seed: int) -> Tensor:
    settings = Settings(row.steps, GUIDANCE_SCALE, "ddim", NEGATIVE)
    units, size = [Unit(control, hint(row.side), end=row.end)], (row.side, row.side)
    request = Request(base, [PROMPT], [seed], units, settings, size, None, None, 1)
    voices = [Voice.of_unit(unit, size, row.steps) for unit in units]
    return sample_batch(request, [0], voices, None, Stopwatch(), None)


def their_latent(pipeline: StableDiffusionControlNetPipeline, row: Row, seed: int) -> Tensor:
    noise_bchw = initial_noise([seed], (4, row.side // 8, row.side // 8)).to(pipeline.unet.dtype)
    how = {"guidance_scale": GUIDANCE_SCALE, "negative_prompt": NEGATIVE, "control_guidance_end": row.end}
    ring = hint(row.side)
    return pipeline(PROMPT, ring, None, None, row.steps, latents=noise_bchw, output_type="latent", **how).images


def precise_latents(base: Base, control: ControlNet, rows: dict[str, Row]) -> dict[str, Tensor]:
    """What each judged row should give, sampled in the next higher precision; the models come back as they were."""
    models, given = (base.unet, base.text_encoders[0], control), base.dtype
    precise = torch.float64 if given == torch.float32 else torch.float32
    for model in models:
        model.to(precise)
    latents = {name: our_latent(base, control, row, 0) for name, row in rows.items() if row.judged}
    for model in models:
        model.to(given)
    return latents


def compare(
    row: Row, base: Base, control: ControlNet, pipeline: StableDiffusionControlNetPipeline, wanted: Tensor | None
) -> dict[str, float | None]:
    """Seconds, ratio and errors of a row."""
    spent = {"ours": list[float](), "theirs": list[float]()}
    ours = partial(_on_processor, partial(our_latent, base, control, row), spent["ours"])
    theirs = partial(_on_processor, partial(their_latent, pipeline, row), spent["theirs"])
    latents, figures = in_turns(ours, theirs, row.rounds, row.warm_up)
    errors = [None if wanted is None else error_of(latent, wanted) for latent in latents[0]]
    processor = min(spent["theirs"]) / min(spent["ours"])
    return {
        **figures,
        "cpu ratio": processor,
        "our error": errors[0],
        "their error": errors[1],
        "target": row.target,
        "steps": row.steps,
    }


def error_of(latent: Tensor, wanted: Tensor) -> float:
    """Norm of what is wrong, as a part of the norm of what is wanted."""
    return ((latent.double() - wanted.double()).norm() / wanted.double().norm()).item()


def _on_processor(call: Callable[[int], Tensor], spent: list[float], number: int) -> Tensor:
    start = time.process_time()
    latent = call(number)
    spent.append(time.process_time() - start)
    return latent


def embedded_seconds(rounds: int) -> dict[str, tuple[float, float]]:
    """What it takes, and may take, to make pictures of 20 steps and to run the command."""
    base = open_base(device="cpu", dtype=fastest_dtype("auto", "cpu"))  # as the command does
    units = [Unit(load_control("circle", base)[0], hint(base.resolution))]
    seconds = {}
    for name, count, most in (("1 picture, 128", 1, SINGLE), ("16 pictures, 128", 16, SIXTEEN)):
        make = partial(generate, base, PROMPT, units, count=count, batch_size=16)
        make()
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


def use_memory(side: Side, steps: int) -> None:
    """One sampling at 512 by one side, in this process; prints its peak in bytes."""
    base, row = true_size(), replace(ROWS["512"], steps=steps)
    if side == "ours":
        our_latent(base, loud(ControlNet.from_base(base.unet)), row, 0)
    else:
        their_latent(pipeline_of(base, ControlNetModel.from_unet(base.unet).to(base.dtype)), row, 0)
    print(peak())


def main(quick: bool = False, json: Path | None = None, memory_of: Side | None = None) -> None:
    """Seconds, errors and memory of ours and of diffusers.

    Args:
        quick: Few rounds.
        json: Also write the figures to this file.
        memory_of: Only sample once, by this side, and print the peak of memory.
    """
    keep_freed_memory()  # as the command does; theirs gains as much
    rows = rows_of(quick)
    if memory_of is not None:
        use_memory(memory_of, rows["512"].steps)
        return
    asked = ["--quick"] * quick
    memory: dict[str, int] = {  # first: nothing else is in memory yet
        side: in_own_process(__file__, "--memory-of", side, *asked) for side in ("ours", "theirs")
    }
    seconds = embedded_seconds(1 if quick else 5)
    base = true_size()
    control = loud(ControlNet.from_base(base.unet))
    wanted = precise_latents(base, control, rows)
    pipeline = pipeline_of(base, twin(base, control))
    figures = {name: compare(row, base, control, pipeline, wanted.get(name)) for name, row in rows.items()}
    show(figures, seconds, memory)
    if json is not None:
        told = {"precision": str(base.dtype), "rows": figures, "seconds": seconds, "memory": memory}
        json.write_text(dumps(told, indent=2) + "\n", encoding="utf-8")
    print(f"ratio {figures['512']['ratio']:.2f} memory {memory['ours'] / memory['theirs']:.2f}")
    worse = [name for name, it in figures.items() if name in wanted and it["our error"] > it["their error"]]
    if worse:
        sys.exit(f"our error is above diffusers' in: {', '.join(worse)}")


def show(rows: dict[str, dict[str, Any]], seconds: dict[str, tuple[float, float]], memory: dict[str, int]) -> None:
    precision = str(cpu_precision()).removeprefix("torch.")
    print(f"{precision}, which this processor is fastest in; {torch.get_num_threads()} threads")
    print(
        f"{'':<18}{'steps':>6}{'ours':>9}{'diffusers':>11}{'ratio':>7}{'cpu':>6}{'target':>8}{'our error':>12}"
        f"{'theirs':>10}"
    )
    for name, it in rows.items():
        errors = [f"{it[whose]:.2g}" if it[whose] is not None else "-" for whose in ("our error", "their error")]
        print(
            f"{name:<18}{it['steps']:>6}{it['ours']:>7.2f} s{it['theirs']:>9.2f} s{it['ratio']:>7.2f}"
            f"{it['cpu ratio']:>6.2f}{it['target']:>8.1f}{errors[0]:>12}{errors[1]:>10}"
        )
    print(f"{'memory at 512':<18}{memory['ours'] / 1e9:>12.2f} GB{memory['theirs'] / 1e9:>8.2f} GB")
    for name, (taken, most) in seconds.items():
        print(f"{name:<18}{taken:>13.2f} s   embedded base; target {most:.0f} s")


if __name__ == "__main__":
    tyro.cli(main)
