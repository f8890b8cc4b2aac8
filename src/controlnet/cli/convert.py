"""`controlnet convert`: bases and controls from any format to any other."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from controlnet.errors import UserError

if TYPE_CHECKING:
    import torch

    from controlnet.checkpoints.control_formats import Format, Progress


@dataclass(frozen=True)
class Convert:
    """Rewrite a base or a control in another format, whole or not at all. Nothing is ever overwritten.

    Metadata go along wherever the format has room for them.
    """

    source: tyro.conf.Positional[str]
    """A base or a control: a file, a folder in diffusers layout, a run, or a name of `controlnet models list`."""
    out: tyro.conf.Positional[Path]
    """File or folder to write. By its suffix: .safetensors is our format for a control and a single file for a base,
    .ckpt .pth .pt .bin are the original's, none is a diffusers folder."""
    to: Literal["ldm", "webui", "diffusers", "controlnet"] | None = None
    """Say the format against the suffix: ldm is the original's layout, webui its names without prefix."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Precision to write; by default as it is."""
    part: Literal["base", "control"] | None = None
    """Which, of a file that holds both."""
    ema: bool = False
    """Take the averaged weights of a base's single file that has both."""
    tokenizer: Path | None = None
    """Folder of the tokenizer, for a single file, which carries none, to a folder."""
    prediction: Literal["epsilon", "v_prediction"] | None = None
    """What a base predicts, where its file does not say it."""
    base: str | None = None
    """The base that a control was made for, where its own file does not tell its heads."""
    condition: str | None = None
    """What a control's hints are: canny, depth, ...; over what its file or its name says, as the next two."""
    channel_order: Literal["RGB", "BGR"] | None = None
    """In which order a control takes the channels of its hints."""
    polarity: str | None = None
    """Of a control's hints: "light on dark" or "dark on light"."""

    def __call__(self) -> None:
        from controlnet.checkpoints.control_formats import format_for
        from controlnet.checkpoints.convert import part_in
        from controlnet.cli.progress import bytes_bar

        to = format_for(self.out, self.to)
        place = self._place()
        part = self.part or part_in(place)
        if part == "base" and self.to is None and to == "controlnet":
            to = "ldm"  # what a single file of a base is, whatever its suffix
        with bytes_bar(f"writing {self.out.name}") as progress:
            (self._convert_base if part == "base" else self._convert_control)(place, to, progress)
        print(f"{self.out}: a {part} in the format {to}")

    def _place(self) -> Path:
        from controlnet.base import EMBEDDED, base_place
        from controlnet.checkpoints.control_file import NAME_IN_RUN, find_control
        from controlnet.checkpoints.models import resolve_base

        path = Path(self.source).expanduser()
        if path.exists() and not (path / NAME_IN_RUN).is_file():
            return path
        if self.part == "base" or self.source == EMBEDDED or resolve_base(self.source):
            return base_place(self.source)
        return find_control(self.source)

    def _convert_base(self, place: Path, to: "Format", progress: "Progress") -> None:
        from controlnet.checkpoints.convert import convert_base

        self._refuse(("base", "condition", "channel_order", "polarity"), "a base")
        convert_base(place, self.out, to, self._precision(), self.ema, self.tokenizer, self.prediction, progress)

    def _convert_control(self, place: Path, to: "Format", progress: "Progress") -> None:
        from controlnet.base import base_place
        from controlnet.checkpoints.control_metadata import Said
        from controlnet.checkpoints.convert import convert_control

        self._refuse(("ema", "tokenizer", "prediction"), "a control")
        said = Said(self.condition, self.channel_order, self.polarity)
        base = base_place(self.base) if self.base else None
        convert_control(place, self.out, to, self._precision(), said, base, progress)

    def _refuse(self, options: tuple[str, ...], part: str) -> None:
        if given := [f"--{name.replace('_', '-')}" for name in options if getattr(self, name)]:
            raise UserError(f"{', '.join(given)}: nothing that {part} has; leave it out")

    def _precision(self) -> "torch.dtype | None":
        import torch

        return getattr(torch, self.dtype) if self.dtype else None
