"""Where rows begin: every combination of words once, every picture of a folder."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build import made
from controlnet.build.sources import Files, Prompts
from controlnet.errors import UserError

ROOMS, STYLES = ["bathroom", "kitchen", "hall"], ["art deco", "gothic", "rustic", "zen"]
TEMPLATES = ("simple {room}, {style} interior design", "{style} {room}")


def texts(**options):
    source = Prompts(**{"templates": TEMPLATES, "words": {"room": ROOMS, "style": STYLES}} | options)
    return [row.values["prompt"] for row in source.rows()]


def test_every_combination_of_every_template_comes_once():
    expected = {template.format(room=room, style=style) for template in TEMPLATES for room in ROOMS for style in STYLES}
    assert len(texts()) == len(expected) == 24
    assert set(texts()) == expected


def test_the_seed_decides_the_order_and_the_first_are_not_all_of_one_room():
    assert texts() == texts()
    assert texts(seed=1) != texts()
    assert set(texts(seed=1)) == set(texts())
    rooms = Counter(next(room for room in ROOMS if room in text) for text in texts(limit=12))
    assert len(rooms) == 3


def test_a_text_that_two_templates_give_is_one_row():
    assert len(texts(templates=("{room}", "{room}"))) == 3


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_counts_multiply(sizes):
    words = {f"w{number}": [f"{number}{each}" for each in range(size)] for number, size in enumerate(sizes)}
    template = " ".join(f"{{{name}}}" for name in words)
    found = texts(templates=(template,), words=words)
    product = 1
    for size in sizes:
        product *= size
    assert len(set(found)) == len(found) == product


def test_words_that_are_missing_or_no_texts_are_told_at_once():
    with pytest.raises(UserError) as caught:
        texts(templates=("{room} {colour}",), words={"room": "bathroom"})
    assert "words.room is 'bathroom'; expected a list of texts" in str(caught.value)
    assert "{colour} has no words; add words.colour = [...]" in str(caught.value)


def test_a_folder_gives_its_pictures_with_what_is_known_of_them(tmp_path):
    rows = list(Files(path=made.folder(tmp_path / "in", 3), license="CC0").rows())
    assert [row.values["caption"] for row in rows] == ["shape 0", "shape 1", "shape 2"]
    assert {(row.values["width"], row.values["format"], row.values["license"]) for row in rows} == {(64, "png", "CC0")}
    assert rows[0].files["image"] == made.picture(0)


def test_pictures_without_a_caption_may_be_given_one(tmp_path):
    (made.folder(tmp_path / "in", 3) / "001.txt").unlink()
    rows = Files(path=tmp_path / "in", caption="a shape").rows()
    assert [row.text for row in rows] == ["shape 0", "a shape", "shape 2"]


def test_what_is_no_picture_is_a_row_that_says_so(tmp_path):
    made.folder(tmp_path / "in", 2)
    (tmp_path / "in/001.png").write_bytes(made.picture(1)[:200])
    (tmp_path / "in/002.jpg").write_text("<html>not found</html>")
    good, torn, page = Files(path=tmp_path / "in").rows()
    assert (good.status, torn.status, page.status) == ("ok", "failed", "failed")
    assert (torn.reason, page.reason) == ("broken picture", "no picture")
    assert "<html>" in page.detail
