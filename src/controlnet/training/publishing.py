"""A finished run on the Hugging Face hub: its control in diffusers layout, and a model card."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controlnet.atomic import write_atomically
from controlnet.base import base_place
from controlnet.checkpoints.control_file import NAME_IN_RUN
from controlnet.checkpoints.control_formats import open_control
from controlnet.checkpoints.convert import convert_control
from controlnet.errors import UserError
from controlnet.evaluation.convergence import find_convergence
from controlnet.training.config import TrainConfig
from controlnet.training.record import Row, history_of, read_rows

CARD, FOLDER = "README.md", "hub"
TAGS = {"sd1": "stable-diffusion", "sd2": "stable-diffusion", "sdxl": "stable-diffusion-xl"}
# of config.json: what the card says of the training
TOLD = (
    *("max_train_steps", "train_batch_size", "gradient_accumulation_steps", "learning_rate", "lr_scheduler"),
    *("proportion_empty_prompts", "only_mid_control", "sd_unlocked", "ema_decay", "snr_gamma", "seed", "dtype"),
)
FIGURES = {
    "held_out_loss": "held-out loss, at fixed noise and timesteps",
    "base_loss": "the same of the base alone",
    "hint_gain": "hint gain: how much of it the true hint takes away, against another's",
    "fidelity": "fidelity: how far pictures obey their hints, 0 to 1",
    "text_accuracy": "accuracy of the base's text under an empty hint",
}


def check_hub() -> None:
    """Before the work: UserError unless the hub can be reached and knows who is asking."""
    from huggingface_hub import HfApi, get_token

    try:
        if get_token() is None:
            raise UserError("--push-to-hub: nobody is logged in; run `hf auth login`, or set HF_TOKEN")
        HfApi().whoami()
    except UserError:
        raise
    except Exception as error:  # the hub's library, and those it calls, have many of their own
        raise UserError(
            f"--push-to-hub: the hub cannot be reached or refuses ({str(error).splitlines()[0]}); leave the option out "
            "and publish later with the same command and the option"
        ) from error


def publish(config: TrainConfig) -> str:
    """Upload the run's control and card; its address. UserError if the hub refuses."""
    from huggingface_hub import HfApi

    folder = write_model(config.out, config.base)
    try:
        api = HfApi()
        repository = api.create_repo(config.hub_model_id or config.out.resolve().name, exist_ok=True).repo_id
        api.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:
        raise UserError(
            f"--push-to-hub: not published ({str(error).splitlines()[0]}); the run is finished and whole, and what was "
            f"to be published is in {folder}: the same command again tries again"
        ) from error
    return f"https://huggingface.co/{repository}"


def write_model(run: Path, base: str) -> Path:
    """RUN/hub: the control in diffusers layout, its pictures and its card; the folder."""
    folder = run / FOLDER
    if folder.exists():
        shutil.rmtree(folder)
    control = run / NAME_IN_RUN
    convert_control(control, folder, "diffusers", base=base_place(base) if open_control(control).decoder else None)
    samples = sorted((run / "samples").glob("step-*.png"))[-1:]
    for name, pictures in {"curve.png": [*run.glob("curve.png")], "samples.png": samples}.items():
        for picture in pictures:
            shutil.copyfile(picture, folder / name)
    text = model_card(run, folder.joinpath("unet").is_dir())
    write_atomically(folder / CARD, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return folder


def model_card(run: Path, is_unlocked: bool) -> str:
    """What the run's folder tells of its control, as the hub shows it: Markdown under a header of YAML."""
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    metadata = open_control(run / NAME_IN_RUN).metadata
    rows = read_rows(run / "metrics.csv")
    base, name = config["base"], config.get("hub_model_id") or run.resolve().name
    tags = ["controlnet", "diffusers", "text-to-image", TAGS[metadata.family], metadata.condition]
    # a base that is a path of somebody's machine is no base of the hub
    header = ["library_name: diffusers", *([f"base_model: {base}"] if _is_on_hub(base) else [])]
    parts = [
        "---\n" + "\n".join([*header, "tags:", *(f"- {json.dumps(tag)}" for tag in tags)]) + "\n---",
        f"# {name}\n\nA ControlNet for {Path(base).name}: its hints are **{metadata.condition}**, "
        f"{metadata.hint_channels} channels of {metadata.channel_order} in 0 to 1, polarity: {metadata.polarity}.",
        _pictures(run),
        "## Use\n\n" + _use(name, metadata.family, is_unlocked),
        "## Figures\n\n" + (_figures(rows) or "Nothing was measured."),
        "## Data\n\n" + _data(run, config),
        "## Training\n\n" + _table({each.replace("_", " "): config.get(each) for each in TOLD}),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _pictures(run: Path) -> str:
    samples = "![hint, with control, ground truth](samples.png)" if any((run / "samples").glob("*.png")) else ""
    curve = "![loss and hint gain over the steps](curve.png)" if (run / "curve.png").is_file() else ""
    return "\n\n".join(filter(None, (samples, curve)))


def _use(name: str, family: str, is_unlocked: bool) -> str:
    pipeline = f"StableDiffusion{'XL' if family == 'sdxl' else ''}ControlNetPipeline"
    lines = [f"from diffusers import ControlNetModel, {pipeline}{', UNet2DConditionModel' * is_unlocked}", ""]
    unet = inside = ""
    if is_unlocked:  # the decoder was trained with it
        inside = ', subfolder="controlnet"'
        lines.append(f'unet = UNet2DConditionModel.from_pretrained("{name}", subfolder="unet")')
        unet = ", unet=unet"
    lines.append(f'control = ControlNetModel.from_pretrained("{name}"{inside})')
    lines.append(f'pipeline = {pipeline}.from_pretrained("BASE", controlnet=control{unet})')
    return "```python\n" + "\n".join(lines) + "\n```"


def _figures(rows: list[Row]) -> str:
    last = {name: next((row[name] for row in reversed(rows) if row[name]), None) for name in FIGURES}
    table = _table({FIGURES[name]: value for name, value in last.items() if value is not None})
    convergence = find_convergence(history_of(rows))
    return table + (f"\n\n{convergence}." if convergence and table else "")


def _data(run: Path, config: Mapping[str, Any]) -> str:
    card = run / "data.json"
    told: dict[str, Any] = json.loads(card.read_text(encoding="utf-8")) if card.is_file() else {}
    counted = {name: value for name, value in told.items() if isinstance(value, int)}
    return _table({"data": Path(config["data"]).name, **counted, "fingerprint": config["data_fingerprint"][:16]})


def _table(rows: Mapping[str, Any]) -> str:
    if not rows:
        return ""
    return "| | |\n| --- | --- |\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _is_on_hub(base: str) -> bool:
    return base.count("/") == 1 and not Path(base).exists() and not base.startswith((".", "~"))
