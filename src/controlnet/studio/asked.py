"""All that the Generate tab asks for, as plain values; they go into the pictures' files, and come back from them.

Shapes: H W of a picture.
"""

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from controlnet.errors import UserError
from controlnet.generation.values import read_fields
from controlnet.images import decode_with_alpha

Pixels = NDArray[np.uint8]  # (H, W, 3), or (H, W, 4) with alpha
EditorValue = Mapping[str, Any] | None  # of one of the editors, which alone can read it
NUMBER = re.compile(r"[^\s,:;]+")
MOST_NUMBERS = 1000
NO_ANNOTATOR = "none"


@dataclass(frozen=True, kw_only=True, eq=False)
class UnitAsked:
    """A unit as its panel has it."""

    control: str = "circle"
    source: str = "Picture"
    """Of SOURCES in units.py: where the hint comes from."""
    picture: Pixels | None = None
    drawing: EditorValue = None
    """Of the scribble editor; the two below likewise."""
    pose: EditorValue = None
    segments: EditorValue = None
    annotator: str = NO_ANNOTATOR
    """none: the picture is a hint already."""
    options: Mapping[str, Any] = field(default_factory=dict)
    pixel_perfect: bool = False
    invert: bool = False
    is_bgr: bool = False
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    schedule: str = ""
    layer_weights: str = ""
    mode: str = "balanced"
    resize: str = "crop"
    mask: EditorValue = None
    """Where it acts; unpainted is everywhere."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """A whole tab."""

    prompt: str = ""
    added_prompt: str = ""
    negative_prompt: str = ""
    base: str = "embedded"
    count: int = 1
    steps: int = 20
    guidance_scale: float = 9.0
    seed: int = -1
    """-1 is a random one."""
    scheduler: str = "ddim"
    eta: float = 0.0
    clip_skip: int = 1
    has_own_size: bool = False
    """Whether width and height count; else the first hint's size does."""
    width: int = 512
    height: int = 512
    image: Pixels | None = None
    """To start from."""
    mask: EditorValue = None
    """What of it is painted anew; unpainted is all of it."""
    image_strength: float = 0.8
    loras: tuple[str, ...] = ()
    lora_weight: float = 1.0
    memory: str = "plenty"
    safety: str = "off"
    units: tuple[UnitAsked, ...] = ()

    def pictures(self) -> Iterator[Pixels]:
        """Every picture in it."""
        return (it for it in (self.image, *(unit.picture for unit in self.units)) if it is not None)

    def to_json(self) -> dict[str, Any]:
        """With pictures under the names that `files` has for them."""
        values = {each.name: _plain(getattr(self, each.name)) for each in fields(self) if each.name != "units"}
        units = [{each.name: _plain(getattr(unit, each.name)) for each in fields(unit)} for unit in self.units]
        return {**values, "units": units}

    def files(self) -> dict[str, bytes]:
        """Its pictures as PNG, by name."""
        return {name_of(picture): png(picture) for picture in self.pictures()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], files: Mapping[str, bytes]) -> "Asked":
        """What `to_json` and `files` have said. UserError if it is damaged."""
        problems: list[str] = []
        plain = {name: value for name, value in values.items() if name != "units"}
        read = _read(cls, plain, files, problems)
        units = [UnitAsked(**_read(UnitAsked, unit, files, problems)) for unit in values.get("units", ())]
        if problems:
            raise UserError("; ".join(problems))
        return cls(**read, units=tuple(units))

    def with_seed(self, seed: int) -> "Asked":
        return replace(self, seed=seed)


PICTURES = ("picture", "image")
OF_EDITORS = ("drawing", "pose", "segments", "mask")
BACKGROUND = "background"  # of an editor's value: for the eyes only


def numbers(text: str, what: str) -> tuple[float, ...]:
    """Those in a text, with spaces, commas or colons between them. UserError for anything else."""
    words = NUMBER.findall(text)
    try:
        read = tuple(float(word) for word in words)
    except ValueError:
        read = ()
    if len(read) != len(words) or len(read) > MOST_NUMBERS or not all(np.isfinite(read)):
        raise UserError(f"{what} {text.strip()[:40]!r}; expected numbers with spaces between them, such as 1 0.5 0")
    return read


def png(pixels: Pixels) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def data_url(pixels: Pixels) -> str:
    """For a page that fetches nothing."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def from_data_url(text: str) -> bytes:
    """UserError for what is none."""
    head, comma, body = text.partition(",")
    try:
        if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
            raise ValueError
        return base64.b64decode(body, validate=True)
    except ValueError as error:
        raise UserError("a picture that is no data URL; expected data:image/png;base64,...") from error


def with_alpha_if_any(rgba: Pixels) -> Pixels:
    """(H, W, 3) where nothing is transparent."""
    return rgba if (rgba[..., 3] < 255).any() else np.ascontiguousarray(rgba[..., :3])


def name_of(picture: Pixels) -> str:
    """By its content."""
    digest = hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).hexdigest()
    return f"{digest[:16]}.png"


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return name_of(value)
    if isinstance(value, Mapping):
        return {name: it for name, it in value.items() if name != BACKGROUND}
    return list(value) if isinstance(value, tuple) else value


def _read(kind: type, values: Mapping[str, Any], files: Mapping[str, bytes], problems: list[str]) -> dict[str, Any]:
    """Fields of a class here from what `to_json` has said; what an editor's value says, that editor checks."""
    tables = {name: values[name] for name in (*OF_EDITORS, "options") if isinstance(values.get(name), Mapping)}
    pictures = {name: values[name] for name in PICTURES if values.get(name) in files}
    plain = {name: value for name, value in values.items() if name not in (*OF_EDITORS, *PICTURES, "options")}
    decoded = {name: with_alpha_if_any(decode_with_alpha(files[place])) for name, place in pictures.items()}
    return read_fields(kind, plain, problems) | tables | decoded
