"""Pictures in one folder, hints of the same names in another, each prompt in a text file of that name.

`data/images/cats/1.jpg`, `data/hints/cats/1.png` and `data/images/cats/1.txt` are a pair; prompts may also lie beside
the hints or in a third folder. Two folders anywhere are written as one place: `pictures::hints`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from controlnet.data.formats.records import USUAL, Columns, Problem, Record, Records, Stored, doubles
from controlnet.errors import UserError

BETWEEN = "::"
TARGET_FOLDERS = ("images", "image", "target", "targets", "pictures", "jpg")
HINT_FOLDERS = ("conditioning_images", "conditioning_image", "hints", "hint", "source", "conditioning", "control")
PROMPT_FOLDERS = ("captions", "prompts", "texts", "txt")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
REFUSED = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".jxl")  # found, so that they are named
TEXTS = (".txt", ".caption")

Files = Mapping[str, Path]  # by name: the path within the folder, without suffix


class Folders(Records):
    """The pairs of two folders; what has no partner is a problem. Without a folder of hints: pictures to annotate."""

    def __init__(self, place: str, columns: Columns = USUAL) -> None:
        self.place = place
        self.target_folder, self.hint_folder, prompts = _find(place)
        targets, doubled = _pictures(self.target_folder)
        hints, doubled_hints = _pictures(self.hint_folder) if self.hint_folder else (targets, [])
        homes = [home for home in (self.target_folder, prompts, self.hint_folder) if home]
        texts = {name: path for home in reversed(homes) for name, path in _files(home, TEXTS)}
        wrong = [*doubled, *doubled_hints, *_unequal(targets, hints, texts)]
        names = [name for name in targets if name in hints and name in texts]
        self.pairs = [(name, targets[name], hints[name], _text(texts[name])) for name in names]
        self.problems = [Problem(place, name, text) for place, (name, text) in enumerate(sorted(wrong), 1)]

    @staticmethod
    def recognises(place: str) -> bool:
        if BETWEEN in place:
            return True
        path = Path(place)
        return path.is_dir() and (_named(path, TARGET_FOLDERS) is not None or bool(_pictures(path)[0]))

    def __len__(self) -> int:
        return len(self.pairs)

    def record(self, index: int) -> Record:
        name, target, hint, prompt = self.pairs[index]
        stored = Stored(_known_as(hint, self.hint_folder), hint) if self.hint_folder else None
        return Record(name, Stored(_known_as(target, self.target_folder), target), stored, prompt)

    def prompt(self, index: int) -> str:
        return self.pairs[index][3]

    def where(self, index: int) -> tuple[int, str]:
        return index + 1, self.pairs[index][0]


def _find(place: str) -> tuple[Path, Path | None, Path | None]:
    """The folders of pictures, hints and prompts. UserError for two that are not both there."""
    if BETWEEN in place:
        targets, _, hints = (Path(part) for part in place.partition(BETWEEN))
        if missing := [str(path) for path in (targets, hints) if not path.is_dir()]:
            raise UserError(f"{place}: {' and '.join(missing)}: no folder; expected PICTURES{BETWEEN}HINTS")
        return targets, hints, None
    folder = Path(place)
    targets_or_none = _named(folder, TARGET_FOLDERS)
    if targets_or_none is None:
        return folder, None, None
    return targets_or_none, _named(folder, HINT_FOLDERS), _named(folder, PROMPT_FOLDERS)


def _named(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _files(folder: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            yield path.relative_to(folder).with_suffix("").as_posix(), path


def _pictures(folder: Path) -> tuple[Files, list[tuple[str, str]]]:
    """The pictures by name; and (name, what is wrong) where several have it."""
    found = list(_files(folder, PICTURES + REFUSED))
    twice = doubles(name for name, _ in found)
    told = [
        (name, f"several pictures have this name: {', '.join(str(path) for each, path in found if each == name)}")
        for name in twice
    ]
    return {name: path for name, path in found if name not in twice}, told


def _unequal(targets: Files, hints: Files, texts: Files) -> Iterator[tuple[str, str]]:
    """(name, what it lacks)."""
    for name, path in targets.items():
        lacks = [kind for kind, there in (("hint", hints), ("prompt (a .txt file)", texts)) if name not in there]
        if lacks:
            yield name, f"the picture {path} has no {' and no '.join(lacks)}"
    for name, path in hints.items():
        if name not in targets:
            yield name, f"the hint {path} has no picture"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig", errors="replace").strip()


def _known_as(path: Path, folder: Path) -> str:
    return f"{folder.name}/{path.relative_to(folder).as_posix()}"
