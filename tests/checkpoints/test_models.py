"""The table of public models: what it says is consistent, and names resolve to the hub's cache or to a remedy."""

import re
from pathlib import Path

import pytest
from huggingface_hub import constants

from controlnet.annotators.table import ANNOTATORS
from controlnet.annotators.weights import WEIGHTS
from controlnet.checkpoints import models
from controlnet.checkpoints.control_conventions import with_convention
from controlnet.checkpoints.control_metadata import ControlMetadata
from controlnet.checkpoints.model_table import BASES, CONTROLS, MODELS, Model
from controlnet.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def keep(cache: Path, model: Model, *names: str) -> Path:
    """Files of a repository as the hub's library keeps them; returns their folder."""
    repository = cache / f"models--{model.repository.replace('/', '--')}"
    commit = COMMIT if model.revision == "main" else model.revision
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    folder = repository / "snapshots" / commit
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("weights")
    return folder


def test_every_hash_is_a_sha256_and_no_two_files_have_the_same():
    hashes = [model.sha256 for model in MODELS.values() if model.sha256]
    assert all(re.fullmatch("[0-9a-f]{64}", text) for text in hashes)
    assert len(set(hashes)) == len(hashes)


def test_every_revision_is_main_or_a_commit():
    assert all(re.fullmatch("main|[0-9a-f]{40}", model.revision) for model in MODELS.values())


def test_a_hash_or_a_size_is_that_of_a_single_file():
    assert [name for name, model in MODELS.items() if (model.sha256 or model.size) and not model.file] == []


def test_every_file_is_called_by_its_stem_and_every_folder_of_a_control_by_its_hub_id():
    for name, model in MODELS.items():
        assert not model.file or Path(model.file).stem == name
    assert all(model.file or name == model.repository for name, model in CONTROLS.items())


def test_every_annotator_of_a_control_exists():
    assert {model.annotator for model in CONTROLS.values()} - ANNOTATORS.keys() - {None} == set()


@pytest.mark.parametrize("name", CONTROLS)
def test_the_condition_of_a_control_is_the_one_that_its_path_in_the_cache_tells(cache, name):
    model = CONTROLS[name]
    folder = keep(cache, model)
    unknown = ControlMetadata("unknown", model.family, None, None, (320, 640, 1280, 1280))
    assert with_convention(unknown, folder / (model.file or "")).condition == model.condition


def test_a_base_by_name_is_a_hub_id():
    assert models.resolve_base("sd15") == "stable-diffusion-v1-5/stable-diffusion-v1-5"


def test_a_single_file_base_by_name_is_its_file_in_the_cache(cache):
    folder = keep(cache, BASES["v1-5-pruned"], "v1-5-pruned.ckpt")
    assert models.resolve_base("v1-5-pruned") == str(folder / "v1-5-pruned.ckpt")


@pytest.mark.parametrize("name", ["embedded", "canny", "./sd15", "nonsense"])
def test_what_the_table_does_not_have_is_no_base(name):
    assert models.resolve_base(name) is None


def test_a_condition_is_the_control_of_its_family_that_is_in_the_cache(cache):
    first = keep(cache, CONTROLS["control_sd15_canny"], "models/control_sd15_canny.pth")
    assert models.resolve_control("canny", "sd1") == first / "models/control_sd15_canny.pth"
    with pytest.raises(UserError, match="control_v11p_sd21_canny"):
        models.resolve_control("canny", "sd2")


def test_a_control_in_diffusers_layout_is_its_folder_whatever_its_weights_are_called(cache):
    name = "thibaud/controlnet-sd21-canny-diffusers"
    folder = keep(cache, CONTROLS[name], "config.json", "diffusion_pytorch_model.bin")
    assert models.resolve_control(name) == folder


def test_a_folder_without_weights_is_not_taken(cache):
    name = "diffusers/controlnet-canny-sdxl-1.0"
    keep(cache, CONTROLS[name], "config.json")
    with pytest.raises(UserError, match="not in the hub's cache"):
        models.resolve_control(name)


def test_a_revision_other_than_the_pinned_one_is_taken_too(cache):
    model = CONTROLS["control_sd15_hed"]
    folder = keep(cache, model, "models/control_sd15_hed.pth")
    folder.rename(folder.with_name(COMMIT))
    (folder.parent.parent / "refs" / "main").write_text(COMMIT)
    assert models.cached(model) == folder.with_name(COMMIT) / "models/control_sd15_hed.pth"


@pytest.mark.parametrize("name", ["circle", "./canny", "run", "sd15"])
def test_what_the_table_does_not_have_is_no_control(name):
    assert models.resolve_control(name) is None


def test_a_control_that_is_not_in_the_cache_is_refused_with_what_to_fetch_and_what_to_put_where(cache):
    with pytest.raises(UserError) as error:
        models.resolve_control("canny", "sd1")
    message = str(error.value)
    assert "`controlnet models fetch canny`" in message
    assert "hf download lllyasviel/ControlNet-v1-1 control_v11p_sd15_canny.pth --local-dir FOLDER" in message
    assert "give FOLDER/control_v11p_sd15_canny.pth as --control" in message
    assert str(cache) in message


@pytest.mark.parametrize("name", ["control_v11p_sd15_canny", "diffusers/controlnet-canny-sdxl-1.0"])
def test_to_fetch_offline_is_refused_with_the_remedy(cache, name):
    with pytest.raises(UserError, match=r"the hub cannot be reached.*on another machine run `hf download"):
        models.fetch(MODELS[name])


def test_to_fetch_a_base_offline_is_refused_with_the_remedy(cache):
    with pytest.raises(UserError, match="hf download stabilityai/stable-diffusion-xl-base-1.0"):
        models.fetch(MODELS["sdxl"])


def test_what_is_in_the_cache_is_not_downloaded_again(cache):
    folder = keep(cache, CONTROLS["control_sd15_hed"], "models/control_sd15_hed.pth")
    assert models.fetch(CONTROLS["control_sd15_hed"]) == folder / "models/control_sd15_hed.pth"


def test_a_file_that_is_not_the_published_one_is_refused(cache):
    keep(cache, CONTROLS["control_sd15_canny"], "models/control_sd15_canny.pth")
    with pytest.raises(UserError, match="expected 4de384b16bc2"):
        models.fetch(CONTROLS["control_sd15_canny"])


def test_a_name_that_is_nearly_one_is_recognised():
    with pytest.raises(UserError, match="did you mean canny?"):
        models.find_model("cany")


def test_the_annotators_weights_have_names_that_no_model_has():
    assert WEIGHTS.keys() & MODELS.keys() == set()


def test_the_digest_reports_every_byte(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc" * 3_000_000)
    steps: list[tuple[int, int]] = []
    assert (
        models.sha256(path, lambda *step: steps.append(step))
        == "a889aaea4dd43c3ef1b6f125177026b6445c8374d9cd585dd0c52bb020bb8cc5"
    )
    assert steps[-1] == (9_000_000, 9_000_000)
    assert steps == sorted(steps)
