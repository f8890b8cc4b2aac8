"""Parquet with pictures, hints and captions, as `datasets` reads it; and on the hub, if so wanted."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from controlnet.atomic import write_atomically
from controlnet.build.annotate import HINT
from controlnet.build.rows import COLUMNS, Row
from controlnet.build.shards import IMAGE, Shard, member_name
from controlnet.build.sinks import Sink, pairs_problem
from controlnet.errors import UserError

DATA, CARD = "data", "README.md"
TABLES = f"{DATA}/train-*.parquet"
CONFIGURATION = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
task_categories:
- text-to-image
---
"""


@dataclass(frozen=True, kw_only=True)
class HuggingFace(Sink):
    """OUT/data/train-*.parquet: image, conditioning_image, text, and all that is known of each row."""

    repo: str | None = None
    """Push it to this data set of the hub (owner/name), with the token of `hf auth login`."""
    private: bool = True
    """Whether a repository that is not there yet is made for you alone."""

    def problems(self, names: Sequence[str]) -> Iterator[str]:
        yield from pairs_problem("huggingface", names)

    def write(self, shards: Sequence[Shard], out: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        schema, count = _schema(), 0
        wanted = [shard for shard in shards if shard.manifest["ok"]]
        names = [f"train-{number:05d}-of-{len(wanted):05d}.parquet" for number in range(len(wanted))]
        for shard, name in zip(wanted, names, strict=True):
            lines = [_line(row) for row in shard.read() if row.status == "ok"]
            table = pyarrow.Table.from_pylist(lines, schema)
            write_atomically(out / DATA / name, partial(parquet.write_table, table))
            count += len(lines)
        for path in out.glob(TABLES):
            if path.name not in names:  # of a writing before more rows could be had
                path.unlink()
        card = CONFIGURATION + _card(out, count)
        write_atomically(out / CARD, lambda path: path.write_text(card, encoding="utf-8"))
        if self.repo:
            self._push(self.repo, out)

    def _push(self, repo: str, out: Path) -> None:
        """UserError where the hub does not take it; what it has already it does not take again."""
        from huggingface_hub import HfApi

        try:
            api = HfApi()
            api.create_repo(repo, repo_type="dataset", private=self.private, exist_ok=True)
            api.upload_folder(
                repo_id=repo,
                repo_type="dataset",
                folder_path=out,
                allow_patterns=[CARD, TABLES],
                delete_patterns=[TABLES],  # of an earlier push
            )
        except (OSError, ValueError) as error:
            told = str(error).strip().partition("\n")[0]
            raise UserError(
                f"the data set is whole in {out}, but the hub does not take it as {repo} ({told}); run the same "
                "command again where the hub can be reached and `hf auth login` was done"
            ) from error


def _schema() -> Any:
    from datasets import Features, Image, Value

    known = {name: Value(kind) for name, (kind, _) in COLUMNS.items() if name != "caption"}
    pair = {"image": Image(), "conditioning_image": Image(), "text": Value("string")}
    return Features({**pair, "id": Value("string"), **known}).arrow_schema


def _line(row: Row) -> dict[str, Any]:
    files = {"image": IMAGE, "conditioning_image": HINT}
    cells = {column: {"bytes": row.files[file], "path": member_name(row, file)} for column, file in files.items()}
    known = {name: row.get(name) for name in COLUMNS if name != "caption"}
    if os.path.isabs(row.get("source", "")):
        known["source"] = Path(known["source"]).name  # where it lies on this machine is nobody's business
    return {"id": row.id, "text": row.text, **known, **cells}


def _card(out: Path, count: int) -> str:
    recipe = (out / "build.json").read_text(encoding="utf-8")
    return (
        f"{count:,} pictures with conditions (`conditioning_image`, PNG) and captions (`text`), built by `controlnet "
        f"build` with this recipe:\n\n```json\n{json.dumps(json.loads(recipe), indent=1, ensure_ascii=False)}\n```\n\n"
        "The pictures belong to those who made them: see the columns `url` and `license`.\n"
    )
