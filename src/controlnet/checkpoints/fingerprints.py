"""SHA-256 of large files, computed once: remembered while path, size and time of change stay the same."""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from controlnet.atomic import write_atomically
from controlnet.checkpoints.models import sha256
from controlnet.errors import UserError

WEIGHTS = (".safetensors", ".bin", ".json")  # of a folder in diffusers layout
WORTH = 100 * 2**20  # bytes from which computing takes longer than looking up
KEPT = 500


def fingerprint(place: Path) -> str:
    """The SHA-256 of a file; of a folder in diffusers layout, that of its files' digests."""
    return remembered(lambda: _digest(place), place, "file")


def remembered(compute: Callable[[], str], place: Path, what: str) -> str:
    """What `compute` says of the weights at `place`; `what` tells it from all else that is said of them."""
    files = _files(place)
    if sum(file.stat().st_size for file in files) < WORTH:
        return compute()
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(repr((what, stamps)).encode()).hexdigest()
    known = _known()
    if key not in known:
        known[key] = compute()
        newest = dict(list(known.items())[-KEPT:])
        with suppress(OSError, UserError):  # a full disk or a cache that is not ours: then it is computed again
            write_atomically(_store(), lambda temporary: temporary.write_text(json.dumps(newest)))
    return known[key]


def _digest(place: Path) -> str:
    if place.is_file():
        return sha256(place)
    return hashlib.sha256("".join(map(sha256, _files(place))).encode()).hexdigest()


def _files(place: Path) -> list[Path]:
    """Links resolved: those of the hub's cache are named by content."""
    if place.is_file():
        return [place.resolve()]
    return sorted(path.resolve() for path in place.rglob("*") if path.suffix in WEIGHTS)


def _known() -> dict[str, str]:
    try:
        known = json.loads(_store().read_text())
    except (OSError, ValueError):  # there is none yet, or it is damaged: nothing is lost with it
        return {}
    return known if isinstance(known, dict) else {}


def _store() -> Path:
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "controlnet" / "fingerprints.json"
