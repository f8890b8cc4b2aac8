import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from controlnet.data import Pairs
from controlnet.data.circles import write_circles
from controlnet.errors import UserError
from controlnet.images import PictureError, decode, encode_png


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "circles"
    write_circles(folder, count=20, size=32, processes=1)
    return folder


@pytest.fixture(scope="module")
def pairs(folder: Path) -> Pairs:
    return Pairs(folder)


def data_set(folder: Path, *lines: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, side in (("big.png", 16), ("small.png", 8)):
        encode_png(np.full((side, side, 3), 100, np.uint8), folder / name)
    (folder / "prompt.json").write_text("\n".join(lines), encoding="utf-8")
    return folder


def row(source: str = "big.png", target: str = "big.png", prompt: str = "a") -> str:
    return json.dumps({"source": source, "target": target, "prompt": prompt})


def test_a_pair_is_what_the_originals_data_sets_give(pairs: Pairs, folder: Path) -> None:
    pair = pairs[12]
    assert pair["txt"] == json.loads((folder / "prompt.json").read_text().splitlines()[12])["prompt"]
    for key, low, name in (("jpg", -1, "target"), ("hint", 0, "source")):
        pixels = pair[key]
        assert (pixels.shape, pixels.dtype) == ((32, 32, 3), np.float32)
        on_disk = decode(folder / name / "12.png").astype(np.float32) / 255
        assert np.allclose(pixels, on_disk * (1 - low) + low, atol=1e-6)
    assert pair["hint"].min() == 0
    assert pair["hint"].max() > 0.9


def test_raw_is_the_pair_before_it_is_normalised(pairs: Pairs) -> None:
    target, hint, prompt = pairs.raw(5)
    assert target.dtype == hint.dtype == np.uint8
    assert np.allclose(target / 127.5 - 1, pairs[5]["jpg"], atol=1e-6)
    assert np.allclose(hint / 255, pairs[5]["hint"], atol=1e-6)
    assert prompt == pairs[5]["txt"] == pairs.prompt(5)


def test_it_is_indexed_as_an_array_is(pairs: Pairs) -> None:
    texts = [pair["txt"] for pair in pairs]
    assert len(pairs) == len(texts) == 20
    assert pairs[-1]["txt"] == pairs[np.int64(19)]["txt"] == texts[19]
    assert [pair["txt"] for pair in pairs[2:9:3]] == texts[2:9:3]
    assert [pair["txt"] for pair in pairs[-3:]] == texts[-3:]
    assert pairs[50:] == []


@pytest.mark.parametrize("index", [20, -21, 10**9])
def test_an_index_outside_is_told_with_its_value(pairs: Pairs, index: int) -> None:
    with pytest.raises(IndexError, match=f"no pair {index}.*20 pairs"):
        pairs[index]


def test_a_worker_gets_the_same_pairs(pairs: Pairs) -> None:
    assert np.array_equal(pickle.loads(pickle.dumps(pairs))[3]["jpg"], pairs[3]["jpg"])


def test_fill50k_as_unzipped_loads_from_its_folder_and_from_the_one_above(tmp_path: Path) -> None:
    line = row("source/0.png", "target/0.png", "pale golden rod circle with old lace background")
    inner = data_set(tmp_path / "fill50k", line)
    for name in ("source/0.png", "target/0.png"):
        encode_png(np.zeros((16, 16, 3), np.uint8), inner / name)
    for folder in (inner, tmp_path, str(tmp_path)):
        assert Pairs(folder)[0]["txt"] == "pale golden rod circle with old lace background"


def test_a_byte_order_mark_windows_line_ends_and_blank_last_lines_do_no_harm(tmp_path: Path) -> None:
    folder = data_set(tmp_path)
    (folder / "prompt.json").write_bytes(b"\xef\xbb\xbf" + f"{row()}\r\n{row(prompt='ü')}\r\n\r\n\n".encode())
    assert [pair["txt"] for pair in Pairs(folder)] == ["a", "ü"]


def test_a_folder_that_is_no_data_set_is_told_what_one_looks_like(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder, found in (
        (tmp_path, "has no prompt.json"),
        (tmp_path / "gone", "not there"),
        (tmp_path / "file", "a file"),
    ):
        with pytest.raises(UserError, match=found) as error:
            Pairs(folder)
        assert '{"source": "source/0.png"' in str(error.value)


def test_of_several_data_sets_in_a_folder_none_is_guessed(tmp_path: Path) -> None:
    data_set(tmp_path / "first", row())
    data_set(tmp_path / "second", row())
    with pytest.raises(UserError, match="first, second"):
        Pairs(tmp_path)


def test_an_empty_manifest_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="empty"):
        Pairs(data_set(tmp_path, "", ""))


def test_bad_lines_are_told_together_with_their_numbers(tmp_path: Path) -> None:
    folder = data_set(
        tmp_path, row(), "{", "[1]", "", '{"source": "a"}', '{"source": 1, "target": "b", "prompt": null}'
    )
    with pytest.raises(UserError) as error:
        Pairs(folder)
    expected = (
        "line 2: no JSON",
        "line 3: no JSON object but a list",
        "line 4: blank",
        "line 5: lacks target, prompt",
        "line 6: source is 1, prompt is None",
    )
    assert [text for text in expected if text not in str(error.value)] == []


@pytest.mark.parametrize(
    "path", ["../big.png", "a/../../big.png", "/etc/passwd", "C:\\big.png", "..\\big.png", "\\x", ""]
)
def test_a_path_out_of_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match=r"line 1: .*leaves the folder"):
        Pairs(data_set(tmp_path / "inner", row(source=path)))


def test_a_hint_of_another_size_is_told_with_both_sizes_and_the_line(tmp_path: Path) -> None:
    pairs = Pairs(data_set(tmp_path, row(), row(source="small.png")))
    with pytest.raises(UserError, match=r"line 2: the hint small\.png has 8x8 pixels, the picture big\.png 16x16"):
        pairs[1]


@pytest.mark.parametrize("name", ["gone.png", "broken.png"])
def test_a_picture_that_cannot_be_read_is_told_when_it_is_asked_for(tmp_path: Path, name: str) -> None:
    folder = data_set(tmp_path, row(), row(target=name))
    (folder / "broken.png").write_bytes((folder / "big.png").read_bytes()[:60])
    pairs = Pairs(folder)
    assert pairs[0]["txt"] == "a"
    with pytest.raises(PictureError, match=name):
        pairs[1]
