"""Shards on disk: whole or absent, the same bytes for the same rows, readable by others."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build import made
from controlnet.build.rows import COLUMNS, Row, identify
from controlnet.build.shards import Shard, rows_in, shards_in
from controlnet.errors import UserError

ROWS = [
    made.row(0).having({"hint.png": made.picture(9)}, condition="canny"),
    made.row(1).dropped("small", "64x64").without_files(),
    made.row(2, url="https://example.org/ü.png", similarity=0.5),
]


def test_rows_come_back_as_they_were_written(tmp_path):
    shard = Shard(tmp_path, 3)
    shard.write(ROWS, {})
    assert shard.read() == ROWS
    assert shard.read(with_files=False) == [row.without_files() for row in ROWS]
    assert [each.number for each in shards_in(tmp_path)] == [3]


def test_the_same_rows_are_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        Shard(tmp_path / name, 0).write(ROWS, {"stages": {}})
    for suffix in (".tar", ".parquet", ".json"):
        assert (tmp_path / f"a/shard-00000{suffix}").read_bytes() == (tmp_path / f"b/shard-00000{suffix}").read_bytes()


def test_the_tar_is_one_that_any_reader_of_web_datasets_knows(tmp_path):
    Shard(tmp_path, 0).write(ROWS, {})
    with tarfile.open(tmp_path / "shard-00000.tar") as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
    first, _, third = (row.id for row in ROWS)
    texts = [f"{first}.txt", f"{third}.txt"]
    assert sorted(files) == sorted([f"{first}.png", f"{first}.hint.png", f"{third}.png", *texts])
    assert files[f"{first}.txt"].decode() == ROWS[0].text
    assert files[f"{third}.png"] == made.picture(2)


def test_the_table_says_where_each_file_begins(tmp_path):
    from pyarrow import parquet

    Shard(tmp_path, 0).write(ROWS, {})
    tar = (tmp_path / "shard-00000.tar").read_bytes()
    [first, second, _] = parquet.read_table(tmp_path / "shard-00000.parquet").to_pylist()
    places = {each["name"]: tar[each["offset"] : each["offset"] + each["size"]] for each in first["files"]}
    assert places == {"image": made.picture(0), "hint.png": made.picture(9)}
    assert (second["files"], second["status"], second["reason"]) == ([], "dropped", "small")


@pytest.mark.parametrize("suffix", [".tar", ".parquet"])
def test_a_shard_that_was_changed_is_noticed(tmp_path, suffix):
    shard = Shard(tmp_path, 0)
    shard.write(ROWS, {})
    path = shard.stem.with_suffix(suffix)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="is not as it was written; remove"):
        shard.read()


def test_a_shard_without_its_manifest_is_absent(tmp_path):
    shard = Shard(tmp_path, 0)
    shard.write(ROWS, {})
    shard.manifest_path.unlink()
    assert not shard.is_done
    assert list(rows_in(tmp_path)) == []


TEXT = {"string": st.text(max_size=9), "int32": st.integers(-9, 9), "float32": st.floats(0, 1, width=32)}
VALUES = st.fixed_dictionaries({}, optional={name: TEXT[kind] for name, (kind, _) in COLUMNS.items()})


@given(st.lists(st.tuples(VALUES, st.binary(max_size=2000)), max_size=5))
def test_any_values_and_bytes_survive(tmp_path_factory, made_of):
    rows = [
        Row(identify(str(number)), {**values, "format": "png"}, {"image": data, "hint.png": data[::-1]})
        for number, (values, data) in enumerate(made_of)
    ]
    shard = Shard(tmp_path_factory.mktemp("shard"), 0)
    shard.write(rows, {})
    assert shard.read() == rows
    tarfile.open(fileobj=io.BytesIO(shard.stem.with_suffix(".tar").read_bytes())).close()
