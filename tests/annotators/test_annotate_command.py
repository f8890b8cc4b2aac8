"""`controlnet annotate`: any place of pictures in, hints that say what they mean out, again and again."""

import csv
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

import tiny_networks
from controlnet.annotators.canny import Canny
from controlnet.annotators.hint_file import read_description
from controlnet.annotators.inpaint import Inpaint
from controlnet.annotators.resolution import to_resolution, to_size
from controlnet.annotators.seg import Segmentation
from controlnet.annotators.tile import Nothing
from controlnet.cli.main import run
from controlnet.data.annotate import Job, annotate_all
from controlnet.data.check import check
from controlnet.data.circles import write_circles
from controlnet.data.pairs import Pairs
from controlnet.data.pictures import Picture, find_pictures
from controlnet.errors import UserError
from controlnet.images import decode, decode_with_alpha, encode_png
from parity.annotators import original

PHOTO = original("resize.256")
SMALL = ("--detect-resolution", "128")  # fast


@pytest.fixture
def folder(tmp_path):
    """Three pictures, one of them in a folder within, with a prompt each."""
    root = tmp_path / "pictures"
    for number, name in enumerate(("a.png", "b.png", "deep/er/c.png")):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        encode_png(np.roll(PHOTO[: 90 + number], 10 * number, axis=0), path)
        path.with_suffix(".txt").write_text(f"photo {path.stem}\n")
    return root


def annotate(*words: object) -> int:
    return run(["annotate", *map(str, words)])


def pngs(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def test_one_picture_becomes_one_png_of_its_own_size_with_its_meaning(folder, tmp_path):
    assert annotate("canny", folder / "a.png", tmp_path / "hint.png", "--low", 50, *SMALL) == 0
    expected = to_size(Canny(low=50, detect_resolution=128)(folder / "a.png"), (256, 90), is_smooth=False)
    assert np.array_equal(decode(tmp_path / "hint.png"), expected)
    said = read_description(tmp_path / "hint.png")
    assert said["condition"] == "canny"
    assert said["options"] == {"detect_resolution": 128, "low": 50, "high": 200}
    assert (said["polarity"], said["channel_order"]) == ("light on dark", "RGB")


def test_a_hint_may_keep_the_size_at_which_it_was_detected(folder, tmp_path):
    assert annotate("canny", folder / "a.png", tmp_path / "hint.png", "--size", "detected", *SMALL) == 0
    assert np.array_equal(decode(tmp_path / "hint.png"), Canny(detect_resolution=128)(folder / "a.png"))


def test_a_folder_keeps_its_layout(folder, tmp_path):
    assert annotate("canny", folder, tmp_path / "hints", *SMALL) == 0
    assert pngs(tmp_path / "hints") == pngs(folder)
    assert not (tmp_path / "hints/failed.csv").exists()


def test_pictures_that_differ_in_their_suffix_alone_both_get_a_hint(folder, tmp_path):
    Image.fromarray(PHOTO).save(folder / "a.jpg")
    assert annotate("canny", folder, tmp_path / "hints", *SMALL) == 0
    assert pngs(tmp_path / "hints") == ["a.jpg.png", "a.png.png", "b.png", "deep/er/c.png"]


def test_hints_within_the_folder_are_not_annotated_again(folder):
    for _ in range(2):
        assert annotate("canny", folder, folder / "hints", *SMALL) == 0
    assert len(pngs(folder / "hints")) == 3


def test_a_glob_finds_what_matches_it(folder, tmp_path):
    assert annotate("grey", folder / "**/[bc].png", tmp_path / "hints") == 0
    assert pngs(tmp_path / "hints") == ["b.png", "deep/er/c.png"]


def test_the_frames_of_a_video_are_annotated_in_order(tmp_path):
    video = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for level in (50, 150, 250):
        video.write(np.full((48, 64, 3), level, np.uint8))
    video.release()
    assert annotate("grey", tmp_path / "v.avi", tmp_path / "hints", "--by", "intensity") == 0
    assert pngs(tmp_path / "hints") == ["000000.png", "000001.png", "000002.png"]
    levels = [decode(path).mean() for path in sorted((tmp_path / "hints").glob("*.png"))]
    assert levels == pytest.approx([50, 150, 250], abs=3)
    assert_table_refused(tmp_path / "v.avi", "a video: one prompt is for all its frames", tmp_path)


def test_a_data_set_of_ours_is_annotated_anew_with_its_prompts(tmp_path):
    write_circles(tmp_path / "circles", count=3, size=64)
    assert annotate("canny", tmp_path / "circles", tmp_path / "pairs", "--pairs", *SMALL) == 0
    circles, pairs = Pairs(tmp_path / "circles"), Pairs(tmp_path / "pairs")
    assert [pairs.prompt(index) for index in range(3)] == [circles.prompt(index) for index in range(3)]
    assert np.array_equal(pairs.raw(2)[0], circles.raw(2)[0])
    assert not np.array_equal(pairs.raw(2)[1], circles.raw(2)[1])
    assert_table_refused(tmp_path / "circles", "whose prompts stand in its prompt.json", tmp_path)


def test_a_data_set_in_parquet_gives_its_pictures_and_a_column_its_prompts(tmp_path, folder):
    from datasets import Dataset, Features, Image, Value

    rows = {"photo": [str(path) for path in sorted(folder.rglob("*.png"))], "words": ["x", "y", "z"]}
    table = Dataset.from_dict(rows, features=Features(photo=Image(), words=Value("string")))
    (tmp_path / "table").mkdir()
    table.to_parquet(tmp_path / "table/train.parquet")
    assert annotate("canny", tmp_path / "table", tmp_path / "pairs", "--pairs", "--column", "words", *SMALL) == 0
    pairs = Pairs(tmp_path / "pairs")
    assert [pairs.prompt(index) for index in range(3)] == ["x", "y", "z"]
    assert np.array_equal(pairs.raw(0)[0], decode(folder / "a.png"))
    assert_table_refused(tmp_path / "table", "whose prompts stand in a column", tmp_path)


def assert_table_refused(place, reason, tmp_path):
    """Where nothing would read a table of prompts, giving one is an error."""
    with pytest.raises(UserError, match=reason):
        find_pictures(str(place), tmp_path / "out", prompts=tmp_path / "prompts.csv")


@pytest.mark.parametrize("size", ["picture", "detected"])
def test_pairs_are_a_folder_to_train_on(folder, tmp_path, size):
    assert annotate("canny", folder, tmp_path / "pairs", "--pairs", "--size", size, *SMALL) == 0
    report = check(tmp_path / "pairs")
    assert (report.pairs, report.errors) == (3, ())
    pairs = Pairs(tmp_path / "pairs")
    target, hint, prompt = pairs.raw(2)
    picture = decode(folder / "deep/er/c.png")
    assert prompt == "photo c"
    assert np.array_equal(target, picture if size == "picture" else to_resolution(picture, 128))
    if size == "detected":
        assert np.array_equal(hint, Canny(detect_resolution=128)(picture))


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_table_of_prompts_goes_before_the_files_beside_the_pictures(folder, tmp_path, form):
    rows = {"jsonl": '{"file_name": "deep/er/c.png", "text": "told"}\n', "csv": "file_name,text\ndeep/er/c.png,told\n"}
    (folder / f"metadata.{form}").write_text(rows[form])
    assert annotate("none", folder, tmp_path / "pairs", "--pairs") == 0
    assert [row.prompt for row in Pairs(tmp_path / "pairs").rows] == ["photo a", "photo b", "told"]


def test_pictures_without_a_prompt_are_no_pairs_unless_one_is_given_for_all(folder, tmp_path):
    (folder / "b.txt").unlink()
    assert annotate("none", folder, tmp_path / "some", "--pairs") == 1
    assert [row["picture"] for row in failed(tmp_path / "some")] == [str(folder / "b.png")]
    assert annotate("none", folder, tmp_path / "all", "--pairs", "--prompt", "a photo") == 0
    assert [row.prompt for row in Pairs(tmp_path / "all").rows] == ["photo a", "a photo", "photo c"]


def failed(folder) -> list[dict[str, str]]:
    with (folder / "failed.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_bad_file_is_named_counted_and_skipped_and_tried_again(folder, tmp_path, capsys):
    good = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(good[:500])
    (folder / "old.gif").write_bytes(b"GIF89a")
    assert annotate("canny", folder, tmp_path / "hints", *SMALL) == 1
    assert [row["picture"] for row in failed(tmp_path / "hints")] == [str(folder / "b.png"), str(folder / "old.gif")]
    assert all(row["reason"].startswith(row["picture"]) for row in failed(tmp_path / "hints"))
    printed = capsys.readouterr()
    assert "2 hints made, 0 kept, 2 failed" in printed.out
    assert "2 without a hint" in printed.err

    (folder / "b.png").write_bytes(good)
    (folder / "old.gif").unlink()
    assert annotate("canny", folder, tmp_path / "hints", *SMALL) == 0
    assert "1 hints made, 2 kept, 0 failed" in capsys.readouterr().out
    assert not (tmp_path / "hints/failed.csv").exists()


def test_what_is_there_is_kept_and_what_was_cut_off_is_made_again(folder, tmp_path):
    hints = tmp_path / "hints"
    annotate("canny", folder, hints, "--pairs", *SMALL)
    before = {path: path.read_bytes() for path in hints.rglob("*.*")}
    kept = (hints / "source/a.png").stat().st_mtime_ns
    (hints / "source/b.png").write_bytes(before[hints / "source/b.png"][:-5])
    (hints / "source/deep/er/c.png").unlink()
    (hints / "source/.b.0123abcd.tmp.png").touch()
    assert annotate("canny", folder, hints, "--pairs", *SMALL) == 0
    assert {path: path.read_bytes() for path in hints.rglob("*.*")} == before
    assert (hints / "source/a.png").stat().st_mtime_ns == kept


def test_a_folder_begun_with_other_settings_or_of_other_content_is_left_alone(folder, tmp_path, capsys):
    annotate("canny", folder, tmp_path / "hints", *SMALL)
    before = (tmp_path / "hints/a.png").read_bytes()
    assert annotate("canny", folder, tmp_path / "hints", "--low", 50, *SMALL) == 2
    assert "low 100, now 50 is asked for" in capsys.readouterr().err
    assert (tmp_path / "hints/a.png").read_bytes() == before
    (tmp_path / "photos").mkdir()
    encode_png(PHOTO, tmp_path / "photos/a.png")
    assert annotate("canny", folder, tmp_path / "photos") == 2
    assert "did not write" in capsys.readouterr().err
    assert np.array_equal(decode(tmp_path / "photos/a.png"), PHOTO)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("cany", "{folder}", "{out}"), "did you mean canny"),
        (("canny", "{folder}/nothing", "{out}"), "is not there; expected a picture, a video, a folder"),
        (("canny", "{folder}/*.jpg", "{out}"), "no picture matches"),
        (("canny", "{folder}/deep", "{folder}/deep"), "written over the pictures"),
        (("canny", "{folder}/a.png", "{out}.jpg"), "a name that ends in .png"),
        (("canny", "{folder}", "{out}", "--low", "0"), "low is 0; expected a whole number from 1 to 255"),
        (("canny", "{folder}", "{out}", "--workers", "0"), "--workers 0; expected at least 1"),
        (("canny", "{folder}", "{out}", "--prompts", "{folder}/a.png"), "cannot be read as JSON lines or CSV"),
        (("hed", "{folder}/a.png", "{out}.png"), "hf download lllyasviel/Annotators ControlNetHED.pth"),
        (("canny", "nobody/nothing", "{out}"), "data set nobody/nothing: cannot be opened"),
    ],
)
def test_what_cannot_be_done_as_asked_is_exit_2_and_writes_nothing(folder, tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    before = sorted(folder.rglob("*"))
    assert annotate(*(word.format(folder=folder, out=tmp_path / "out") for word in words)) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert sorted(folder.rglob("*")) == before
    assert not (tmp_path / "out").exists()


def test_a_preview_shows_pictures_beside_their_hints(folder, tmp_path):
    annotate("canny", folder, tmp_path / "hints", "--preview", *SMALL)
    sheet = decode(tmp_path / "hints/preview.png")
    assert sheet.shape[0] > 3 * 90
    assert sheet.shape[1] > 2 * 256
    annotate("canny", folder / "a.png", tmp_path / "hint.png", "--preview", *SMALL)
    assert decode(tmp_path / "hint.preview.png").shape[1] > 2 * 256


def test_the_transparency_of_an_inpainting_hint_survives_on_disk(folder, tmp_path):
    annotate("inpaint", folder / "a.png", tmp_path / "hint.png")
    assert np.array_equal(decode_with_alpha(tmp_path / "hint.png"), Inpaint()(folder / "a.png"))


def test_colours_survive_on_disk_exactly(folder, tmp_path):
    annotate("none", folder / "a.png", tmp_path / "hint.png")
    assert np.array_equal(decode(tmp_path / "hint.png"), decode(folder / "a.png"))


def test_several_processes_write_the_same_hints(folder, tmp_path):
    for processes in (1, 2):
        annotate("canny", folder, tmp_path / str(processes), "--workers", processes, *SMALL)
    for name in pngs(folder):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_a_network_sees_pictures_in_batches_and_what_it_finds_beyond_the_hints_is_kept(folder, tmp_path):
    tiny_networks.save("upernet", tmp_path / "weights")
    options = ("--weights-dir", tmp_path / "weights", "--device", "cpu", "--batch-size", 2, "--size", "detected")
    assert annotate("seg", folder, tmp_path / "hints", *options, *SMALL) == 0
    network = Segmentation(weights_dir=tmp_path / "weights", device="cpu", detect_resolution=128)
    for name, (hint, classes) in zip(pngs(folder), network.batch_detailed(sorted(folder.rglob("*.png"))), strict=True):
        assert np.array_equal(decode(tmp_path / "hints" / name), hint)
        assert np.array_equal(decode(tmp_path / "hints/details" / name)[..., 0], classes)
    shutil.rmtree(tmp_path / "weights")
    (tmp_path / "weights").mkdir()
    assert annotate("seg", folder, tmp_path / "hints", *options, *SMALL) == 0  # nothing to do needs no network


def test_pictures_in_memory_are_taken_as_they_come(tmp_path):
    """A stream without an end is no reason to wait for it."""
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield Picture(str(len(taken)), PHOTO[: len(taken) + 1, :9])

    class Enough(Exception):
        pass

    def stop_at_20(picture, outcome):
        if picture.name == "20":
            raise Enough

    with pytest.raises(Enough):
        annotate_all(Job(Nothing(), tmp_path / "out"), endless(), workers=1, report=stop_at_20)
    assert len(taken) <= 32


def test_the_list_shows_every_condition_with_its_options(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert annotate("--list") == 0
    printed = capsys.readouterr().out
    for part in ("canny", "pose", "lineart_anime", "--low 100 (1 to 255)", "--strokes auto (auto, dark, light)"):
        assert part in printed


def test_the_help_of_a_condition_tells_its_options_with_their_ranges(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        annotate("canny", "--help")
    printed = capsys.readouterr().out
    assert "--low" in printed
    assert "From 1 to 255." in printed
    assert "--pairs" in printed


def test_canny_on_one_picture_takes_no_torch_and_less_than_a_second(folder, tmp_path):
    source = (
        "import sys; from controlnet.cli.main import run\n"
        f"assert run(['annotate', 'canny', {str(folder / 'a.png')!r}, {str(tmp_path / 'hint.png')!r}]) == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'datasets', 'scipy', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )

    def seconds() -> float:
        before = os.times()
        subprocess.run([sys.executable, "-c", source], check=True, capture_output=True)
        after = os.times()  # of the processor, so that a busy machine does not count
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(2)) < 1


def test_hints_above_the_pictures_folder_are_refused_by_what_is_there(folder, tmp_path, capsys):
    assert annotate("canny", folder, tmp_path) == 2
    assert "holds pictures, which this command did not write" in capsys.readouterr().err
