"""Training steps at the true size of SD 1.5, ours beside diffusers' and beside training the U-Net without control.

    python bench/train.py [--quick] [--json FILE]

Weights are random, which cost the same time as trained ones; pictures have 256x256 pixels, a step one pair; networks
compute on the CPU in bfloat16, or in float32 where the processor has no bfloat16 (there --quick has half the channels,
else it took longer than four minutes). diffusers' side is the loop of its train_controlnet.py (VAE, text encoder,
forward, backward, clipping, AdamW) at its best public settings: channels last, AttnProcessor2_0, fused AdamW, what is
frozen in that precision, autocast. Ours is what `controlnet train` runs: encoded once, what it trains and AdamW's state
in float32. Each side has a process of its own, in turns, whose peak of memory counts; first loss and gradients must
agree. The last line has our images/s over theirs, our memory over theirs.
"""

import json as as_json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import tyro
from diffusers import ControlNetModel, DDPMScheduler
from diffusers.models.attention_processor import AttnProcessor2_0
from lightning.pytorch import Callback
from measure import cpu_precision, free_memory, in_own_process, loud, peak, their_unet, true_size
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.utils import clip_grad_norm_

from controlnet.base import Base, tokenize
from controlnet.checkpoints.control_diffusers import theirs_by_ours
from controlnet.checkpoints.control_file import ControlMetadata, save_control
from controlnet.checkpoints.convert import convert_control
from controlnet.cli.process import keep_freed_memory
from controlnet.control import ControlNet
from controlnet.data.circles import write_circles
from controlnet.training.cache import Caching, Encoded, encode, fingerprint
from controlnet.training.config import TrainConfig
from controlnet.training.defaults import resolved
from controlnet.training.encoders import release_encoders
from controlnet.training.loss import Draw
from controlnet.training.optimizers import in_rows
from controlnet.training.ranks import Ranks
from controlnet.training.run import make_module, make_trainer, quietly
from controlnet.training.sources import open_pairs
from controlnet.training.steps import Steps, loader
from controlnet.training.stepwise import Stepping

SIDE, PAIRS = 256, 8
LEARNING_RATE, MAX_GRAD_NORM = 1e-5, 1.0
WARM_UP = 1  # steps whose time does not count
READ_AT_ONCE = 2**24  # bytes
WIDTHS = {"sd15": (320, 640, 1280, 1280), "half": (160, 320, 640, 640)}
PLAIN_NEEDS = 18e9  # bytes: 860 million weights, gradients and AdamW's state in float32, and a step
# loss and gradients, relative: through 50 layers, each of which rounds; compared in bfloat16, which rounds by 0.004
AGREE = {torch.bfloat16: (0.01, 0.1), torch.float32: (0.001, 0.01)}

Side = Literal["prepare", "ours", "theirs", "plain"]
Size = Literal["sd15", "half"]


@dataclass
class Figures:
    """Of one side: seconds of its steps, those of the processor, loss of the first, and bytes."""

    seconds: list[float]
    processor: list[float]
    cached_seconds: list[float]
    """Of the steps that find latents and contexts encoded; empty if all do."""
    loss: float = 0.0
    memory: int = 0
    cache: float = 0.0
    """Seconds to encode a pair."""


def config_of(work: Path, steps: int) -> TrainConfig:
    return TrainConfig(
        data=work / "pairs",
        out=work / "run",
        control=str(work / "control.safetensors"),
        device="cpu",
        mixed_precision="bf16" if cpu_precision() == torch.bfloat16 else "no",
        train_batch_size=1,
        max_train_steps=steps,
        learning_rate=LEARNING_RATE,
        max_grad_norm=MAX_GRAD_NORM,
    )


def open_size(size: Size) -> Base:
    return true_size(with_vae=True, block_out_channels=WIDTHS[size])


def prepare(work: Path, size: Size) -> None:
    """Pairs, and a control that is heard: ours, and converted to diffusers'."""
    write_circles(work / "pairs", PAIRS, SIDE, processes=1)
    base = open_size(size)
    control = loud(ControlNet.from_base(base.unet))
    save_control(work / "control.safetensors", control, ControlMetadata.of(base, control, "circle"))
    convert_control(work / "control.safetensors", work / "diffusers", "diffusers")


def encoded(config: TrainConfig, base: Base, caching: Caching) -> Encoded:
    pairs = open_pairs(config)
    return encode(base, pairs, config.out / "cache", fingerprint(pairs), Console(quiet=True), caching, config.seed)


def steps_of(config: TrainConfig, base: Base, pairs: Encoded) -> Steps:
    """The same pairs and the same noise for every side."""
    return Steps(pairs, config.seed, 1, len(base.schedule.alphas_cumprod), 0.0, 0)


class Observe(Callback):
    """Times of our steps, and loss and gradients of the first."""

    def __init__(self, gradients: Path) -> None:
        self.gradients, self.figures = gradients, Figures([], [], [])

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.since = time.perf_counter(), time.process_time()

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        if not self.figures.seconds:
            write_gradients(self.gradients, module.control.named_parameters())

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        now = time.perf_counter(), time.process_time()
        self.figures.loss = self.figures.loss or outputs["loss"].item()
        self.figures.seconds.append(now[0] - self.since[0])
        self.figures.processor.append(now[1] - self.since[1])
        self.since = now


def train_ours(work: Path, size: Size, steps: int) -> Figures:
    """As `controlnet train` does."""
    keep_freed_memory()
    base = open_size(size)
    config = resolved(config_of(work, steps), base)
    start = time.perf_counter()
    pairs = encoded(config, base, Caching("disk"))
    cache = (time.perf_counter() - start) / PAIRS
    release_encoders(base, config.out / "cache")
    ranks = Ranks.find(1, 1)
    module = make_module(config, base, pairs, Stepping.of(config, ranks, print))
    observe = Observe(work / "ours.gradients")
    with quietly():
        trainer = make_trainer(config, base, ranks)
        trainer.callbacks += [observe]  # type: ignore[attr-defined]  # it is a list
        trainer.fit(module, loader(steps_of(config, base, pairs), 0))
    return replace(observe.figures, cache=cache)


def train_theirs(work: Path, size: Size, steps: int) -> Figures:
    """As diffusers' script does; every other step finds latents and contexts encoded, which the script never does."""
    base = open_size(size)
    config = config_of(work, steps)
    fresh, cached = (steps_of(config, base, encoded(config, base, Caching(how))) for how in ("off", "memory"))
    control = ControlNetModel.from_pretrained(work / "diffusers").to(memory_format=torch.channels_last)
    control.set_attn_processor(AttnProcessor2_0())
    unet, scheduler = their_unet(base), DDPMScheduler.from_config(base.scheduler_config)
    for model in (base.vae, *base.text_encoders):
        model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(control.train().parameters(), lr=LEARNING_RATE, fused=True)

    def heard(reading: Any, draw: Draw) -> tuple[Tensor, Tensor]:
        """Latent and context."""
        if not isinstance(reading.latent, Tensor):
            mean_bchw, deviation_bchw = reading.latent
            return mean_bchw + deviation_bchw * draw.posterior_noise_bchw, reading.prompt.context_btd
        pixels_bchw = (reading.latent.permute(0, 3, 1, 2) / 127.5 - 1).to(base.dtype)
        posterior = base.vae.encode(pixels_bchw).latent_dist
        latent_bchw = (posterior.mean + posterior.std * draw.posterior_noise_bchw) * base.vae.config.scaling_factor
        tokens = tokenize(base.tokenizers[0], reading.prompt.texts).squeeze(1)
        return latent_bchw, base.text_encoders[0](tokens, return_dict=False)[0]

    def step(number: int) -> float:
        reading, draw = (cached if number % 2 else fresh)[number // 2]
        latent_bchw, context_btd = heard(reading, draw)
        hint_bchw = reading.hint_bhwc.permute(0, 3, 1, 2).to(base.dtype) / 255
        noisy_bchw = scheduler.add_noise(latent_bchw.float(), draw.noise_bchw, draw.timestep_b).to(base.dtype)
        given = (noisy_bchw, draw.timestep_b, context_btd)
        with autocast():
            skips, middle = control(*given, controlnet_cond=hint_bchw, return_dict=False)
        added = {"down_block_additional_residuals": [skip.to(base.dtype) for skip in skips]}
        added["mid_block_additional_residual"] = middle.to(base.dtype)
        loss = mse_loss(unet(*given, **added, return_dict=False)[0].float(), draw.noise_bchw)
        loss.backward()
        if number == 0:
            theirs = dict(control.named_parameters())
            names = theirs_by_ours([name for name, _ in ControlNet.from_base(base.unet).named_parameters()])
            write_gradients(work / "theirs.gradients", ((our, theirs[their]) for our, their in names.items()))
        clip_grad_norm_(control.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    all_steps = timed(step, 2 * steps)
    fresh_steps = {"seconds": all_steps.seconds[::2], "processor": all_steps.processor[::2]}
    return replace(all_steps, **fresh_steps, cached_seconds=all_steps.seconds[1::2])


def train_plain(work: Path, size: Size, steps: int) -> Figures:
    """The U-Net itself, without control, with latents and contexts encoded."""
    base = open_size(size)
    config = config_of(work, steps)
    cached = steps_of(config, base, encoded(config, base, Caching("memory")))
    unet = their_unet(base).float().requires_grad_(True).train()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=LEARNING_RATE, fused=True)
    del base.unet, base.vae, base.encoder, base.decoder, base.text_encoders

    def step(number: int) -> float:
        reading, draw = cached[number]
        mean_bchw, deviation_bchw = (part.float() for part in reading.latent)
        latent_bchw = mean_bchw + deviation_bchw * draw.posterior_noise_bchw
        noisy_bchw = base.schedule.add_noise(latent_bchw, draw.noise_bchw, draw.timestep_b)
        with autocast():
            prediction_bchw = unet(noisy_bchw, draw.timestep_b, reading.prompt.context_btd, return_dict=False)[0]
        loss = mse_loss(prediction_bchw.float(), draw.noise_bchw)
        loss.backward()
        clip_grad_norm_(unet.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return timed(step, steps)


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=cpu_precision() == torch.bfloat16)


def timed(step: Callable[[int], float], steps: int) -> Figures:
    figures = Figures([], [], [])
    for number in range(steps):
        wall, processor = time.perf_counter(), time.process_time()
        loss = step(number)
        figures.seconds.append(time.perf_counter() - wall)
        figures.processor.append(time.process_time() - processor)
        figures.loss = figures.loss or loss
    return figures


def write_gradients(path: Path, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
    """One after the other and by read calls alone: what is mapped would count as memory of the process."""
    with path.open("wb") as file:
        for _, parameter in parameters:
            assert parameter.grad is not None
            for part in in_rows(parameter.grad):
                file.write(part.contiguous().to(torch.bfloat16).view(torch.int16).numpy().tobytes())


def gradients_apart(work: Path) -> float:
    """Norm of the difference of ours and theirs, as a part of theirs."""
    apart = norm = 0.0
    with (work / "ours.gradients").open("rb") as ours, (work / "theirs.gradients").open("rb") as theirs:
        while read := ours.read(READ_AT_ONCE):
            mine, peers = (_as_numbers(each) for each in (read, theirs.read(READ_AT_ONCE)))
            apart += (mine - peers).square().sum().item()
            norm += peers.square().sum().item()
    return (apart / norm) ** 0.5


def _as_numbers(read: bytes) -> Tensor:
    return torch.frombuffer(bytearray(read), dtype=torch.bfloat16).double()


def measure(side: Side, work: Path, size: Size, steps: int) -> Figures:
    """In a process of its own."""
    words = ["--side", side, "--work", str(work), "--size", size, "--steps", str(steps)]
    return Figures(**in_own_process(__file__, *words))


def beside_theirs(work: Path, size: Size, steps: int, rounds: int) -> tuple[dict[str, Any], Figures]:
    """Figures of ours and theirs, in turns; and ours of the first turn."""
    prepare_apart(work, size)
    turns = [(measure("ours", work, size, steps), measure("theirs", work, size, steps)) for _ in range(rounds)]
    ours, theirs = ([turn[side] for turn in turns] for side in (0, 1))
    mine, peers, peers_cached = (
        median(it for each in lists for it in each[WARM_UP:])
        for lists in (
            [each.seconds for each in ours],
            [each.seconds for each in theirs],
            [each.cached_seconds for each in theirs],
        )
    )
    processor = [min(it for each in sides for it in each.processor[WARM_UP:]) for sides in (ours, theirs)]
    memory = [max(each.memory for each in sides) for sides in (ours, theirs)]
    figures = {
        "images/s": [1 / mine, 1 / peers, 1 / peers_cached],
        "ratio": peers / mine,
        "ratio, theirs cached too": peers_cached / mine,
        "ratio of processor time": processor[1] / processor[0],
        "bytes": memory,
        "memory": memory[0] / memory[1],
        "seconds to encode a pair": ours[0].cache,
        "losses": [ours[0].loss, theirs[0].loss],
        "gradients apart": gradients_apart(work),
    }
    return figures, ours[0]


def beside_plain(work: Path, size: Size, steps: int, ours: Figures) -> dict[str, Any]:
    """Ours beside training the U-Net; with half the channels, and so said, where memory is short of the true one."""
    if size == "sd15" and free_memory() < PLAIN_NEEDS:
        size = "half"
        (work / size).mkdir()
        work = work / size
        prepare_apart(work, size)
        ours = measure("ours", work, size, steps)
    plain = measure("plain", work, size, steps)
    seconds = [median(each.seconds[WARM_UP:]) for each in (ours, plain)]
    memory = [ours.memory, plain.memory]
    ratios = {"time": seconds[0] / seconds[1], "memory": memory[0] / memory[1]}
    return {"size": size, "seconds": seconds, "bytes": memory, **ratios}


def prepare_apart(work: Path, size: Size) -> None:
    in_own_process(__file__, "--side", "prepare", "--work", str(work), "--size", size)


def do(side: Side, work: Path, size: Size, steps: int) -> None:
    """What `measure` and `prepare_apart` ask another process for."""
    figures = Figures([], [], [])
    if side == "prepare":
        prepare(work, size)
    else:
        figures = {"ours": train_ours, "theirs": train_theirs, "plain": train_plain}[side](work, size, steps)
    print(as_json.dumps(asdict(replace(figures, memory=peak()))))


def show(it: dict[str, Any], plain: dict[str, Any], size: Size) -> None:
    ours, theirs, theirs_cached = it["images/s"]
    print(f"{size}, {SIDE}x{SIDE}, batch 1, {_precision()}, {torch.get_num_threads()} threads")
    _row("", "ours", "diffusers", "ratio", "target")
    _row("images/s", ours, theirs, it["ratio"], 1.8)
    _row("images/s, theirs cached too", ours, theirs_cached, it["ratio, theirs cached too"], 1.25)
    _row("images/s of processor time", "", "", it["ratio of processor time"], "")
    _row("peak memory, GB", *(each / 1e9 for each in it["bytes"]), it["memory"], 0.85)
    print(f"encoding a pair for the cache, once: {it['seconds to encode a pair']:.2f} s")
    losses, apart = it["losses"], it["gradients apart"]
    print(f"first step: losses {losses[0]:.5f} and {losses[1]:.5f}, gradients {apart:.3f} apart")
    _row(f"beside the U-Net ({plain['size']})", "ours", "plain", "ratio", "target")
    _row("seconds of a step", *plain["seconds"], plain["time"], 1.1)
    _row("peak memory, GB", *(each / 1e9 for each in plain["bytes"]), plain["memory"], 1.0)


def _precision() -> str:
    return str(cpu_precision()).removeprefix("torch.")


def _row(name: str, *cells: str | float) -> None:
    print(f"{name:<28}", *(f"{cell:>9}" if isinstance(cell, str) else f"{cell:>9.2f}" for cell in cells))


def main(
    quick: bool = False,
    json: Path | None = None,
    size: Size = "sd15",
    side: Side | None = None,
    work: Path | None = None,
    steps: int = 6,
) -> None:
    """Images per second and memory of ours and of diffusers.

    Args:
        quick: Few steps, each side once; with half the channels where the processor has no bfloat16.
        json: Also write the figures to this file.
        size: Of the base; half has half the channels, to try the bench itself.
        side: Only do this side's part, in this process.
        work: Where its files are.
        steps: Of a side.
    """
    if side is not None and work is not None:
        do(side, work, size, steps)
        return
    with TemporaryDirectory() as folder:
        steps = 3 if quick else steps
        size = "half" if quick and cpu_precision() == torch.float32 else size
        it, ours = beside_theirs(Path(folder), size, steps, 1 if quick else 3)
        plain = beside_plain(Path(folder), size, steps, ours)
    show(it, plain, size)
    if json is not None:
        json.write_text(as_json.dumps({**it, "beside plain": plain}, indent=2) + "\n", encoding="utf-8")
    print(f"ratio {it['ratio']:.2f} memory {it['memory']:.2f}")
    our_loss, their_loss = it["losses"]
    losses_agree, gradients_agree = AGREE[cpu_precision()]
    if abs(our_loss / their_loss - 1) > losses_agree or it["gradients apart"] > gradients_agree:
        sys.exit("loss or gradients of the first step are not those of diffusers")


if __name__ == "__main__":
    tyro.cli(main)
