"""A row: one candidate for a data set, from beginning to end, with all that is known of it, also when it ends early.

In a table of Parquet a row is one line with the columns below; its files (picture, hint, ...) lie in a tar beside it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Status = Literal["ok", "dropped", "failed"]

# what may be known of a row: the type in Parquet, and what it is
COLUMNS: dict[str, tuple[str, str]] = {
    "prompt": ("string", "what was searched for, or what describes the picture until it is captioned"),
    "caption": ("string", "what the picture shows, in words: the prompt to train with"),
    "captioner": ("string", "model that wrote the caption, with its revision"),
    "url": ("string", "where the picture was fetched"),
    "source": ("string", "where the row came from: a file, a table, an index, a prompt"),
    "parent": ("string", "id of the row that this one was made from, such as the prompt that found it"),
    "license": ("string", "licence, where the source says it"),
    "http_status": ("int32", "last answer of the host"),
    "attempts": ("int32", "how often it was asked"),
    "opt_out": ("string", "what forbade its use: robots.txt or X-Robots-Tag"),
    "sha256": ("string", "of the picture's file, in hexadecimal"),
    "phash": ("string", "perceptual hash of the picture, 64 bits in hexadecimal"),
    "format": ("string", "of the picture's file: jpg, png or webp"),
    "width": ("int32", "of the picture in pixels"),
    "height": ("int32", "of the picture in pixels"),
    "original_width": ("int32", "before it was resized"),
    "original_height": ("int32", "before it was resized"),
    "similarity": ("float32", "of the picture to what was searched for, cosine in the index"),
    "clip_score": ("float32", "cosine between picture and caption"),
    "aesthetic_score": ("float32", "as the index or a model gives it"),
    "watermark_score": ("float32", "0 to 1"),
    "nsfw_score": ("float32", "0 to 1"),
    "sharpness": ("float32", "variance of the Laplacian of the grey picture at 512 pixels"),
    "condition": ("string", "kind of the hint"),
    "annotator": ("string", "annotator with its options and what its hint means, JSON"),
}


@dataclass(frozen=True)
class Row:
    """`values` are of COLUMNS; `files` are named "image" (as it was published), "hint.png", ..."""

    id: str
    values: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    status: Status = "ok"
    stage: str = ""
    """Where it ended, if it did."""
    reason: str = ""
    """Why, in a few words that many rows share: reasons are counted."""
    detail: str = ""
    """Why, in words for people."""

    def __post_init__(self) -> None:
        unknown = self.values.keys() - COLUMNS.keys()
        assert not unknown, f"no columns {unknown}"

    def get(self, name: str, default: Any = None) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    @property
    def text(self) -> str:
        """What to train with: its caption, else what it was searched by."""
        return str(self.get("caption") or self.get("prompt", ""))

    def having(self, files: Mapping[str, bytes] | None = None, **values: Any) -> "Row":
        """With more files and values, or others."""
        return replace(self, values={**self.values, **values}, files={**self.files, **(files or {})})

    def child(self, identity: str | bytes, **values: Any) -> "Row":
        """A row made from this one, that inherits what is known of it."""
        return Row(identify(identity), {**self.values, "parent": self.id, **values}, self.files)

    def dropped(self, reason: str, detail: str = "") -> "Row":
        """Not wanted: a rule says so."""
        return replace(self, status="dropped", reason=reason, detail=detail)

    def failed(self, reason: str, detail: str = "") -> "Row":
        """Wanted, and could not be had; may be tried again."""
        return replace(self, status="failed", reason=reason, detail=detail)

    def without_files(self) -> "Row":
        return replace(self, files={})


def identify(identity: str | bytes) -> str:
    """The id of what is identified by a URL, a text or a picture's bytes: 32 hexadecimal digits of its SHA-256."""
    data = identity.encode() if isinstance(identity, str) else identity
    return hashlib.sha256(data).hexdigest()[:32]
