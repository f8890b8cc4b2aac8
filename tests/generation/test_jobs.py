"""Tables and folders of jobs, and units as text: what is read, and everything that is wrong at once."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from controlnet.generation.jobs import Job, find_jobs, single
from controlnet.generation.recipe import Recipe, UnitChoice, read_unit
from controlnet.generation.unit_text import parse, write

TEMPLATE = Recipe(prompt="red", seed=5, steps=7, units=(UnitChoice(control="circle", strength=0.5),))


def jobs_of(folder: Path, name: str, text: str, template: Recipe = TEMPLATE, **others: object) -> list[Job]:
    (folder / name).write_text(text)
    jobs, problems = found(folder / name, template, **others)
    assert problems == []
    return jobs


def found(place: Path, template: Recipe = TEMPLATE, has_prompt: bool = True, count: int = 1):
    return find_jobs(str(place), template, has_prompt, count, place.parent / "out")


def test_a_line_of_a_table_says_what_is_different(tmp_path: Path):
    text = 'name,prompt,seed,hint,strength,guidance_scale\nsky/a,"gold, star",8,1.png,,3:4\n,,,2.png,0.25,\n'
    first, second = jobs_of(tmp_path, "jobs.csv", text)
    unit = UnitChoice(control="circle", strength=0.5, hint=str(tmp_path / "1.png"))
    assert first == Job("sky/a", Recipe(prompt="gold, star", seed=8, steps=7, guidance_scale=(3.0, 4.0), units=(unit,)))
    unit = UnitChoice(control="circle", strength=0.25, hint=str(tmp_path / "2.png"))
    assert second == Job("0002", Recipe(prompt="red", seed=5, steps=7, units=(unit,)))


def test_json_lines_say_the_same_as_csv_and_whole_units(tmp_path: Path):
    csv = jobs_of(tmp_path, "a.csv", "prompt,hint,seed,mask\nblue,1.png,4,m.png\n")
    jsonl = jobs_of(tmp_path, "a.jsonl", '\n{"prompt": "blue", "hint": "1.png", "seed": 4, "mask": "m.png"}\n')
    assert jsonl == csv
    units = [{"control": "circle", "image": "x.png", "annotator": "canny", "annotator.low": 50}]
    [whole] = jobs_of(tmp_path, "b.jsonl", json.dumps({"units": units}), Recipe(prompt="red"))
    [unit] = whole.recipe.units
    assert (unit.image, dict(unit.annotator_options)) == (str(tmp_path / "x.png"), {"low": "50"})


def test_a_table_may_bring_its_own_controls_and_speak_of_the_second_unit(tmp_path: Path):
    [job] = jobs_of(tmp_path, "a.csv", "control,hint\ncircle,1.png\n", Recipe(prompt="red"))
    assert job.recipe.units == (UnitChoice(control="circle", hint=str(tmp_path / "1.png")),)
    two = Recipe(prompt="red", units=(UnitChoice(control="a", hint="0.png"), UnitChoice(control="b")))
    [job] = jobs_of(tmp_path, "b.csv", "unit2.hint,unit2.end\n1.png,0.5\n", two)
    assert job.recipe.units == (two.units[0], UnitChoice(control="b", hint=str(tmp_path / "1.png"), end=0.5))


def test_every_defect_of_a_table_is_told_with_its_line(tmp_path: Path):
    (tmp_path / "jobs.csv").write_text(
        "name,prompt,seed,hint,unit3.hint,base,colour,width\n"
        "a,red,1,1.png,,,,\n"
        "a,red,x,1.png,,,,\n"
        ",red,2.5,1.png,,,,\n"
        ",,1,1.png,,,,\n"
        ",red,1,,,,,\n"
        ",red,1,1.png,3.png,,,\n"
        ",red,1,1.png,,sd15,,\n"
        ",red,1,1.png,,,blue,\n"
        ",red,1,1.png,,,,64\n"
        "../up,red,1,1.png,,,,\n"
    )
    _, problems = found(tmp_path / "jobs.csv", has_prompt=False)
    expected = [
        "line 3: seed is 'x'; expected a whole number",
        "line 4: seed is '2.5'; expected a whole number",
        "line 5: no prompt",
        "line 6: unit circle: no hint",
        "line 7: unit3.hint without a unit 3",
        "line 8: base is the same for all pictures",
        "line 9: there is no 'colour'",
        "line 10: --width is given without --height",
        "line 11: the name '../up'",
        "the name a belongs to several pictures",
    ]
    assert len(problems) == len(expected)
    assert [text for text, problem in zip(expected, problems, strict=True) if text not in problem] == []


def test_a_wrong_table_of_a_thousand_lines_is_told_in_a_few(tmp_path: Path):
    (tmp_path / "jobs.csv").write_text("prompt,seed,hint\n" + "red,x,1.png\n" * 1000)
    _, problems = found(tmp_path / "jobs.csv")
    assert problems[-1] == "and 980 more"
    assert len(problems) == 21


def test_every_picture_of_a_folder_is_a_hint_an_image_to_annotate_or_one_to_paint_over(tmp_path: Path):
    place = tmp_path / "in" / "deep" / "1.png"
    place.parent.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(place)
    folder = tmp_path / "in"
    hint, *_ = found(folder)[0]
    annotated, *_ = found(folder, Recipe(prompt="red", units=(UnitChoice(control="a", annotator="canny"),)))[0]
    painted, *_ = found(folder, Recipe(prompt="red"))[0]
    assert (hint.name, hint.recipe.units[0].hint) == ("deep/1", str(place))
    assert (annotated.recipe.units[0].image, annotated.recipe.units[0].hint) == (str(place), None)
    assert painted.recipe.image == str(place)


def test_prompts_lie_beside_the_pictures_or_are_missed(tmp_path: Path):
    for name in ("a", "b"):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("gold star")
    jobs, problems = found(tmp_path, has_prompt=False)
    assert jobs[0].recipe.prompt == "gold star"
    [problem] = problems
    assert "b.png: no prompt" in problem


def test_a_data_set_gives_its_hints_and_prompts(tmp_path: Path):
    row = {"source": "source/0.png", "target": "target/0.png", "prompt": "gold star"}
    (tmp_path / "prompt.json").write_text(json.dumps(row))
    [job], problems = found(tmp_path)
    assert (job.recipe.prompt, job.recipe.units[0].hint) == ("gold star", str(tmp_path / "source" / "0.png"))
    assert problems == []


def test_several_pictures_of_a_job_have_seeds_that_follow_one_another(tmp_path: Path):
    jobs = jobs_of(tmp_path, "a.csv", "name,seed,hint\na,3,1.png\n", count=2)
    assert [(job.name, job.recipe.seed) for job in jobs] == [("a-3", 3), ("a-4", 4)]
    assert [(job.name, job.recipe.seed) for job in single(TEMPLATE, 2)] == [("5", 5), ("6", 6)]


WORDS = st.text(st.characters(exclude_categories=["C"], exclude_characters="\r\n"), min_size=1).map(str.strip)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.builds(
        UnitChoice,
        control=WORDS,
        hint=st.none() | WORDS,
        annotator=st.none() | st.sampled_from(["canny", "hed"]),
        annotator_options=st.dictionaries(st.sampled_from(["low", "high"]), WORDS),
        strength=NUMBERS,
        schedule=st.lists(NUMBERS).map(tuple),
        channel_order=st.sampled_from([None, "RGB", "BGR"]),
        mode=st.sampled_from(["balanced", "prompt", "control"]),
    )
)
def test_a_unit_as_text_and_back_is_the_same(unit: UnitChoice):
    problems: list[str] = []
    assert read_unit(parse(write(unit)), "", problems) == unit
    assert problems == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "expected NAME=VALUE"), ("circle", "expected NAME=VALUE"), ("hint=a,hint=b", "hint is given twice")],
)
def test_text_that_is_no_unit_is_refused(text: str, reason: str):
    with pytest.raises(ValueError, match=reason):
        parse(text)
