"""A shard on disk: files of its rows in a tar as WebDataset names them, all rows in a Parquet table, and a manifest.

shard-00012.tar       ID.jpg, ID.hint.png, ID.txt ... of the rows that are wanted
shard-00012.parquet   every row: id, status, reason, all columns, and where its files begin in the tar
shard-00012.json      counts and SHA-256 of both; written last, so a shard is whole or absent
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from controlnet.atomic import write_quickly
from controlnet.build.rows import COLUMNS, Row
from controlnet.errors import UserError

BLOCK = tarfile.BLOCKSIZE
TEXT = "txt"  # member of the tar with the caption
IMAGE = "image"  # a row's picture; in the tar it is named after its format
REWRITTEN = "rewritten"  # folder beside shards, where their successors wait until they are whole
SUFFIXES = (".tar", ".parquet", ".json")  # the manifest last
FIXED = ("id", "status", "stage", "reason", "detail")


@dataclass(frozen=True)
class Shard:
    """One shard: the folder and the number that its files are named by."""

    folder: Path
    number: int

    @property
    def stem(self) -> Path:
        return self.folder / f"shard-{self.number:05d}"

    @property
    def manifest_path(self) -> Path:
        return self.stem.with_suffix(".json")

    @property
    def is_done(self) -> bool:
        return self.manifest_path.is_file()

    @property
    def manifest(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.manifest_path.read_text(encoding="utf-8"))
        return told

    def write(self, rows: Sequence[Row], report: dict[str, Any]) -> None:
        """Write the rows, with `report` in the manifest; the same rows give the same bytes."""
        tar, places = _pack(rows)
        table = _table(rows, places)
        content = {
            "rows": len(rows),
            "ok": sum(row.status == "ok" for row in rows),
            "wordless": sum(row.status == "ok" and not row.text for row in rows),
            "tar_sha256": hashlib.sha256(tar).hexdigest(),
            "parquet_sha256": hashlib.sha256(table).hexdigest(),
            **report,
        }
        write_quickly(self.stem.with_suffix(".tar"), lambda path: path.write_bytes(tar))
        write_quickly(self.stem.with_suffix(".parquet"), lambda path: path.write_bytes(table))
        text = json.dumps(content, indent=1) + "\n"
        write_quickly(self.manifest_path, lambda path: path.write_text(text, encoding="utf-8"))

    def rewrite(self, rows: Sequence[Row], report: dict[str, Any]) -> None:
        """As `write`, in place of a whole shard; killed at any moment, `settle` leaves one or the other."""
        self._successor.write(rows, report)
        self.settle()

    def settle(self) -> None:
        """Put its successor in its place, if that is whole; some of its files may be there already."""
        if self._successor.is_done:
            for suffix in SUFFIXES:
                if (path := self._successor.stem.with_suffix(suffix)).exists():
                    path.replace(self.stem.with_suffix(suffix))

    @property
    def _successor(self) -> "Shard":
        return Shard(self.folder / REWRITTEN, self.number)

    def read(self, with_files: bool = True) -> list[Row]:
        """Its rows in order. UserError for a shard that is not as it was written."""
        from pyarrow import parquet

        table, manifest = self.stem.with_suffix(".parquet").read_bytes(), self.manifest
        tar = self.stem.with_suffix(".tar").read_bytes() if with_files else b""
        for name, data in (("parquet", table), ("tar", tar)):
            if (name == "parquet" or with_files) and hashlib.sha256(data).hexdigest() != manifest[f"{name}_sha256"]:
                raise UserError(
                    f"{self.stem}.{name} is not as it was written; remove {self.manifest_path} to build it again"
                )
        return [_row(line, tar) for line in parquet.read_table(io.BytesIO(table)).to_pylist()]


def shards_in(folder: Path) -> list[Shard]:
    """The whole shards of a folder, in order."""
    numbers = sorted(int(path.stem.removeprefix("shard-")) for path in folder.glob("shard-*.json"))
    return [Shard(folder, number) for number in numbers]


def rows_in(folder: Path, with_files: bool = False) -> Iterator[Row]:
    for shard in shards_in(folder):
        yield from shard.read(with_files)


def member_name(row: Row, file: str) -> str:
    """How a row's file is called in the tar: what stands before the first dot is the same for all of a row's."""
    return f"{row.id}.{row.values['format'] if file == IMAGE else file}"


def _pack(rows: Sequence[Row]) -> tuple[bytes, list[list[dict[str, Any]]]]:
    """The tar, and for each row where its files are in it; its text lies there too, for others who read the tar."""
    packed, places = io.BytesIO(), []
    for row in rows:
        here = []
        for file, data in row.files.items() if row.status == "ok" else ():
            offset = _add(packed, member_name(row, file), data)
            here.append({"name": file, "offset": offset, "size": len(data)})
        if here:
            _add(packed, member_name(row, TEXT), row.text.encode())
        places.append(here)
    packed.write(bytes(2 * BLOCK))
    return packed.getvalue(), places


def _add(packed: io.BytesIO, name: str, data: bytes) -> int:
    """Put a member at the end of the tar; where its bytes begin."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    packed.write(header.tobuf(tarfile.USTAR_FORMAT))
    offset = packed.tell()
    packed.write(data + bytes(-len(data) % BLOCK))
    return offset


def _table(rows: Sequence[Row], places: list[list[dict[str, Any]]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    lines = [
        {**{name: getattr(row, name) for name in FIXED}, **row.values, "files": here}
        for row, here in zip(rows, places, strict=True)
    ]
    written = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(lines, _schema()), written, compression="zstd")
    return written.getvalue()


@cache
def _schema() -> Any:
    import pyarrow

    file = pyarrow.struct([("name", pyarrow.string()), ("offset", pyarrow.int64()), ("size", pyarrow.int64())])
    fixed = [(name, pyarrow.string()) for name in FIXED]
    known = [(name, getattr(pyarrow, kind)()) for name, (kind, _) in COLUMNS.items()]
    return pyarrow.schema([*fixed, *known, ("files", pyarrow.list_(file))])


def _row(line: dict[str, Any], tar: bytes) -> Row:
    files = {each["name"]: tar[each["offset"] : each["offset"] + each["size"]] for each in line["files"]} if tar else {}
    values = {name: line[name] for name in COLUMNS if line[name] is not None}
    fixed = {name: line[name] for name in FIXED if name != "id"}
    return Row(line["id"], values, files, **fixed)
