"""What an annotator is: a frozen dataclass of its options that makes a hint of one condition from a picture.

Command line and sliders are derived from the fields:

    @dataclass(frozen=True, kw_only=True)
    class Canny(Annotator):
        low: Annotated[int, Range(1, 255)] = 100
        "Gradient above which a line goes on."

A module that is named in `table.py` imports torch only inside functions, so that all options are known at once; the
network itself, an nn.Module, lives in a module of its own.
"""

# b pictures of one size, h height, w width
import ast
import inspect
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from controlnet.annotators.resolution import to_resolution
from controlnet.devices import Device, DType
from controlnet.errors import UserError
from controlnet.images import Rgb, Source, decode, three_channels

# what is found beyond a hint: values of each pixel (h, w), such as classes, or JSON, such as keypoints
Detail = NDArray[np.uint8] | dict[str, Any] | None


@dataclass(frozen=True)
class Meaning:
    """What a hint of a condition says: kept in the hint's PNG, compared with a control's metadata."""

    condition: str
    polarity: str = "light on dark"
    """Of drawings: "light on dark" or "dark on light"; of depth: "near is light"; else "none"."""
    channel_order: str = "RGB"
    values: str = "0 or 255"
    """What the numbers of the hint stand for."""
    models: tuple[str, ...] = ()
    """Public controls that expect such hints."""
    is_smooth: bool = False
    """Whether a value between two of its values means something, so that a hint may be interpolated."""


@dataclass(frozen=True)
class Range:
    """The values that an option may have, both ends included; `step` is a slider's."""

    low: float
    high: float
    step: float = 1

    def __str__(self) -> str:
        return f"{self.low:.10g} to {self.high:.10g}"  # a seed's has ten digits


@dataclass(frozen=True)
class Option:
    """One option of an annotator, as a command line or a slider needs it."""

    name: str
    type: Any
    """int, float, bool, str or a Literal, without the range."""
    default: Any
    range: Range | None
    choices: tuple[Any, ...]
    help: str


@dataclass(frozen=True, kw_only=True)
class Annotator(ABC):
    """Picture -> hint. UserError for options out of their ranges."""

    meaning: ClassVar[Meaning]

    detect_resolution: Annotated[int, Range(0, 2048, 64)] = 512
    """Shorter side in pixels of the picture that is looked at; 0 looks at the picture as it is (pixel perfect)."""

    def __post_init__(self) -> None:
        if problems := [
            text for option in options(type(self)) if (text := _problem(option, getattr(self, option.name)))
        ]:
            raise UserError(f"{self.meaning.condition}: {'; '.join(problems)}")

    def __call__(self, picture: Rgb | Source) -> Rgb:
        """The hint (h, w, 3) uint8 RGB of a picture, at the detect resolution: `resolution.to_size` gives it another.

        The picture is an array (H, W), (H, W, 3) or (H, W, 4) uint8, or anything that `images.decode` reads.
        """
        return self.batch([picture])[0]

    def hint_meaning(self) -> Meaning:
        """What its hints mean, where options change it."""
        return self.meaning

    def batch(self, pictures: Sequence[Rgb | Source]) -> list[Rgb]:
        """The hints of several pictures of any sizes; a network sees those of one size together."""
        return [hint for hint, _ in self.batch_detailed(pictures)]

    def batch_detailed(self, pictures: Sequence[Rgb | Source]) -> list[tuple[Rgb, Detail]]:
        """As `batch`, each with what was found beyond the hint, if anything."""
        return [(self.annotate(self.at_resolution(self.read(picture))), None) for picture in pictures]

    def read(self, picture: Rgb | Source) -> Rgb:
        """The picture as rgb: alpha on white, grey three times."""
        return three_channels(picture) if isinstance(picture, np.ndarray) else decode(picture)

    def at_resolution(self, rgb: Rgb) -> Rgb:
        """The picture as it is looked at."""
        return to_resolution(rgb, self.detect_resolution) if self.detect_resolution else rgb

    @abstractmethod
    def annotate(self, picture: Rgb) -> Rgb:
        """The hint (h, w, 3) of a picture (h, w, 3) that is at the detect resolution."""


@dataclass(frozen=True, kw_only=True)
class WholePicture(Annotator):
    """An annotator that looks at the picture as it is, unless a detect resolution is asked for."""

    detect_resolution: Annotated[int, Range(0, 2048, 64)] = 0


@dataclass(frozen=True, kw_only=True)
class NetworkAnnotator(Annotator):
    """An annotator with a network: keeps it in a `functools.cached_property`, overrides `annotate_all`."""

    device: Device = "auto"
    """Where to compute; auto takes CUDA, else MPS, else the CPU."""
    dtype: DType = "auto"
    """Precision of the network."""
    weights_dir: Path | None = None
    """Folder that may hold the weights, asked before the hub's cache and the hub."""

    def batch_detailed(self, pictures: Sequence[Rgb | Source]) -> list[tuple[Rgb, Detail]]:
        resized = [self.at_resolution(self.read(picture)) for picture in pictures]
        hints: dict[int, tuple[Rgb, Detail]] = {}
        for numbers in _of_one_size(resized):
            together = self.annotate_detailed(np.stack([resized[number] for number in numbers]))
            hints |= dict(zip(numbers, together, strict=True))
        return [hints[number] for number in range(len(pictures))]

    def at_resolution(self, rgb: Rgb) -> Rgb:
        """The picture as it is looked at: its sides are multiples of 64 at every resolution."""
        return to_resolution(rgb, self.detect_resolution or min(rgb.shape[:2]))

    def annotate(self, picture: Rgb) -> Rgb:
        return self.annotate_all(picture[None])[0]

    @abstractmethod
    def annotate_all(self, pictures_bhwc: NDArray[np.uint8]) -> Sequence[Rgb]:
        """The hints of pictures of one size (b, h, w, 3) at the detect resolution."""

    def annotate_detailed(self, pictures_bhwc: NDArray[np.uint8]) -> Sequence[tuple[Rgb, Detail]]:
        """As `annotate_all`, each with what was found beyond the hint, if anything."""
        return [(hint, None) for hint in self.annotate_all(pictures_bhwc)]


_parsing = Lock()  # Python 3.11 counts the depth of ast for all threads at once: a SystemError when two are in it
COMPUTE = {"device", "dtype", "weights_dir"}  # fields of a NetworkAnnotator that change no hint's meaning


def options(kind: type[Annotator]) -> tuple[Option, ...]:
    """What may be chosen of an annotator's hints, in the order of its fields; where to compute is left out."""
    return tuple(option for option in all_options(kind) if option.name not in COMPUTE)


@cache
def all_options(kind: type[Annotator]) -> tuple[Option, ...]:
    """All that may be chosen of an annotator."""
    hints, texts = get_type_hints(kind, include_extras=True), _field_texts(kind)
    found = []
    for field in fields(kind):
        assert field.default is not MISSING, f"{kind.__name__}.{field.name} needs a default"
        hint, ranges = hints[field.name], []
        if get_origin(hint) is Annotated:
            hint, *extras = get_args(hint)
            ranges = [extra for extra in extras if isinstance(extra, Range)]
        choices = get_args(hint) if get_origin(hint) is Literal else ()
        text = texts.get(field.name, "")
        found.append(Option(field.name, hint, field.default, ranges[0] if ranges else None, choices, text))
    return tuple(found)


def _field_texts(kind: type) -> dict[str, str]:
    """The docstrings under the fields of a class and of those it inherits, which Python itself forgets."""
    texts = {}
    for each in reversed([base for base in kind.__mro__ if issubclass(base, Annotator)]):
        with _parsing:
            [definition] = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(definition, ast.ClassDef)
        for field, after in zip(definition.body, definition.body[1:], strict=False):
            match field, after:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = inspect.cleandoc(text)
    return texts


def _problem(option: Option, value: object) -> str:
    """Why an option cannot have this value; empty if it can."""
    if option.choices and value not in option.choices:
        return f"{option.name} is {value!r}; expected one of: {', '.join(map(str, option.choices))}"
    if option.range is None:
        return ""
    is_number = isinstance(value, int if option.type is int else (int, float)) and not isinstance(value, bool)
    if is_number and option.range.low <= value <= option.range.high:  # type: ignore[operator]
        return ""
    kind = "a whole number" if option.type is int else "a number"
    return f"{option.name} is {value!r}; expected {kind} from {option.range}"


def _of_one_size(pictures: Sequence[Rgb]) -> Iterator[list[int]]:
    """The numbers of the pictures, by size."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for number, picture in enumerate(pictures):
        by_size.setdefault(picture.shape, []).append(number)
    yield from by_size.values()
