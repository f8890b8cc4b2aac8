"""From what is asked to pictures: what is seen is what is fed, and every picture can be made again."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from controlnet.errors import UserError
from controlnet.generation.jobs import Job
from controlnet.generation.picture_file import read_made
from controlnet.generation.pipeline import generate
from controlnet.generation.production import Production
from controlnet.generation.unit import Unit
from controlnet.studio import history
from controlnet.studio.asked import Asked, UnitAsked
from controlnet.studio.carried import of_recipe, read_asked, with_asked
from controlnet.studio.desk import Desk, Finished
from controlnet.studio.editors import blank, mask_value, scribble_value
from controlnet.studio.examples import ring
from controlnet.studio.limits import Limits
from controlnet.studio.making import make
from controlnet.studio.units import acting, mask_at, see

HINT = ring(0.6, 0.4, 0.25)()
UNIT = UnitAsked(picture=HINT)
ASKED = Asked(prompt="cyan circle with pink background", steps=2, guidance_scale=3.0, seed=5, units=(UNIT,))


def ignore(report: object) -> None:
    """Of a step."""


@pytest.fixture(scope="module")
def pictures(desk):
    asked = Asked(**{**vars(ASKED), "count": 2, "units": (UNIT, UnitAsked())})
    return make(asked, desk.models, ignore)


def test_the_preview_is_the_networks_input_bit_for_bit(desk: Desk):
    photograph = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    unit = UnitAsked(picture=photograph, annotator="grey", invert=True, resize="fill")
    asked = Asked(**{**vars(ASKED), "units": (unit,), "has_own_size": True, "width": 128, "height": 192})
    shown, told = desk.preview(asked, 0)
    fed = []
    control = desk.models.control("circle", False, desk.models.base("embedded"))
    hook = control.hint_encoder.register_forward_pre_hook(lambda _, given: fed.append(given[0].clone()))
    make(asked, desk.models, ignore)
    hook.remove()
    [hint_1chw] = fed
    assert hint_1chw.shape == (1, 3, 192, 128)
    assert (hint_1chw[0].movedim(0, -1).numpy() == shown.astype(np.float32) / 255).all()
    assert "128x192" in told


def test_pictures_are_those_of_generate(desk: Desk, pictures):
    base = desk.models.base("embedded")
    control = desk.models.control("circle", False, base)
    options = {"steps": 2, "guidance_scale": 3.0, "seed": 5, "count": 2}
    expected = generate(base, ASKED.prompt, [Unit(control, HINT)], **options)
    assert (pictures.pixels_nhwc == expected.pixels_nhwc).all()
    assert (pictures.seen.hints[0] == HINT).all()


def test_a_picture_is_made_again_from_its_file_by_the_command_line(desk: Desk, pictures, tmp_path, monkeypatch):
    first, second = history.keep(pictures, tmp_path)
    monkeypatch.chdir(tmp_path)
    recipes = [read_made(path).recipe for path in (first, second)]
    production = Production([Job(str(number), recipe) for number, recipe in enumerate(recipes)], "cpu", "float32")
    [outcomes] = production.produce(tmp_path / "again", lambda done: None)
    for outcome, path in zip(outcomes, (first, second), strict=True):
        assert (np.asarray(Image.open(outcome.path)) == np.asarray(Image.open(path))).all()
        assert read_made(outcome.path).inputs == read_made(path).inputs


def test_a_picture_brings_the_whole_tab_back(desk: Desk, pictures, tmp_path):
    path = history.keep(pictures, tmp_path)[1]
    restored = desk.restored(path)
    assert restored.to_json() == {**pictures.asked.to_json(), "seed": 6}  # the second picture's own
    assert (restored.units[0].picture == HINT).all()


def test_carrying_the_tab_changes_no_pixel(pictures, tmp_path):
    path = history.keep(pictures, tmp_path)[0]
    with Image.open(path) as image:
        image.load()
        assert (np.asarray(image) == pictures.pixels_nhwc[0]).all()


def test_a_picture_of_the_command_line_restores_what_it_tells(pictures):
    told = of_recipe(pictures.made[0].recipe)
    assert (told.prompt, told.seed, told.steps, told.guidance_scale) == (ASKED.prompt, 5, 2, 3.0)
    assert told.units[0].picture is None


def test_other_pictures_and_damaged_ones_restore_nothing(tmp_path):
    plain = tmp_path / "plain.png"
    Image.fromarray(HINT).save(plain)
    with pytest.raises(UserError, match="no settings of ours"):
        read_asked(plain)
    carrying = with_asked(plain.read_bytes(), ASKED)
    for number in range(len(plain.read_bytes()), len(carrying), 37):
        damaged = bytearray(carrying)
        damaged[number] ^= 0x5A
        plain.write_bytes(bytes(damaged))
        try:
            read_asked(plain)
        except UserError:
            continue  # every other outcome but a readable tab is an error of ours


def test_what_this_studio_lacks_is_named(desk: Desk, tmp_path):
    path = tmp_path / "other.png"
    Image.fromarray(HINT).save(path)
    elsewhere = Asked(base="sd15", units=(UnitAsked(picture=HINT, control="canny"), UnitAsked(control="depth")))
    path.write_bytes(with_asked(path.read_bytes(), elsewhere))
    with pytest.raises(UserError, match="made with base sd15, control canny, which this studio has not"):
        desk.restored(path)


def test_units_without_a_picture_are_off(desk: Desk):
    drawn = UnitAsked(source="Draw", drawing=scribble_value(HINT))
    units = (UnitAsked(), UNIT, UnitAsked(source="Draw", drawing=blank(128, 128)), drawn)
    assert acting(Asked(units=units)) == [UNIT, drawn]
    assert desk.preview(Asked(units=units), 0)[0] is None


def test_a_mask_is_cropped_to_the_picture_and_an_unpainted_one_is_none():
    mask = np.zeros((64, 128), np.uint8)
    mask[:, 32:64] = 255
    fitted = mask_at(mask_value(mask), (64, 64))
    assert fitted.shape == (64, 64, 3)
    assert (fitted[:, :32] == 255).all()
    assert (fitted[:, 32:] == 0).all()
    assert mask_at(blank(64, 64), (64, 64)) is None


def test_a_masked_unit_says_nothing_outside_of_its_mask(desk: Desk):
    nowhere = np.zeros((128, 128), np.uint8)
    nowhere[0, 0] = 255  # painted, and too little to be heard in any cell of the deepest layer
    quiet = make(_with(mask=mask_value(nowhere)), desk.models, ignore).pixels_nhwc[0].astype(int)
    loud = make(ASKED, desk.models, ignore).pixels_nhwc[0].astype(int)
    assert np.abs(quiet - loud).max() > 20


def _with(**changed) -> Asked:
    return Asked(**{**vars(ASKED), "units": (UnitAsked(**{**vars(UNIT), **changed}),)})


def test_the_size_is_the_hints_unless_another_is_asked_for(desk: Desk):
    base = desk.models.base("embedded")
    assert see(ASKED, desk.models, base).size == (128, 128)
    own = Asked(**{**vars(ASKED), "has_own_size": True, "width": 64, "height": 192})
    assert see(own, desk.models, base).size == (192, 64)
    assert see(Asked(), desk.models, base).size == (128, 128)


def test_all_that_is_too_much_is_told_at_once(desk: Desk):
    greedy = Asked(**{**vars(ASKED), "count": 99, "steps": 5000})
    with pytest.raises(UserError, match="99 pictures; expected 1 to 12 at once\n5000 steps; expected 1 to 100"):
        make(greedy, desk.models, ignore)
    with pytest.raises(UserError, match="1 pictures of 128x128 in 2 steps are too much"):
        make(ASKED, desk.models, ignore, Limits(work=128 * 128))


def test_nothing_is_shown_unchecked_where_it_shall_be_checked(desk: Desk):
    with pytest.raises(UserError, match="no safety checker: nothing would be checked"):
        make(Asked(**{**vars(ASKED), "safety": "block"}), desk.models, ignore)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"control": "../../etc/passwd"}, "control ../../etc/passwd; expected one of: circle"),
        ({"source": "File"}, "source File; expected one of: Picture"),
        ({"schedule": "x"}, "schedule 'x'; expected numbers"),
        ({"layer_weights": "1 2"}, "2 layer weights; expected 13"),
        ({"mode": "x"}, "mode 'x'; expected one of"),
    ],
)
def test_what_no_panel_could_say_is_refused(desk: Desk, changed, told):
    with pytest.raises(UserError, match=told):
        make(_with(**changed), desk.models, ignore)


def test_a_job_tells_how_far_it_is_and_ends_with_hint_then_picture(desk: Desk):
    visitor = history.new_visitor()
    *told, finished = desk.generate(ASKED, "session", visitor)
    assert "opening the models" in told[0]
    assert "step 2 of 2" in told[-1]
    assert isinstance(finished, Finished)
    assert (finished.gallery[0][0] == HINT).all()
    assert finished.paths == history.pictures_of(desk.folder(visitor))
    assert desk.last_seed(visitor) == 5


def test_a_stopped_job_leaves_no_picture(desk: Desk):
    visitor = history.new_visitor()
    long = Asked(**{**vars(ASKED), "steps": 100})
    told = []
    for each in desk.generate(long, "session", visitor):
        told.append(each)
        desk.stop("session")
    assert told[-1].endswith("Stopped.</div>")
    assert not desk.folder(visitor).exists()


def test_a_session_stops_its_own_job_alone(desk: Desk):
    for each in desk.generate(ASKED, "mine", history.new_visitor()):
        desk.stop("theirs")
        last = each
    assert isinstance(last, Finished)


def test_who_has_no_name_of_ours_has_no_folder(desk: Desk):
    for name in (None, "", "..", "../" * 8, "a" * 21, "a" * 23, "a" * 21 + "/"):
        with pytest.raises(UserError, match="reload"):
            desk.folder(name)
    assert desk.folder(history.new_visitor()).parent == desk.offer.out / "pictures"


def test_numbers_go_on_and_the_newest_comes_first(pictures, tmp_path: Path):
    history.keep(pictures, tmp_path)
    history.keep(pictures, tmp_path)
    assert [file.name for file in history.pictures_of(tmp_path)] == ["0004.png", "0003.png", "0002.png", "0001.png"]
