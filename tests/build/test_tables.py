"""Lists of URLs and data sets as sources: every line is a row, and what is no use says so."""

import hashlib
import json

import pyarrow
import pytest
from pyarrow import parquet

from build import made
from controlnet.build.recipe import make_recipe
from controlnet.build.tables import HubDataset, Urls
from controlnet.errors import UserError

HASH = hashlib.sha256(b"a").hexdigest()
LINES = [
    {"url": "https://example.org/a.jpg", "caption": "a, with comma", "license": "CC0", "sha256": HASH.upper()},
    {"url": "https://example.org/b.jpg", "caption": "ü", "license": "", "sha256": ""},
    {"url": "", "caption": "nothing", "license": "", "sha256": ""},
    {"url": "https://example.org/a.jpg", "caption": "again", "license": "", "sha256": ""},
    {"url": "https://example.org/c.jpg", "caption": "", "license": "", "sha256": "12"},
]
ENDED = [("ok", ""), ("ok", ""), ("failed", "no url"), ("dropped", "duplicate url"), ("failed", "malformed sha256")]


def separated(delimiter):
    def quoted(text):
        return f'"{text}"' if delimiter in text else text

    lines = [list(LINES[0]), *(line.values() for line in LINES)]
    return "".join(delimiter.join(map(quoted, line)) + "\n" for line in lines)


def write(path):
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(LINES), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    else:
        path.write_text(separated({".csv": ",", ".tsv": "\t"}[path.suffix]))
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_every_line_of_every_kind_of_table_is_a_row(tmp_path, suffix):
    rows = list(Urls(path=write(tmp_path / f"list.{suffix}")).rows())
    assert [(row.status, row.reason) for row in rows] == ENDED
    assert len({row.id for row in rows}) == len(rows)
    first = dict(rows[0].values)
    assert first.pop("source").startswith(f"list.{suffix}:")
    assert first == {"url": LINES[0]["url"], "caption": "a, with comma", "license": "CC0", "sha256": HASH}
    assert rows[1].values["caption"] == "ü"


def test_a_plain_list_has_an_address_a_line(tmp_path):
    (tmp_path / "list.txt").write_text("\ufeffhttps://a.example/1\n\n  https://a.example/2 \r\nnonsense")
    rows = list(Urls(path=tmp_path / "list.txt").rows())
    assert [row.get("url") for row in rows] == ["https://a.example/1", None, "https://a.example/2", "nonsense"]
    assert [row.status for row in rows] == ["ok", "failed", "ok", "ok"]  # what is no address, download refuses


def test_columns_may_be_called_otherwise(tmp_path):
    line = {"URL": "https://a.example/1", "TEXT": "one", "hash": None, "terms": "CC BY"}
    (tmp_path / "laion.jsonl").write_text(json.dumps(line))
    [row] = Urls(path=tmp_path / "laion.jsonl", url="URL", license="terms", sha256="hash").rows()
    assert (row.values["caption"], row.values["license"]) == ("one", "CC BY")
    assert "sha256" not in row.values


def test_malformed_lines_are_rows_that_say_so(tmp_path):
    lines = ["url,caption", "https://a.example/1,one", "https://a.example/2", "https://a.example/3,x,y", "x" * 200_000]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    (tmp_path / "b.jsonl").write_text('{"url": "https://a.example/4"}\n{"url": \n[1]\n"text"\n{}\n')
    rows = list(Urls(path=tmp_path).rows())
    wrong = "malformed line"
    assert [row.reason for row in rows] == ["", wrong, wrong, wrong, "", wrong, wrong, wrong, "no url"]
    assert "1 fields, expected 2" in rows[1].detail
    assert "field larger than" in rows[3].detail
    assert len({row.id for row in rows}) == 9


def test_tables_of_a_folder_come_by_name_and_repetitions_are_found_across_them(tmp_path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.txt").write_text("https://a.example/1\nhttps://a.example/" + name)
    rows = list(Urls(path=tmp_path / "*.txt").rows())
    assert [row.values["source"] for row in rows] == ["a.txt:1", "a.txt:2", "b.txt:1", "b.txt:2"]
    assert [row.status for row in rows] == ["ok", "ok", "dropped", "ok"]
    assert len(list(Urls(path=tmp_path, limit=3).rows())) == 3


def test_what_cannot_be_read_is_told(tmp_path):
    (tmp_path / "list.csv").write_text("link,text\nhttps://a.example/1,one\n")
    (tmp_path / "list.parquet").write_bytes(b"PAR1 or not")
    (tmp_path / "list.xlsx").write_bytes(b"PK")
    for name, told in {
        "list.csv": "has no column 'url'; it has: link, text",
        "list.parquet": "cannot be read as Parquet",
        "list.xlsx": "is no table; expected files that end in: .txt, .csv",
        "none.txt": "there are no tables at",
    }.items():
        with pytest.raises(UserError, match=told):
            list(Urls(path=tmp_path / name).rows())


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """A data set of three pictures, one of them broken, and a line without one; as a folder, and as Parquet."""
    from datasets import Dataset, Features, Image, Value

    folder = tmp_path_factory.mktemp("datasets")
    pictures = [made.picture(0), made.picture(1)[:200], None, made.picture(2)]
    lines = [{"image": {"bytes": data, "path": None}, "text": f"shape {n}"} for n, data in enumerate(pictures)]
    lines[2]["image"] = None
    data = Dataset.from_list(lines, Features({"image": Image(), "text": Value("string")}))
    data.save_to_disk(folder / "saved")
    (folder / "parquet").mkdir()
    data.to_parquet(folder / "parquet/train-0.parquet")
    return folder


@pytest.mark.parametrize("name", ["saved", "parquet"])
def test_a_data_set_gives_its_pictures_as_they_are(on_disk, name):
    rows = list(HubDataset(name=str(on_disk / name)).rows())
    assert [row.reason for row in rows] == ["", "broken picture", "no picture", ""]
    assert [row.values["caption"] for row in rows] == [f"shape {number}" for number in range(4)]
    assert rows[3].files["image"] == made.picture(2)
    assert [row.id for row in HubDataset(name=str(on_disk / name), limit=2).rows()] == [row.id for row in rows[:2]]


def test_columns_that_a_data_set_has_not_are_told(on_disk):
    with pytest.raises(UserError, match="has no column 'picture'; it has: image, text. Set image to"):
        list(HubDataset(name=str(on_disk / "saved"), image="picture").rows())
    with pytest.raises(UserError, match="cannot be opened"):
        list(HubDataset(name=str(on_disk / "nowhere")).rows())


def test_recipes_know_both(on_disk, tmp_path):
    write(tmp_path / "list.csv")
    for source in ({"kind": "urls", "path": "list.csv"}, {"kind": "datasets", "name": str(on_disk / "saved")}):
        recipe = make_recipe({"source": source, "sink": {"kind": "webdataset"}}, tmp_path / "r.toml")
        assert len(list(recipe.source.rows())) >= 4
