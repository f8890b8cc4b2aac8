"""What a training is told; its field docstrings are the help of `controlnet train`. Imports nothing heavy."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from controlnet.choices import BaseChoice
from controlnet.devices import DType
from controlnet.errors import UserError
from controlnet.training.options import DataOptions, ModelOptions, OptimizerOptions, RunOptions

CONDITIONS = "canny, mlsd, hed, scribble, pose, seg, depth, normal, lineart, circle or a word of your own"

# option -> least, most, both possible; None is no bound. An option that is not given (None) is not checked.
RANGES: dict[str, tuple[float | None, float | None]] = {
    **dict.fromkeys(
        (
            "max_train_steps",
            "num_train_epochs",
            "max_train_samples",
            "num_validation_images",
            "checkpointing_steps",
            "checkpoints_total_limit",
            "gradient_accumulation_steps",
            "lr_num_cycles",
            "devices",
            "num_nodes",
        ),
        (1, None),
    ),
    **dict.fromkeys(
        (
            "train_batch_size",
            "validation_steps",
            "seed",
            "lr_warmup_steps",
            "crop_variants",
            "dataloader_num_workers",
            "lr_power",
            "max_grad_norm",
            "adam_weight_decay",
            "noise_offset",
        ),
        (0, None),
    ),
    "proportion_empty_prompts": (0, 1),
    "resolution": (64, None),
}
# option -> what it must lie between
BETWEEN: dict[str, tuple[float, float]] = {
    "learning_rate": (0, 1),
    "learning_rate_unlocked": (0, 1),
    "adam_epsilon": (0, 1),
    "snr_gamma": (0, float("inf")),
}
UNSHARED = {  # what --strategy fsdp cannot do
    "auto_micro_batch": "each process halves its own part, but here all compute in step",
    "use_8bit_adam": "bitsandbytes knows no weights that are shared out",
    "compile": "weights that are shared out are not compiled",
}
BELOW_ONE = ("adam_beta1", "adam_beta2", "ema_decay")  # 0 is possible, 1 is not
PLACES = ("data", "validation_data")  # paths, or names of data sets on the hub
PRECISIONS: dict[str, DType] = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}

# What may differ when the same run goes on: where, how long, how often and how fast, not what is learned.
FREE = (
    "out max_train_steps num_train_epochs validation_steps num_validation_images validation_prompt validation_image "
    "checkpointing_steps checkpoints_total_limit resume_from_checkpoint allow_changes report_to logging_dir "
    "tracker_project_name push_to_hub hub_model_id device devices num_nodes strategy dry_run plan compile attention "
    "gradient_checkpointing auto_micro_batch train_batch_size gradient_accumulation_steps dataloader_num_workers cache "
    "versions machine allow_tf32"
).split()
# What the original's text switches between the stages of a run; the learning rates only with one of the first two.
SWITCHABLE = ("only_mid_control", "sd_unlocked", "learning_rate", "learning_rate_unlocked")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunOptions, OptimizerOptions, ModelOptions, DataOptions, BaseChoice):
    """One training of a ControlNet."""

    def __post_init__(self) -> None:
        if wrong := self.problems():
            raise UserError("\n".join(wrong))

    def problems(self) -> list[str]:
        """What cannot be, of each option and of them together."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        wrong = [
            *(_out_of(name, given[name], *bounds) for name, bounds in RANGES.items()),
            *(_not_between(name, given[name], *bounds) for name, bounds in BETWEEN.items()),
            *(_not_below_one(name, given[name]) for name in BELOW_ONE),
            *_contradictions(self),
        ]
        return [each for each in wrong if each]

    @property
    def precision(self) -> DType:
        """--dtype, or what --mixed-precision says instead."""
        return self.dtype if self.mixed_precision is None else PRECISIONS[self.mixed_precision]

    @property
    def pairs_per_step(self) -> int:
        """Of an optimizer step, over all its forward passes and devices; known once the batch size is resolved."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.devices * self.num_nodes

    def to_json(self) -> dict[str, Any]:
        """Every field as JSON has it; paths in full, so that the run doesn't depend on where it was started."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in PLACES:  # which stay as they are where there is no such path: names on the hub
            if values[name] is not None:
                values[name] = Path(values[name]) if Path(values[name]).exists() else str(values[name])
        return {name: _plain(value) for name, value in values.items()}


def check_same_run(path: Path, now: Mapping[str, Any]) -> list[str]:
    """Compare a run's record at `path` with what is asked now: what is switched, "name: before in the run, after now".

    UserError names every other difference that matters, unless `allow_changes` is among what is asked. What the record
    does not know was an option's default when it was written.
    """
    before = {**_defaults(), **json.loads(path.read_text(encoding="utf-8"))}
    differing = [name for name in {**before, **now} if name not in FREE and before.get(name) != now.get(name)]
    told = {name: f"{name}: {before.get(name)} in the run, {now.get(name)} now" for name in differing}
    switchable = SWITCHABLE if set(SWITCHABLE[:2]) & set(differing) else SWITCHABLE[:2]
    refused = [text for name, text in told.items() if name not in switchable]
    if refused and not now.get("allow_changes"):
        raise UserError(
            "\n".join([f"{path.parent} is a run of another training:", *(f"  {text}" for text in refused)])
            + "\ngive --out another folder for a new run, or the same options and data to continue this one; "
            "--allow-changes continues it all the same"
        )
    return list(told.values())


def _defaults() -> dict[str, Any]:
    """As JSON has them, of the options that have one."""
    return {each.name: _plain(each.default) for each in fields(TrainConfig) if each.default is not MISSING}


def _contradictions(config: TrainConfig) -> list[str]:
    """What the options say together and cannot mean."""
    wrong = []
    if not config.condition.strip():
        wrong.append(f"--condition is empty; expected {CONDITIONS}")
    if config.resolution is not None and config.resolution % 64:
        wrong.append(f"--resolution is {config.resolution}; expected a multiple of 64, such as 512")
    if config.resolution is None and (config.random_crop or config.aspect_buckets):
        wrong.append("--random-crop and --aspect-buckets need a --resolution; expected one, such as 512")
    if config.crop_variants and not (config.random_crop or config.random_flip):
        wrong.append("--crop-variants is given without --random-crop or --random-flip; expected one of them")
    if config.num_train_epochs is not None and config.max_train_steps != TrainConfig.max_train_steps:
        wrong.append("--num-train-epochs and --max-train-steps are both given; expected one of them")
    if config.mixed_precision is not None and config.dtype not in ("auto", PRECISIONS[config.mixed_precision]):
        wrong.append(f"--mixed-precision {config.mixed_precision} and --dtype {config.dtype}; expected one of them")
    if config.strategy == "fsdp":
        wrong += [
            f"--strategy fsdp and {_option(name)}: {why}; expected one of them"
            for name, why in UNSHARED.items()
            if getattr(config, name)
        ]
    if config.learning_rate_unlocked is not None and not config.sd_unlocked:
        wrong.append("--learning-rate-unlocked is given without --sd-unlocked, which it is for; expected both")
    if (config.lr_step_rules is not None) != (config.lr_scheduler == "piecewise_constant"):
        wrong.append("--lr-step-rules and --lr-scheduler piecewise_constant belong together; expected both or neither")
    prompts, images = len(config.validation_prompt), len(config.validation_image)
    if prompts != images and 1 not in (prompts, images):
        wrong.append(f"{prompts} --validation-prompt for {images} --validation-image; expected as many, or one for all")
    if bool(prompts) != bool(images):
        wrong.append("--validation-prompt and --validation-image belong together; expected both or neither")
    return wrong


def _out_of(name: str, value: Any, low: float | None, high: float | None) -> str:
    if value is None or ((low is None or low <= value) and (high is None or value <= high)):
        return ""
    return f"{_option(name)} is {value}; expected {f'{low} or more' if high is None else f'{low} to {high}'}"


def _not_between(name: str, value: Any, low: float, high: float) -> str:
    if value is None or low < value < high:
        return ""
    less = f" and less than {high:g}" if high < float("inf") else ""
    return f"{_option(name)} is {value}; expected more than {low:g}{less}"


def _not_below_one(name: str, value: Any) -> str:
    return "" if 0 <= value < 1 else f"{_option(name)} is {value}; expected 0 or more and less than 1"


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, Path):
        return str(value.resolve())
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
