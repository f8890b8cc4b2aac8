"""The table of input formats, and which of them a place has."""

from importlib import import_module
from pathlib import Path
from typing import Any

from controlnet.data.formats.records import USUAL, Columns, Records
from controlnet.data.formats.stream import Stream
from controlnet.errors import UserError

# name -> where its records are; the first that recognises a place has it
FORMATS: dict[str, str] = {
    "prompt.json": "controlnet.data.formats.prompt_json:PromptJson",
    "table": "controlnet.data.formats.table:Table",
    "tars": "controlnet.data.formats.tars:Tars",
    "hub": "controlnet.data.formats.hub:Hub",
    "folders": "controlnet.data.formats.folders:Folders",
}

EXPECTED = """expected one of:
  a folder with prompt.json, as `controlnet data circles OUT` makes it: {"source": "source/0.png", "target": \
"target/0.png", "prompt": "..."} for each pair
  a folder with images/ and conditioning_images/ of equal names, and a .txt file with the prompt for each
  two folders anywhere: PICTURES::HINTS
  a table (.jsonl, .csv) or a folder with metadata.jsonl: image, conditioning_image, text
  tars as of WebDataset: key.jpg, key.hint.png, key.txt
  Parquet files, a data set saved by `datasets`, or one of the hub (owner/name)"""


def open_records(place: Path | str, columns: Columns = USUAL) -> Records:
    """The pairs of a place, in whatever format it has. UserError where it has none of them."""
    if columns.streaming:
        return Stream(str(place), columns)
    for home in FORMATS.values():
        kind = _load(home)
        if kind.recognises(str(place)):
            records: Records = kind(str(place), columns)
            return records
    path = Path(place)
    found = "a file of no known kind" if path.is_file() else "not there"
    if path.is_dir():
        found = "a folder that has no prompt.json, no table, no pictures in it"
    raise UserError(f"{place} is {found}; {EXPECTED}")


def _load(home: str) -> Any:
    module, name = home.split(":")
    return getattr(import_module(module), name)
