"""What a training is told, in four groups; together they are `config.TrainConfig`. Imports nothing heavy.

The names are those of the original's and of diffusers' training scripts; `other_names.py` tells what is called
otherwise here, and what is not offered and why.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from controlnet.devices import Device, DType

LrScheduler = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "piecewise_constant",
]
ReportTo = Literal["auto", "csv", "tensorboard", "wandb", "mlflow", "all"]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What is learned from."""

    data: Path | str
    """The pairs: a folder with prompt.json (source, target, prompt), two folders and captions, a table, tars, or a data
    set of Hugging Face's; `controlnet data check DATA` tells what it is and whether it can be used."""
    condition: str = "auto"
    """Kind of the hints, stored in the control's metadata; auto finds rings ("circle") and else says "unknown"."""
    validation_data: Path | str | None = None
    """Held-out pairs, in any of these formats; by default the last 2 percent of the data, from 16 up to 64 pairs."""
    image_column: str | None = None
    """Column of the pictures; by default the first there is of image, target, jpg and picture."""
    conditioning_image_column: str | None = None
    """Column of the hints; by default the first there is of conditioning_image, source, hint and the like."""
    caption_column: str | None = None
    """Column of the prompts; by default the first there is of text, prompt, txt and caption."""
    dataset_config_name: str | None = None
    """Configuration of a Hugging Face data set that has several."""
    dataset_split: str = "train"
    """Split of a Hugging Face data set."""
    streaming: bool = False
    """Read a data set of Hugging Face's as it comes, without its length: resume follows the stream's own order."""
    annotate: str | None = None
    """Make the hints from the cropped pictures by this annotator, one without a network, such as canny."""
    max_train_samples: int | None = None
    """Use the first so many pairs alone."""
    resolution: int | None = None
    """Side of the square that pictures and hints are resized to (bilinear) and cut from the middle of; a multiple of
    64. By default they stay as they are if the base can take them all, else they get the base's own size."""
    random_crop: bool = False
    """Cut the square anywhere instead, the same from both, drawn anew at each visit."""
    random_flip: bool = False
    """Mirror every second visit's picture and hint."""
    aspect_buckets: bool = False
    """Instead of a square, cut the size of --resolution's area whose aspect is nearest to the picture's."""
    crop_variants: int = 0
    """So many crops and flips of each pair, cached and drawn among; 0 draws new ones for ever and encodes them anew."""
    cache: Literal["disk", "memory", "off"] = "disk"
    """Where encoded pictures and prompts are kept; off encodes them in every step, with the same losses."""
    dataloader_num_workers: int = 0
    """Processes that prepare batches ahead; 0 prepares them in the training's own."""
    proportion_empty_prompts: float = 0.0
    """Share of prompts replaced by the empty one, drawn anew at each visit; the paper has 0.5, its code 0."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What is trained, and how it is computed."""

    control: str | None = None
    """Start from this control instead of a new one: a file in any format, a run, a diffusers folder, an attached file
    or a name."""
    only_mid_control: bool = False
    """Control only the middle of the U-Net. May be switched when a run goes on."""
    sd_unlocked: bool = False
    """Train the base's decoder too, as the original's sd_locked=False: take a learning rate of 2e-6 or below, else the
    base is spoilt. May be switched when a run goes on. Its weights are saved with the control."""
    pretrained_vae: str | None = None
    """Another VAE than the base's: a folder in diffusers layout, such as of SDXL's VAE for float16."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, longer steps."""
    attention: Literal["auto", "sdpa", "plain"] = "auto"
    """sdpa is torch's fused one, plain the formula written out; auto takes what is faster for the base and device."""
    compile: bool = False
    """Let torch compile base and control: the first steps take minutes, the others are faster."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA, else MPS, else the CPU."""
    dtype: DType = "auto"
    """Precision of the locked base and of the arithmetic; auto is bfloat16 where the device is fast at it, else
    float32 (float16 on a GPU). Trained weights are always float32."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Other words for --dtype: float32, float16, bfloat16."""
    allow_tf32: bool = False
    """Let a GPU multiply float32 matrices with ten bits of precision, faster."""


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """How it is learned."""

    train_batch_size: int = 0
    """Pairs in a forward pass on each device; 0 is 4 as the original's, and 16 for narrow bases like the embedded
    one."""
    gradient_accumulation_steps: int = 1
    """Forward passes of a step: pairs of a step are this times the batch size times the devices."""
    auto_micro_batch: bool = False
    """If memory runs out, repeat the step in smaller parts, with equal result, and stay with them."""
    learning_rate: float | None = None
    """AdamW's; by default 1e-5 as the original's, and 1e-3 for narrow bases like the embedded one."""
    learning_rate_unlocked: float | None = None
    """That of the base's decoder, with --sd-unlocked; by default --learning-rate, but at most 2e-6."""
    scale_lr: bool = False
    """Multiply both learning rates by the number of pairs of a step."""
    lr_scheduler: LrScheduler = "constant"
    """How the learning rate goes, in diffusers' words; all but constant and piecewise_constant begin with a warm-up,
    and all but the constant ones come to their end at --max-train-steps."""
    lr_warmup_steps: int = 0
    """Steps over which the learning rate rises from 0."""
    lr_num_cycles: int = 1
    """Cosines of cosine_with_restarts."""
    lr_power: float = 1.0
    """Exponent of polynomial."""
    lr_step_rules: str | None = None
    """For piecewise_constant: shares of the learning rate and the steps until which they hold, then the last share, as
    in 1:1000,0.1:2000,0.01."""
    adam_beta1: float = 0.9
    """AdamW's decay of the gradient's mean."""
    adam_beta2: float = 0.999
    """AdamW's decay of the squared gradient's mean."""
    adam_weight_decay: float = 0.01
    """AdamW's decay of the weights, times the learning rate."""
    adam_epsilon: float = 1e-8
    """What AdamW adds to its divisor."""
    use_8bit_adam: bool = False
    """AdamW of bitsandbytes, whose state takes a quarter of the memory."""
    max_grad_norm: float = 0.0
    """Scale gradients down to this norm; 0 leaves them, as the original's does. diffusers' script has 1."""
    ema_decay: float = 0.0
    """Keep a running mean of the trained weights with this decay, such as 0.999, and save it as the run's control;
    0 is off."""
    snr_gamma: float | None = None
    """Weigh the loss by the signal-to-noise ratio, at most this (5 in Hang et al. 2023); off by default."""
    noise_offset: float = 0.0
    """Add so much noise that is alike over a whole channel, for darker and brighter pictures; off by default."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where, how long, what is measured and kept."""

    out: Path
    """Folder of the run. The same command run again goes on where it stopped."""
    max_train_steps: int = 1500
    """Optimizer steps in all."""
    num_train_epochs: int | None = None
    """Passes over the data, instead of --max-train-steps."""
    seed: int = 0
    """Of the order of the pairs and of each pair's noise."""
    validation_steps: int = 0
    """Steps between validations: held-out loss, hint gain, fidelity, a grid of pictures; 0 is 300 as the original's
    logger, and 50 for narrow bases."""
    num_validation_images: int = 16
    """Pictures generated at each validation, from the first held-out hints; up to 8 of them are drawn."""
    validation_prompt: tuple[str, ...] = ()
    """Prompts of pictures that are also made at each validation, one for each --validation-image, or one for all."""
    validation_image: tuple[Path, ...] = ()
    """Their hints."""
    checkpointing_steps: int = 200
    """Steps between checkpoints."""
    checkpoints_total_limit: int = 2
    """Checkpoints that are kept: the last, and others should it be damaged later."""
    resume_from_checkpoint: str = "latest"
    """Where a run goes on: latest, or one of its checkpoints (its path, or its step)."""
    allow_changes: bool = False
    """Go on although the data, the base or the options are others than those of the run."""
    report_to: ReportTo = "auto"
    """Who else gets the figures of RUN/metrics.csv: tensorboard, wandb, mlflow or all that are installed; auto is
    tensorboard if it is installed."""
    logging_dir: Path | None = None
    """Folder of TensorBoard's and the others' files; by default RUN/logs."""
    tracker_project_name: str = "controlnet"
    """W&B's project, MLflow's experiment."""
    push_to_hub: bool = False
    """At the end publish the control in diffusers layout on the Hugging Face hub, with a model card."""
    hub_model_id: str | None = None
    """Its name there; by default that of the run's folder, under your account."""
    devices: int = 1
    """GPUs, or processes on a CPU, of this machine that train together."""
    num_nodes: int = 1
    """Machines that train together."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How they do: ddp, everything on each of them; fsdp, each with a part of what is trained and of its optimizer's
    state, which takes less memory and more traffic."""
    dry_run: bool = False
    """Print the settings in full, the memory, the time of a step and the disk that the run needs; train nothing."""
    plan: bool = False
    """From the run's detected convergence propose how to share the rest of --max-train-steps, and train nothing."""
