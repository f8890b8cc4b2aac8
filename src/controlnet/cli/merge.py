"""`controlnet merge`: weighted sums and differences of controls."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from controlnet.errors import UserError


@dataclass(frozen=True)
class Merge:
    """Add controls up: controlnet merge "0.6*a + 0.4*b" a=canny.safetensors b=depth.pth --out both.safetensors

    Or replace blocks, "b" with --layers middle, or carry a difference over, "a + (b - c)". Computed in float32, kept in
    the first file's precision. Nothing is ever overwritten.
    """

    expression: tyro.conf.Positional[str]
    """Sums, differences and multiples of names; in quotes."""
    controls: tyro.conf.Positional[tuple[str, ...]]
    """What the names stand for: NAME=FILE; a file in any format, a run's folder, a diffusers folder, or a name."""
    out: Path
    """File to write; the suffix tells the format as in `controlnet convert`."""
    layers: tuple[str, ...] = ()
    """Only in these blocks, the others stay the first control's: hint, time, in, down, down.0, middle, zero, zero.0,
    zero.middle, ..., or patterns of our names."""
    to: Literal["ldm", "webui", "diffusers", "controlnet"] | None = None
    """Say the format against the suffix."""

    def __call__(self) -> None:
        from controlnet.checkpoints.control_file import find_control
        from controlnet.checkpoints.control_formats import format_for, open_control, write_control
        from controlnet.checkpoints.merge import merge
        from controlnet.cli.progress import bytes_bar

        to = format_for(self.out, self.to)
        files = {name: open_control(find_control(place)) for name, place in self._places().items()}
        merged = merge(self.expression, files, self.layers)
        with bytes_bar(f"writing {self.out.name}") as progress:
            write_control(self.out, merged.state, merged.metadata, to, progress=progress)
        print(f"{merged.changed} of {len(merged.state)} weights are {self.expression}; {self.out}")

    def _places(self) -> dict[str, str]:
        pairs = [each.partition("=") for each in self.controls]
        names = [name for name, _, _ in pairs]
        if not pairs or len(set(names)) < len(names) or not all(name and place for name, _, place in pairs):
            raise UserError(
                f"{' '.join(self.controls) or 'no file'}: expected NAME=FILE for each name in the expression"
            )
        return {name: place for name, _, place in pairs}
