"""What a picture of the studio carries beside its settings: the tab that it was asked for with, and what was put in.

Two private chunks of PNG (W3C PNG, 5.4: ancillary, private, safe to copy): `cnAs`, the tab as JSON, and `cnIn`, for
each picture in it its name, a zero byte and its PNG. So a picture dropped back restores everything, wherever it comes
from; other programs pass over them.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from controlnet.errors import UserError
from controlnet.generation.picture_file import read_made
from controlnet.generation.recipe import Recipe, UnitChoice
from controlnet.images import PNG_END
from controlnet.studio.asked import Asked, UnitAsked

SIGNATURE = b"\x89PNG\r\n\x1a\n"
ASKED, INPUT = b"cnAs", b"cnIn"


def with_asked(png: bytes, asked: Asked) -> bytes:
    """A PNG that carries `asked`."""
    assert png.endswith(PNG_END)
    inputs = [_chunk(INPUT, name.encode() + b"\0" + data) for name, data in asked.files().items()]
    return png[: -len(PNG_END)] + b"".join([_chunk(ASKED, json.dumps(asked.to_json()).encode()), *inputs]) + PNG_END


def read_asked(path: Path) -> Asked:
    """The tab that a picture was made with; of pictures by `controlnet generate`, what their settings tell.

    UserError for other pictures, and for damaged ones.
    """
    chunks = list(_chunks(path.read_bytes()))
    if settings := [data for name, data in chunks if name == ASKED]:
        inputs = (data.partition(b"\0") for name, data in chunks if name == INPUT)
        files = {name.decode("ascii", "replace"): data for name, _, data in inputs}
        try:
            return Asked.from_json(json.loads(settings[0]), files)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise UserError(f"the picture's settings are damaged ({error}); use another copy of the file") from error
    made = read_made(path)
    if made is None:
        raise UserError("no settings of ours in this picture; expected a PNG that the studio or `generate` has made")
    return of_recipe(made.recipe)


def of_recipe(recipe: Recipe) -> Asked:
    """As far as a recipe goes: its pictures are files elsewhere."""
    return Asked(
        prompt=recipe.prompt,
        added_prompt=recipe.added_prompt,
        negative_prompt=recipe.negative_prompt,
        base=recipe.base,
        steps=recipe.steps,
        guidance_scale=recipe.guidance_scale[0] if recipe.guidance_scale else 1.0,
        seed=recipe.seed,
        scheduler=recipe.scheduler,
        eta=recipe.eta,
        clip_skip=recipe.clip_skip,
        has_own_size=recipe.width is not None,
        width=recipe.width or Asked.width,
        height=recipe.height or Asked.height,
        image_strength=recipe.image_strength,
        safety=recipe.safety,
        units=tuple(_unit(unit) for unit in recipe.units),
    )


def _unit(unit: UnitChoice) -> UnitAsked:
    return UnitAsked(
        control=unit.control,
        annotator=unit.annotator or UnitAsked.annotator,
        options=dict(unit.annotator_options),
        is_bgr=unit.channel_order == "BGR",
        strength=unit.strength,
        start=unit.start,
        end=unit.end,
        schedule=" ".join(map(str, unit.schedule)),
        layer_weights=" ".join(map(str, unit.layer_weights)),
        mode=unit.mode,
        resize=unit.resize,
    )


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, data) of each; ends where the file is no PNG any more."""
    place = len(SIGNATURE)
    while png.startswith(SIGNATURE) and place + 12 <= len(png):
        length = int.from_bytes(png[place : place + 4])
        yield png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        place += 12 + length
