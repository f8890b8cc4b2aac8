"""`controlnet transfer`: a control trained on one base, moved to another."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from controlnet.errors import UserError


@dataclass(frozen=True)
class Transfer:
    """Move a control to another base of its family: what it learned is added to the new base's weights.

    control + new base - old base for every weight that has a twin in the base; zero convolutions and hint encoder are
    copied. Of a full model whose decoder was trained too, that moves with it. Nothing is ever overwritten.
    """

    from_base: str
    """The base that the control was trained on; as in `controlnet attach`."""
    control: str
    """The control: a file in any format, a run's folder, a diffusers folder, or a name."""
    to_base: str
    """The base to move it to."""
    out: Path
    """File to write: .safetensors for the control alone, .ckpt or .pth for a full model with the new base around it,
    without a suffix a diffusers folder."""
    to: Literal["ldm", "controlnet", "diffusers"] | None = None
    """Say it against the suffix: ldm is the full model, the others the control alone."""

    def __call__(self) -> None:
        from controlnet.base import base_place
        from controlnet.checkpoints.control_file import find_control
        from controlnet.checkpoints.control_formats import format_for, write_control
        from controlnet.checkpoints.transfer import transfer
        from controlnet.cli.progress import bytes_bar

        to = format_for(self.out, self.to)
        moved = transfer(base_place(self.from_base), find_control(self.control), base_place(self.to_base))
        if moved.unlocked and to != "ldm":
            raise UserError(
                f"{self.control}: {len(moved.unlocked)} weights of its base were trained too, which no control holds; "
                f"write a full model: --out {self.out.stem}.ckpt"
            )
        with bytes_bar(f"writing {self.out.name}") as progress:
            if to == "ldm":
                moved.full_base().write_with_control(self.out, moved.state, moved.metadata, progress)
            else:
                write_control(self.out, moved.state, moved.metadata, to, progress=progress)
        with_base = f" and {len(moved.unlocked)} weights of the base" if moved.unlocked else ""
        print(
            f"{moved.offset} weights of the control{with_base} moved to {self.to_base}, the others copied; {self.out}"
        )
