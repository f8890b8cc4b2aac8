"""What is inside of a generated picture's file."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from controlnet.errors import UserError
from controlnet.generation.picture_file import SAMPLERS, Made, read_made, write_picture
from controlnet.generation.recipe import Recipe, UnitChoice
from controlnet.generation.schedulers import SCHEDULERS

UNIT = UnitChoice(control="runs/circle.safetensors", hint="ring.png", strength=0.7, end=0.5, mode="prompt")
RECIPE = Recipe(
    prompt="gold star, navy: “night”\nsecond line",
    negative_prompt="blue",
    added_prompt="best",
    seed=2**40,
    clip_skip=2,
    guidance_scale=(7.5,),
    scheduler="dpmpp_2m_karras",
    units=(UNIT,),
)
MADE = Made(RECIPE, {"embedded": "0123456789abcdef"}, {"device": "cpu"}, [RECIPE.own()], 0, {"checker": "none"})
# how A1111's web UI reads the last line: name, colon, value that is quoted or has no comma
A1111 = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def written(path: Path, made: Made) -> Image.Image:
    write_picture(path, np.zeros((64, 72, 3), np.uint8), made)
    return Image.open(path)


def test_how_a_picture_was_made_is_read_back(tmp_path: Path):
    written(tmp_path / "a.png", MADE)
    assert read_made(tmp_path / "a.png") == MADE


def test_other_peoples_pictures_tell_nothing_and_damaged_settings_are_an_error(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "no.png").write_text("text")
    assert read_made(tmp_path / "plain.png") is None
    assert read_made(tmp_path / "no.png") is None
    for settings in ("{", '{"recipe": {"stops": 20, "units": []}}', '{"recipe": {}}'):
        information = PngInfo()
        information.add_text("controlnet", settings)
        Image.new("RGB", (8, 8)).save(tmp_path / "damaged.png", pnginfo=information)
        with pytest.raises(UserError, match="its settings are damaged|there is no 'stops'"):
            read_made(tmp_path / "damaged.png")


def test_a1111_reads_prompt_negative_prompt_and_settings(tmp_path: Path):
    *lines, last = written(tmp_path / "a.png", MADE).text["parameters"].split("\n")
    assert lines == ["gold star, navy: “night”", "second line, best", "Negative prompt: blue"]
    read = dict(A1111.findall(last))
    assert read.pop("Version").startswith("controlnet ")
    assert read == {
        "Steps": "20",
        "Sampler": "DPM++ 2M Karras",
        "CFG scale": "7.5",
        "Seed": str(2**40),
        "Size": "72x64",
        "Model hash": "0123456789",
        "Model": "embedded",
        "Clip skip": "2",
        "ControlNet 0": '"Module: none, Model: circle, Weight: 0.7, Resize Mode: Crop and Resize, Guidance Start: 0, '
        'Guidance End: 0.5, Control Mode: My prompt is more important"',
    }


def test_every_scheduler_has_a_name_that_a1111_knows():
    assert SAMPLERS.keys() == SCHEDULERS.keys()


@pytest.mark.parametrize(
    ("image", "source"), [(None, "trainedAlgorithmicMedia"), ("a.png", "compositeWithTrainedAlgorithmicMedia")]
)
def test_the_picture_says_that_it_is_generated_as_iptc_has_it(tmp_path: Path, image: str | None, source: str):
    made = Made(Recipe(prompt="red", image=image), {"embedded": ""}, {})
    text = written(tmp_path / "a.png", made).info["XML:com.adobe.xmp"]
    [found] = ElementTree.fromstring(text).iter("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert found.text == f"http://cv.iptc.org/newscodes/digitalsourcetype/{source}"
