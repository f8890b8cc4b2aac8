"""Rows from tables: lists of URLs, and data sets of Hugging Face. Every line is a row, also those that are no use."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from controlnet.annotators.annotator import Range
from controlnet.build.pictures import inspected
from controlnet.build.rows import Row, identify
from controlnet.build.stage import Source
from controlnet.errors import UserError

Line = Mapping[str, Any]
LINES_AT_ONCE = 4096  # read from Parquet
SHA256_DIGITS = 64


@dataclass(frozen=True, kw_only=True)
class Urls(Source):
    """Addresses of pictures, with what is known of them: txt (one a line), csv, tsv, jsonl or parquet."""

    path: Path
    """A table, or a folder or glob of tables, which are read in the order of their names."""
    url: str = "url"
    """Column with the addresses; in txt there is no other."""
    caption: str | None = None
    """Column with what the picture shows; by default the first there is of caption, text and TEXT."""
    license: str | None = None
    """Column with the licence; by default `license`, if there is one."""
    sha256: str | None = None
    """Column with the SHA-256 that the file must have; by default `sha256`, if there is one."""
    limit: Annotated[int, Range(1, 2**62)] | None = None
    """At most so many rows."""

    def rows(self) -> Iterator[Row]:
        """An address is remembered by 64 bits of its hash: some 70 bytes each, 7 GB for a hundred millions."""
        seen: set[int] = set()
        number = 0
        for table in _tables(self.path):
            for place, line in READERS[_kind(table)](table, self.url):
                if self.limit is not None and number == self.limit:
                    return
                yield self._row(line, f"{table.name}:{place}", seen)
                number += 1

    def _row(self, line: Line | str, source: str, seen: set[int]) -> Row:
        """Ended already where the line is malformed, or its address empty or a repetition."""
        if isinstance(line, str):
            return Row(identify(source), {"source": source}).failed("malformed line", line)
        url = str(line.get(self.url) or "").strip()
        row = Row(identify(url or source), {"source": source, **({"url": url} if url else {}), **self._known(line)})
        if not url:
            return row.failed("no url", f"nothing in the column {self.url}")
        key = int(row.id[:16], 16)
        if key in seen:
            return Row(identify(f"{url}\n{source}"), row.values).dropped("duplicate url", f"of {row.id}")
        seen.add(key)
        expected = row.get("sha256", "")
        if expected and (len(expected) != SHA256_DIGITS or set(expected) - set("0123456789abcdef")):
            return row.failed("malformed sha256", f"{expected!r}; expected {SHA256_DIGITS} hexadecimal digits")
        return row

    def _known(self, line: Line) -> dict[str, str]:
        columns = {
            "caption": [self.caption] if self.caption else ["caption", "text", "TEXT"],
            "license": [self.license or "license"],
            "sha256": [self.sha256 or "sha256"],
        }
        found = {name: next((line[it] for it in them if line.get(it)), None) for name, them in columns.items()}
        known = {name: str(value).strip() for name, value in found.items() if value is not None}
        return known | ({"sha256": known["sha256"].lower()} if "sha256" in known else {})


def _tables(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(each for each in path.iterdir() if _kind(each) in READERS)
    else:
        found = [path] if path.is_file() else sorted(path.parent.glob(path.name))
    wrong = [each for each in found if _kind(each) not in READERS]
    if wrong or not found:
        what = f"{wrong[0]} is no table" if wrong else f"there are no tables at {path}"
        raise UserError(f"{what}; expected files that end in: {', '.join(READERS)}")
    return found


def _kind(path: Path) -> str:
    return path.suffix.lower()


def _text_lines(path: Path, column: str) -> Iterator[tuple[int, Line]]:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            yield number, {column: line}


def _csv_lines(path: Path, column: str, delimiter: str = ",") -> Iterator[tuple[int, Line | str]]:
    with _opened(path) as file:
        reader = csv.reader((line.replace("\0", "") for line in file), delimiter=delimiter)
        names = next(reader, [])
        _check_column(path, column, names)
        while True:
            try:
                line = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield reader.line_num, str(error)
                continue
            if len(line) == len(names):
                yield reader.line_num, dict(zip(names, line, strict=True))
            else:
                yield reader.line_num, f"{len(line)} fields, expected {len(names)}: {line}"[:200]


def _tsv_lines(path: Path, column: str) -> Iterator[tuple[int, Line | str]]:
    yield from _csv_lines(path, column, "\t")


def _json_lines(path: Path, column: str) -> Iterator[tuple[int, Line | str]]:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                told = json.loads(line)
            except ValueError as error:
                told = f"{error}: {line.strip()[:100]!r}"
            yield number, told if isinstance(told, dict | str) else f"{line.strip()[:100]!r} is no object"


def _parquet_lines(path: Path, column: str) -> Iterator[tuple[int, Line]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            _check_column(path, column, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(LINES_AT_ONCE):
                for number, line in enumerate(batch.to_pylist(), start=number + 1):  # noqa: B020  # it goes on
                    yield number, line
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}") from error


def _opened(path: Path) -> Any:
    newline = "" if _kind(path) in (".csv", ".tsv") else None  # lines may go on within quotes
    return path.open(encoding="utf-8-sig", errors="replace", newline=newline)


def _check_column(path: Path, column: str, names: list[str]) -> None:
    if column not in names:
        raise UserError(
            f"{path} has no column {column!r}; it has: {', '.join(names)}. Set url to the one with addresses"
        )


READERS: dict[str, Any] = {
    ".txt": _text_lines,
    ".csv": _csv_lines,
    ".tsv": _tsv_lines,
    ".jsonl": _json_lines,
    ".parquet": _parquet_lines,
}


@dataclass(frozen=True, kw_only=True)
class HubDataset(Source):
    """A data set of Hugging Face with pictures in it, from the hub (streamed) or from disk."""

    name: str
    """Of the hub, such as `fusing/fill50k`; or a folder: one saved by `save_to_disk`, or one of Parquet or pictures."""
    split: str = "train"
    config: str | None = None
    """Part of the data set, where it has several."""
    revision: str | None = None
    """Commit of the hub to hold on to: without one, the newest when the build begins."""
    image: str = "image"
    """Column with the pictures."""
    caption: str | None = "text"
    """Column with what they show; none if the data set has no captions."""
    license: str | None = None
    """Of all of them."""
    limit: Annotated[int, Range(1, 2**62)] | None = None
    """At most so many rows."""

    def rows(self) -> Iterator[Row]:
        from datasets import Image

        data = self._opened()
        for what, column in (("image", self.image), ("caption", self.caption)):
            if column is not None and column not in data.column_names:
                raise UserError(
                    f"data set {self.name} has no column {column!r}; it has: {', '.join(data.column_names)}. "
                    f"Set {what} to the right one"
                )
        wanted = [name for name in (self.image, self.caption) if name is not None]
        data = data.select_columns(wanted).cast_column(self.image, Image(decode=False))
        for number, line in enumerate(data):
            if number == self.limit:
                return
            yield self._row(number, line)

    def _opened(self) -> Any:
        """Lines lazily, in their order."""
        import datasets

        folder = Path(self.name)
        try:
            if (folder / "dataset_dict.json").is_file():
                return datasets.load_from_disk(self.name)[self.split]
            if (folder / "dataset_info.json").is_file():
                return datasets.load_from_disk(self.name)
            return datasets.load_dataset(
                self.name, self.config, split=self.split, revision=self.revision, streaming=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"data set {self.name}, split {self.split}: cannot be opened ({error})") from error

    def _row(self, number: int, line: Mapping[str, Any]) -> Row:
        source = f"{self.name}:{self.split}:{number}"
        caption = line[self.caption] if self.caption else None
        known = {"source": source, "caption": caption, "license": self.license}
        row = Row(identify(source), {name: str(value) for name, value in known.items() if value})
        picture = line[self.image] or {}
        data, path = picture.get("bytes"), picture.get("path")
        if data is None and path:
            try:
                data = Path(path).read_bytes()
            except OSError as error:
                return row.failed("no picture", str(error))
        return inspected(row, data) if data else row.failed("no picture", "nothing in the column")
