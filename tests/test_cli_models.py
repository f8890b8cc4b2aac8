"""`controlnet models list` and `controlnet models fetch`: what is told, and what is done offline."""

import json

import pytest
from huggingface_hub import constants

from controlnet.annotators.weights import WEIGHTS
from controlnet.checkpoints.model_table import CONTROLS, MODELS
from controlnet.cli.main import run


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub's, which cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("columns", [80, 120])
def test_every_name_is_listed_whole(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run(["models", "list"]) == 0
    text = capsys.readouterr().out
    assert [name for name in [*MODELS, *WEIGHTS] if f"  {name} " not in text] == []
    assert max(map(len, text.splitlines())) <= columns


def test_one_kind_is_listed_alone(capsys):
    assert run(["models", "list", "--kind", "base"]) == 0
    text = capsys.readouterr().out
    assert "sd15" in text
    assert "control_v11p_sd15_canny" not in text


def test_json_tells_repository_file_revision_hash_licence_condition_and_annotator(capsys):
    assert run(["models", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    pose = rows["control_v11p_sd15_openpose"]
    assert (pose["repository"], pose["file"]) == ("lllyasviel/ControlNet-v1-1", "control_v11p_sd15_openpose.pth")
    assert (pose["condition"], pose["annotator"], pose["licence"]) == ("pose", "openpose", "OpenRAIL")
    assert (pose["revision"], pose["size"]) == ("main", 1_445_235_707)
    assert pose["sha256"] == "db97becd92cd19aff71352a60e93c2508decba3dee64f01f686727b9b406a9dd"
    assert pose["cached"] is None
    assert rows["hed"]["kind"] == "annotator"


def test_what_is_in_the_cache_is_marked(cache, capsys):
    folder = cache / "models--thibaud--controlnet-sd21" / "snapshots" / "0123"
    folder.mkdir(parents=True)
    (folder.parent.parent / "refs").mkdir()
    (folder.parent.parent / "refs" / "main").write_text(folder.name)
    (folder / "control_v11p_sd21_color.safetensors").touch()
    assert run(["models", "list", "--kind", "control"]) == 0
    marked = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("*  control")]
    assert marked == ["control_v11p_sd21_color"]


def test_fetching_what_is_in_the_cache_prints_where_it_is(cache, capsys):
    model = CONTROLS["control_sd15_hed"]
    path = cache / "models--lllyasviel--ControlNet" / "snapshots" / model.revision / str(model.file)
    path.parent.mkdir(parents=True)
    path.touch()
    assert run(["models", "fetch", "control_sd15_hed"]) == 0
    assert capsys.readouterr().out == f"{path}\n"


def test_fetching_offline_is_exit_2_and_tells_of_each_what_to_do(capsys):
    assert run(["models", "fetch", "canny", "sdxl", "nonsense"]) == 2
    said = capsys.readouterr().err
    assert "hf download lllyasviel/ControlNet-v1-1 control_v11p_sd15_canny.pth --local-dir FOLDER" in said
    assert "hf download stabilityai/stable-diffusion-xl-base-1.0 --local-dir FOLDER" in said
    assert "no public model called 'nonsense'" in said


def test_a_condition_is_of_the_family_that_is_asked_for(capsys):
    assert run(["models", "fetch", "canny", "--family", "sdxl"]) == 2
    assert "xinsir/controlnet-canny-sdxl-1.0" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "repository"), [(["--annotator"], "Annotators"), ([], "ControlNet-v1-1")])
def test_a_word_that_means_a_control_and_an_annotator_is_the_control_unless_asked(options, repository, capsys):
    assert run(["models", "fetch", "hed", *options]) == 2
    assert f"lllyasviel/{repository}" in capsys.readouterr().err


def test_to_fetch_nothing_is_exit_2(capsys):
    assert run(["models", "fetch"]) == 2
    assert "controlnet models list" in capsys.readouterr().err
