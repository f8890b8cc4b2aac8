"""Retrieval judged for real: a CLIP that knows the world of shapes finds pictures it has never seen."""

import json
import sys

import numpy as np
import pytest

from build import made, shape_clip
from controlnet.build.clip import Clip
from controlnet.build.index import SIDE, Index, build_index, contact_sheet
from controlnet.build.recipe import make_recipe
from controlnet.build.retrieve import Retrieve
from controlnet.build.rows import Row, identify
from controlnet.build.run import build
from controlnet.build.shards import rows_in
from controlnet.build.stage import Context
from controlnet.cli.main import run
from controlnet.data.shapes import render
from controlnet.errors import UserError
from controlnet.images import decode, encoded

COUNT, NEAR = 150, 10
CHANCE = NEAR / COUNT


@pytest.fixture(scope="module")
def clip(clip_folder):
    return Clip(str(clip_folder), "cpu")


@pytest.fixture(scope="module")
def scenes():
    return shape_clip.scenes(COUNT, seed=0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, scenes):
    folder = tmp_path_factory.mktemp("pictures")
    for number, scene in enumerate(scenes):
        (folder / f"{number:03d}.png").write_bytes(encoded(render(scene, 64), "png"))
        (folder / f"{number:03d}.txt").write_text(scene.caption)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pictures, clip, clip_folder):
    out = tmp_path_factory.mktemp("index")
    assert build_index(str(pictures), out, clip, str(clip_folder)) == (COUNT, 0)
    return out


def recall(index, queries_nd) -> float:
    found = index.search(queries_nd, NEAR)
    return float(np.mean([number in [each.number for each in near] for number, near in enumerate(found)]))


def test_pictures_are_found_by_their_words_ten_times_as_often_as_by_chance(folder, clip, scenes):
    assert recall(Index(folder), clip.of_texts([scene.caption for scene in scenes])) > 10 * CHANCE


def test_words_of_other_pictures_find_no_more_than_chance_does(folder, clip):
    others = clip.of_texts([scene.caption for scene in shape_clip.scenes(COUNT, seed=1)])
    assert recall(Index(folder), others) < 3 * CHANCE


def test_a_picture_finds_itself_first_and_its_smaller_copy_finds_it_among_ten(folder, clip, scenes):
    index = Index(folder)
    [[first]] = index.search(clip.of_pictures([render(scenes[7], 64)]), 1)
    assert first.number == 7
    assert first.similarity == pytest.approx(1, abs=1e-4)
    assert recall(index, clip.of_pictures([render(scene, 48) for scene in scenes])) > 10 * CHANCE


def test_what_is_found_is_sorted_and_told_with_its_metadata(folder, clip, scenes, pictures):
    [found] = Index(folder).search(clip.of_texts([scenes[0].caption]), NEAR)
    similar = [each.similarity for each in found]
    assert similar == sorted(similar, reverse=True)
    for each in found:
        assert each.metadata["caption"] == scenes[each.number].caption
        assert each.metadata["path"] == str(pictures / f"{each.number:03d}.png")
        assert each.metadata["width"] == 64


def test_more_than_there_are_gives_all_of_them_and_none_twice(folder, clip):
    [found] = Index(folder).search(clip.of_texts(["red circle with blue background"]), COUNT + 50)
    assert sorted(each.number for each in found) == list(range(COUNT))


def test_files_that_do_not_belong_together_are_refused(folder, tmp_path, clip, clip_folder, pictures):
    other = tmp_path / "other"
    build_index(str(pictures / "00*.png"), other, clip, str(clip_folder))
    (other / "metadata.parquet").write_bytes((folder / "metadata.parquet").read_bytes())
    with pytest.raises(UserError, match=r"metadata\.parquet is not the one"):
        Index(other)
    with pytest.raises(UserError, match="controlnet build index"):
        Index(tmp_path / "nothing")


def test_queries_of_another_model_are_refused(folder):
    with pytest.raises(UserError, match="width 3 for an index of width 64"):
        Index(folder).search(np.ones((1, 3), np.float32), 1)


def test_a_broken_picture_is_counted_and_left_out(tmp_path, clip):
    pictures = made.folder(tmp_path / "pictures", 3)
    (pictures / "001.png").write_bytes(made.picture(1)[:100])
    assert build_index(str(pictures), tmp_path / "index", clip, "clip") == (2, 1)
    assert len(Index(tmp_path / "index").metadata) == 2


def test_a_folder_with_other_files_is_not_made_an_index(tmp_path, clip):
    pictures = made.folder(tmp_path / "pictures", 1)
    with pytest.raises(UserError, match="it is no index"):
        build_index(str(pictures), pictures, clip, "clip")


def test_rows_are_replaced_by_what_their_prompts_find(folder, scenes):
    rows = [Row(identify(f"prompt {number}"), {"prompt": scenes[number].caption}) for number in (3, 4)]
    found = Retrieve(index=folder, count=4).setup(Context("cpu"))(rows)
    assert [row.values["parent"] for row in found] == [rows[0].id] * 4 + [rows[1].id] * 4
    assert len({row.id for row in found}) == 8
    for row in found:
        assert row.values["caption"] in {scene.caption for scene in scenes}  # its own, not the prompt
        assert decode(row.files["image"]).shape == (64, 64, 3)


def test_a_row_that_finds_nothing_near_stays_and_says_so(folder):
    row = Row(identify("prompt"), {"prompt": "red circle with blue background"})
    [left] = Retrieve(index=folder, least=1.0).setup(Context("cpu"))([row])
    assert (left.id, left.status, left.reason) == (row.id, "dropped", "nothing near enough")


def test_a_file_that_is_gone_fails_its_row_alone(tmp_path, clip, clip_folder):
    pictures = made.folder(tmp_path / "pictures", 3)
    build_index(str(pictures), tmp_path / "index", clip, str(clip_folder))
    (pictures / "002.png").unlink()
    rows = Retrieve(index=tmp_path / "index", count=3).setup(Context("cpu"))([Row("0", {"prompt": "circle"})])
    assert sorted((row.status, row.reason) for row in rows) == [("failed", "file is gone"), ("ok", ""), ("ok", "")]
    sheet = contact_sheet(Index(tmp_path / "index").search(clip.of_texts(["circle"]), 3)[0])
    assert sheet.shape[2] == 3


def test_pictures_of_a_build_are_found_by_address_and_left_to_the_download(tmp_path, clip, clip_folder):
    made.folder(tmp_path / "pictures", 4)
    recipe = make_recipe(
        {"source": {"kind": "files", "path": "pictures"}, "sink": {"kind": "webdataset"}}, tmp_path / "r"
    )
    [shard] = build(recipe, tmp_path / "built").shards
    known = [row.having(url=f"https://example.org/{row.id}", license="CC0") for row in shard.read()]
    shard.write(known, {"stages": shard.manifest["stages"]})
    build_index(str(tmp_path / "built"), tmp_path / "index", clip, str(clip_folder))
    rows = Retrieve(index=tmp_path / "index", count=4).setup(Context("cpu"))([Row("0", {"prompt": "circle"})])
    assert {row.values["url"] for row in rows} == {row.values["url"] for row in rows_in(tmp_path / "built/shards")}
    assert {row.values["license"] for row in rows} == {"CC0"}
    assert not any(row.files for row in rows)


def test_the_licence_that_an_index_is_told_goes_with_what_it_finds(tmp_path, clip, clip_folder):
    pictures, out = made.folder(tmp_path / "pictures", 2), tmp_path / "index"
    words = ["build", "index", pictures, out, "--model", clip_folder, "--license", "CC BY 4.0", "--device", "cpu"]
    assert run([str(word) for word in words]) == 0
    rows = Retrieve(index=out, count=2).setup(Context("cpu"))([Row("0", {"prompt": "circle"})])
    assert [row.values["license"] for row in rows] == ["CC BY 4.0"] * 2


def test_a_picture_as_a_query_leaves_nothing_of_its_own_in_what_it_finds(folder):
    query = made.row(5)
    for row in Retrieve(index=folder, by="image", count=3).setup(Context("cpu"))([query]):
        assert row.values["sha256"] != query.values["sha256"]
        assert row.values["parent"] == query.id


def test_without_faiss_one_is_told_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install 'controlnet\[scale\]'"):
        Index(folder)


def test_the_commands_index_search_and_write_a_sheet_quietly(tmp_path, clip_folder, capfd):
    pictures, index = made.folder(tmp_path / "pictures", 5), str(tmp_path / "index")
    assert run(["build", "index", str(pictures), index, "--model", str(clip_folder), "--device", "cpu"]) == 0
    assert json.loads((tmp_path / "index/index.json").read_text())["count"] == 5
    capfd.readouterr()
    sheet = tmp_path / "found.png"
    picture = str(pictures / "002.png")
    assert run(["build", "search", index, str(sheet), "--image", picture, "--count", "3", "--device", "cpu"]) == 0
    told, complaints = capfd.readouterr()
    assert told.splitlines()[0] == f"1.000  {picture}  shape 2"
    assert "Loading weights" not in complaints
    assert decode(sheet).shape[1] >= 4 * SIDE
    assert run(["build", "search", index, str(sheet)]) == 2
