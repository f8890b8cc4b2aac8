"""Every input format gives the same pairs, and tells all that is wrong with them at once."""

import csv
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Image

from controlnet.annotators.canny import Canny
from controlnet.annotators.hint_file import description
from controlnet.annotators.hint_file import encode as encode_hint
from controlnet.annotators.inpaint import Inpaint
from controlnet.data.check import check
from controlnet.data.circles import write_circles
from controlnet.data.formats.recognise import FORMATS, open_records
from controlnet.data.formats.records import Columns
from controlnet.data.formats.tars import Tars
from controlnet.data.pairs import Pairs
from controlnet.data.transform import Transform
from controlnet.errors import UserError
from controlnet.training.cache import fingerprint

COUNT = 6


@pytest.fixture(scope="module")
def circles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("circles")
    write_circles(folder, COUNT, size=32, processes=1)
    return folder


def prompts(circles: Path) -> list[str]:
    return [json.loads(line)["prompt"] for line in (circles / "prompt.json").read_text().splitlines()]


def as_folders(circles: Path, out: Path) -> str:
    for mine, theirs in (("images", "target"), ("conditioning_images", "source")):
        shutil.copytree(circles / theirs, out / mine / "deep")
    for number, prompt in enumerate(prompts(circles)):
        (out / "images" / "deep" / f"{number}.txt").write_text(f"{prompt}\n")
    return str(out)


def as_two_folders(circles: Path, out: Path) -> str:
    as_folders(circles, out)
    return f"{out / 'images'}::{out / 'conditioning_images'}"


def as_captions_apart(circles: Path, out: Path) -> str:
    as_folders(circles, out)
    (out / "captions").mkdir()
    shutil.copytree(out / "images" / "deep", out / "captions" / "deep", ignore=shutil.ignore_patterns("*.png"))
    for text in (out / "images").rglob("*.txt"):
        text.unlink()
    return str(out)


def rows(circles: Path) -> list[dict[str, str]]:
    return [
        {"image": f"target/{number}.png", "conditioning_image": f"source/{number}.png", "text": prompt}
        for number, prompt in enumerate(prompts(circles))
    ]


def as_jsonl(circles: Path, out: Path) -> str:
    shutil.copytree(circles, out)
    (out / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows(circles))))
    (out / "prompt.json").unlink()
    return str(out / "pairs.jsonl")


def as_csv(circles: Path, out: Path) -> str:
    shutil.copytree(circles, out)
    with (out / "pairs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "image", "conditioning_image"])
        writer.writeheader()
        writer.writerows(rows(circles))
    return str(out / "pairs.csv")


def as_image_folder(circles: Path, out: Path) -> str:
    shutil.copytree(circles, out / "train")
    (out / "train" / "prompt.json").unlink()
    lines = [{"file_name": row["image"], "conditioning_image_file_name": row["conditioning_image"], "text": row["text"]}
             for row in rows(circles)]  # fmt: skip
    (out / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(out)


def hub_rows(circles: Path) -> Dataset:
    columns = {name: [str(circles / row[name]) for row in rows(circles)] for name in ("image", "conditioning_image")}
    return (
        Dataset.from_dict({**columns, "text": prompts(circles)})
        .cast_column("image", Image())
        .cast_column("conditioning_image", Image())
    )


def as_saved(circles: Path, out: Path) -> str:
    hub_rows(circles).save_to_disk(out)
    return str(out)


def as_parquet(circles: Path, out: Path) -> str:
    (out / "data").mkdir(parents=True)
    cells = [
        {name: {"bytes": (circles / row[name]).read_bytes(), "path": None} for name in ("image", "conditioning_image")}
        | {"text": row["text"]}
        for row in rows(circles)
    ]
    features = hub_rows(circles).features
    Dataset.from_list(cells, features=features).to_parquet(out / "data" / "train-00000-of-00001.parquet")
    return str(out)


def as_tars(circles: Path, out: Path) -> str:
    out.mkdir(parents=True)
    for shard, numbers in enumerate((range(4), range(4, COUNT))):
        with tarfile.open(out / f"set-{shard:03d}.tar", "w") as tar:
            for number in numbers:
                add(tar, f"a/{number}.png", (circles / "target" / f"{number}.png").read_bytes())
                add(tar, f"a/{number}.hint.png", (circles / "source" / f"{number}.png").read_bytes())
                add(tar, f"a/{number}.txt", prompts(circles)[number].encode())
    return str(out)


def as_range_of_tars(circles: Path, out: Path) -> str:
    return as_tars(circles, out) + "/set-{000..001}.tar"


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


WAYS: list[Callable[[Path, Path], str]] = [
    as_folders,
    as_two_folders,
    as_captions_apart,
    as_jsonl,
    as_csv,
    as_image_folder,
    as_saved,
    as_parquet,
    as_tars,
    as_range_of_tars,
]


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.mark.parametrize("way", WAYS)
def test_the_pairs_are_those_of_the_originals_folder(way: Any, circles: Path, tmp_path: Path) -> None:
    expected, found = Pairs(circles), Pairs(way(circles, tmp_path / "data"))
    assert len(found) == COUNT
    for index in (0, 4, -1, 2):  # in any order
        for name in ("jpg", "hint"):
            assert np.array_equal(found[index][name], expected[index][name])  # type: ignore[literal-required]
        assert found[index]["txt"] == found.prompt(index) == expected[index]["txt"]
    assert fingerprint(found) == fingerprint(expected), "the same pairs are the same data, whatever their format"


@pytest.mark.parametrize("way", WAYS)
def test_the_check_of_a_clean_set_has_nothing_to_report(way: Any, circles: Path, tmp_path: Path) -> None:
    report = check(way(circles, tmp_path / "data"))
    assert (report.pairs, report.errors, report.warnings) == (COUNT, (), ())


def test_every_format_of_the_table_is_tried(circles: Path, tmp_path: Path) -> None:
    kinds = {type(open_records(way(circles, tmp_path / way.__name__))).__name__ for way in WAYS}
    kinds.add(type(open_records(circles)).__name__)
    assert kinds == {home.split(":")[1] for home in FORMATS.values()}


def test_columns_of_other_names_are_named(circles: Path, tmp_path: Path) -> None:
    place = as_jsonl(circles, tmp_path / "data")
    text = Path(place).read_text().replace('"image"', '"photo"').replace('"text"', '"words"')
    Path(place).write_text(text.replace('"conditioning_image"', '"edges"'))
    with pytest.raises(UserError, match=r"photo, edges, words.*--image-column"):
        Pairs(place)
    assert len(Pairs(place, Columns("photo", "edges", "words"))) == COUNT


def test_all_names_without_a_partner_are_told_at_once(circles: Path, tmp_path: Path) -> None:
    place = as_folders(circles, tmp_path / "data")
    images, hints = (tmp_path / "data" / name / "deep" for name in ("images", "conditioning_images"))
    (hints / "1.png").unlink()
    (images / "2.txt").unlink()
    (images / "3.png").unlink()
    shutil.copy(images / "4.png", images / "4.jpg")
    with pytest.raises(UserError) as caught:
        Pairs(place)
    told = str(caught.value)
    for expected in ("1.png has no hint", "2.png has no prompt", "3.png has no picture", "several pictures have this"):
        assert expected in told
    assert len(check(place).errors) == 5  # and the hint 4 has no picture either


def test_defects_within_a_tar_are_told_with_its_name(circles: Path, tmp_path: Path) -> None:
    place = tmp_path / "bad.tar"
    with tarfile.open(place, "w") as tar:
        add(tar, "0.png", (circles / "target" / "0.png").read_bytes())
        add(tar, "0.hint.png", b"no picture")
        add(tar, "0.txt", b"a ring")
        add(tar, "1.png", (circles / "target" / "1.png").read_bytes())
        add(tar, "1.hint.png", (circles / "source" / "1.png").read_bytes())
    errors = [str(error) for error in check(place).errors]
    assert len(errors) == 2
    assert "bad.tar/0: 0.hint.png: no picture that can be read" in errors[0]
    assert "bad.tar/1: lacks a prompt; it has hint.png, png" in errors[1]


def test_a_compressed_tar_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w:gz") as tar:
        add(tar, "0.txt", b"a")
    with pytest.raises(UserError, match="without compression.*unpack"):
        Pairs(tmp_path / "x.tar")


def test_missing_tars_of_a_range_are_named(circles: Path, tmp_path: Path) -> None:
    place = as_tars(circles, tmp_path / "data")
    with pytest.raises(UserError, match=r"set-002\.tar, .*set-003\.tar"):
        Pairs(place + "/set-{000..003}.tar")


def test_a_tars_prompt_may_stand_in_its_json(circles: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "0.jpg.png", b"")  # no part of a pair
        add(tar, "1.png", (circles / "target" / "1.png").read_bytes())
        add(tar, "1.conditioning_image.png", (circles / "source" / "1.png").read_bytes())
        add(tar, "1.json", json.dumps({"caption": "a ring", "width": 3}).encode())
    records = Tars(str(tmp_path / "x.tar"))
    assert [records.prompt(index) for index in range(len(records))] == ["a ring"]


@pytest.mark.parametrize("path", ["../0.png", "..\\0.png", "a/../../0.png"])
def test_a_table_does_not_lead_out_of_its_folder(circles: Path, tmp_path: Path, path: str) -> None:
    place = Path(as_jsonl(circles, tmp_path / "data"))
    place.write_text(json.dumps({"image": path, "conditioning_image": "source/0.png", "text": "a"}))
    with pytest.raises(UserError, match="line 1: .*leaves the folder"):
        Pairs(place)


def test_hints_are_annotated_from_the_cropped_picture(circles: Path, tmp_path: Path) -> None:
    shutil.copytree(circles / "target", tmp_path / "pictures")
    for number in range(COUNT):
        (tmp_path / "pictures" / f"{number}.txt").write_text("a disc")
    with pytest.raises(UserError, match="no hints.*--annotate canny"):
        Pairs(tmp_path / "pictures")
    assert [str(warning.message) for warning in check(tmp_path / "pictures").warnings] == [
        "has no hints; train with --annotate, or make them"
    ]
    transform = Transform(16, random_crop=True, random_flip=True)
    pairs = Pairs(tmp_path / "pictures", transform=transform, annotate="canny")
    assert pairs.meaning["condition"] == "canny"
    for key in ((0, 1), (5, 2)):
        target, hint, _ = pairs.raw(3, *key)
        assert target.shape == hint.shape == (16, 16, 3)
        assert np.array_equal(hint, Canny(detect_resolution=0)(target))


def test_an_annotator_with_a_network_is_refused_with_the_command_that_makes_hints_once(circles: Path) -> None:
    with pytest.raises(UserError, match="--annotate hed: .*controlnet annotate hed"):
        Pairs(circles, annotate="hed")


def test_hints_for_inpainting_are_known_by_what_they_say_and_none_may_be_another(circles: Path, tmp_path: Path) -> None:
    assert not Pairs(circles).is_inpaint
    data, annotator = tmp_path / "data", Inpaint(share=0.2)
    shutil.copytree(circles, data)
    for number in range(COUNT):
        hint = encode_hint(annotator(data / "target" / f"{number}.png"), json.dumps(description(annotator)))
        (data / "source" / f"{number}.png").write_bytes(hint)
    pairs = Pairs(data)
    assert pairs.is_inpaint
    assert pairs.raw(0)[1].shape == (32, 32, 4)
    assert pairs[0]["hint"].min() == -1
    assert ((pairs[0]["hint"] == -1).all(axis=2) | (pairs[0]["hint"] >= 0).all(axis=2)).all()
    assert check(data).errors == ()
    shutil.copy(circles / "source" / "3.png", data / "source" / "3.png")
    (error,) = check(data).errors
    assert "source/3.png is not for inpainting, as the first hint is" in str(error)


def test_the_first_pairs_alone_are_taken_where_asked(circles: Path) -> None:
    pairs = Pairs(circles, Columns(length=4))
    assert len(pairs) == len(list(pairs)) == 4
    assert pairs[-1]["txt"] == prompts(circles)[3]


def test_what_is_not_there_is_told_with_all_formats(tmp_path: Path) -> None:
    os.makedirs(tmp_path / "empty")
    for place in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(UserError) as caught:
            Pairs(place)
        for name in ("prompt.json", "conditioning_images", ".jsonl", "key.hint.png", "Parquet"):
            assert name in str(caught.value)
