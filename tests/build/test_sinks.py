"""What builds become is what others read: `datasets`, WebDataset's names, and our own training, in any order."""

import json
import tarfile

import numpy as np
import pytest

from build import made
from controlnet.build.recipe import make_recipe
from controlnet.build.run import build
from controlnet.build.shards import rows_in
from controlnet.data.check import check
from controlnet.data.pairs import Pairs
from controlnet.errors import UserError
from controlnet.images import decode

COUNT = 7


def built(tmp_path, **sink: object):
    """A build of seven pictures and edges in shards of three; one picture is broken."""
    if not (tmp_path / "pictures").exists():
        folder = made.folder(tmp_path / "pictures", COUNT)
        (folder / "004.png").write_bytes(made.picture(4)[:99])
    annotate = {"kind": "annotate", "condition": "canny", "options": {"detect_resolution": 64}}
    told = {"source": {"kind": "files", "path": "pictures"}, "stage": [annotate], "sink": sink, "shard_size": 3}
    out = tmp_path / str(sink["kind"])
    build(make_recipe(told, tmp_path / "recipe.toml"), out)
    return out


def same_pairs(first, second) -> bool:
    """Of two data sets, whatever their format."""
    pairs = [Pairs(first), Pairs(second)]
    assert len(pairs[0]) == len(pairs[1]) == COUNT - 1
    return all(
        ours.prompt == theirs.prompt
        and np.array_equal(decode(ours.target.source), decode(theirs.target.source))
        and np.array_equal(decode(ours.hint.source), decode(theirs.hint.source))
        for ours, theirs in ((pairs[0].records.record(n), pairs[1].records.record(n)) for n in range(COUNT - 1))
    )


def test_tars_are_read_directly_as_the_same_pairs_as_a_folder(tmp_path):
    folder, tars = built(tmp_path, kind="folder"), built(tmp_path, kind="webdataset")
    assert same_pairs(folder, tars)
    assert same_pairs(folder, tars / "shards")


def test_every_sample_of_a_tar_has_the_same_members(tmp_path):
    out = built(tmp_path, kind="webdataset")
    for path in (out / "shards").glob("*.tar"):
        with tarfile.open(path) as tar:
            names = tar.getnames()
            texts = {name: tar.extractfile(name).read().decode() for name in names if name.endswith(".txt")}
        keys = list(dict.fromkeys(name.partition(".")[0] for name in names))
        assert names == [f"{key}.{end}" for key in keys for end in ("png", "hint.png", "txt")]
        assert all(text.startswith("shape ") for text in texts.values())


def test_webdataset_samples_are_read_by_datasets_too(tmp_path):
    from datasets import load_dataset

    out = built(tmp_path, kind="webdataset")
    files = sorted(str(path) for path in (out / "shards").glob("*.tar"))
    rows = load_dataset("webdataset", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == COUNT - 1
    assert {"png", "hint.png", "txt"} <= set(rows.column_names)


def test_parquet_has_pictures_captions_and_hints_and_all_that_is_known(tmp_path):
    from datasets import load_dataset

    out = built(tmp_path, kind="huggingface")
    rows = load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    known = [row for row in rows_in(out / "shards", with_files=True) if row.status == "ok"]
    assert len(rows) == len(known) == COUNT - 1
    for told, row in zip(rows, known, strict=True):
        assert (told["id"], told["text"], told["sha256"]) == (row.id, row.text, row.values["sha256"])
        assert np.array_equal(np.asarray(told["image"]), decode(row.files["image"]))
        assert np.array_equal(np.asarray(told["conditioning_image"].convert("RGB")), decode(row.files["hint.png"]))
        assert told["source"] == row.values["source"].rpartition("/")[2]  # and not where it lies here
        assert json.loads(told["annotator"])["condition"] == "canny"


def test_parquet_alone_is_trained_on(tmp_path):
    folder, out = built(tmp_path, kind="folder"), built(tmp_path, kind="huggingface")
    assert same_pairs(folder, out / "data")
    assert not check(out / "data").errors


def test_a_run_of_a_finished_build_writes_the_same_parquet(tmp_path):
    before = {path.name: path.read_bytes() for path in (built(tmp_path, kind="huggingface") / "data").iterdir()}
    (tmp_path / "huggingface/data/train-00000-of-00009.parquet").write_bytes(b"of another number of shards")
    after = {path.name: path.read_bytes() for path in (built(tmp_path, kind="huggingface") / "data").iterdir()}
    assert sorted(before) == [f"train-{number:05d}-of-00003.parquet" for number in range(3)]
    assert before == after


def test_what_the_hub_does_not_take_is_whole_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="the data set is whole in .* the hub does not take it as me/rooms"):
        built(tmp_path, kind="huggingface", repo="me/rooms")
    assert len(Pairs(tmp_path / "huggingface/data")) == COUNT - 1


@pytest.mark.parametrize("kind", ["folder", "huggingface"])
def test_pairs_without_a_stage_that_makes_hints_are_refused_before_anything_is_done(tmp_path, kind):
    made.folder(tmp_path / "pictures", 1)
    told = {"source": {"kind": "files", "path": "pictures"}, "sink": {"kind": kind}}
    with pytest.raises(UserError, match=f"sink {kind}: .* add a stage annotate"):
        build(make_recipe(told, tmp_path / "recipe.toml"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
