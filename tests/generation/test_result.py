"""What `generate` gives, and how it is watched and ended."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from controlnet.base import Base
from controlnet.generation.pipeline import Report, generate
from controlnet.generation.prompts import PRESETS
from controlnet.generation.unit import Unit
from tiny_generation import grey_levels_apart, loud

SIDE = 64
HINT = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def test_a_result_is_a_sequence_of_its_pictures_and_tells_how_they_were_made(base: Base):
    units = [Unit(loud(base), HINT), Unit(loud(base), 255 - HINT, strength=0)]
    result = generate(base, ["red", "bee"], units, steps=2, seed=7, negative_prompt="a", batch_size=1)
    first, second = result
    assert (len(result), first, result[-1]) == (2, result.images[0], second)
    assert result[:1] == [first]
    assert np.array_equal(np.array(second), result.pixels_nhwc[1])
    assert (list(result.prompts), list(result.seeds)) == (["red", "bee"], [7, 8])
    assert (result.settings.steps, result.settings.negative_prompt) == (2, "a")
    assert result.timings.keys() == {"hints", "prompts", "sampling", "decoding"}
    assert all(seconds > 0 for seconds in result.timings.values())
    [seen] = result.hints  # of the unit that acted
    assert np.array_equal(seen[0], HINT)


def test_seeds_may_be_given_for_each_picture(base: Base):
    swapped = generate(base, "red", count=2, steps=2, size=(SIDE, SIDE), seed=[6, 5])
    ordered = generate(base, "red", count=2, steps=2, size=(SIDE, SIDE), seed=5)
    assert grey_levels_apart(swapped[0], ordered[1]) <= 1
    assert grey_levels_apart(swapped[1], ordered[0]) <= 1


@pytest.mark.parametrize("scheduler", ["euler_a", "ddim"])
def test_with_noise_at_every_step_a_picture_of_a_batch_is_the_single_one(base: Base, scheduler: str):
    options = {"steps": 3, "size": (SIDE, SIDE), "scheduler": scheduler, "eta": 1.0 if scheduler == "ddim" else 0.0}
    both = generate(base, "red", count=2, seed=5, **options)
    alone = generate(base, "red", seed=6, **options)
    assert grey_levels_apart(both[1], alone[0]) <= 1
    assert grey_levels_apart(both[0], alone[0]) > 5


def test_a_preset_is_the_prompt_and_the_negative_prompt_spelled_out(base: Base):
    short = generate(base, "red", steps=2, size=(SIDE, SIDE), **PRESETS["original-1.1"])
    spelled = generate(
        base,
        "red, best quality",
        steps=2,
        size=(SIDE, SIDE),
        negative_prompt="lowres, bad anatomy, bad hands, cropped, worst quality",
    )
    assert np.array_equal(short.pixels_nhwc, spelled.pixels_nhwc)


def test_brackets_are_weights_unless_they_are_to_be_read(base: Base):
    options = {"steps": 2, "size": (SIDE, SIDE)}
    weighted, read, escaped, without = (
        generate(base, text, prompt_weights=weights, **options).pixels_nhwc
        for text, weights in (("a (bee:1.5)", True), ("(bee)", False), (r"\(bee\)", True), ("a bee", True))
    )
    assert grey_levels_apart(weighted, without) > 0
    assert np.array_equal(read, escaped)


class Enough(Exception):
    pass


def stops_at(step: int) -> Iterator[None]:
    for _ in range(step - 1):
        yield
    raise Enough


@pytest.mark.parametrize("how", ["progress", "watch"])
def test_what_a_watcher_raises_ends_the_call_and_nothing_is_left_of_it(base: Base, how: str):
    control = loud(base)
    before = generate(base, "red", [Unit(control, HINT)], steps=3, scheduler="unipc").pixels_nhwc
    for step in (1, 2):
        steps = stops_at(step)
        with pytest.raises(Enough):
            generate(
                base, "red", [Unit(control, HINT)], steps=3, scheduler="unipc", **{how: lambda *_, it=steps: next(it)}
            )
    assert not torch.is_inference_mode_enabled()
    assert np.array_equal(generate(base, "red", [Unit(control, HINT)], steps=3, scheduler="unipc").pixels_nhwc, before)


def test_a_report_names_the_pictures_that_are_being_made(base: Base):
    told: list[tuple[int, int, list[int]]] = []

    def watch(report: Report) -> None:
        told.append((report.done, report.total, list(report.pictures)))

    generate(base, "red", count=3, steps=1, size=(SIDE, SIDE), batch_size=2, watch=watch)
    assert told == [(1, 2, [0, 1]), (2, 2, [2])]
