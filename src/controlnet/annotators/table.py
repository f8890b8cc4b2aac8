"""The annotators, by condition: the one place where a new one is named.

Nothing of theirs is imported before `load` is asked for it. Their modules import no torch at the top.
"""

from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING

from controlnet.errors import UserError

if TYPE_CHECKING:
    from controlnet.annotators.annotator import Annotator

# condition -> where its annotator is
ANNOTATORS: dict[str, str] = {
    "canny": "controlnet.annotators.canny:Canny",
    "hed": "controlnet.annotators.hed:Hed",
    "scribble": "controlnet.annotators.scribble:Scribble",
    "scribble_xdog": "controlnet.annotators.scribble:ScribbleXdog",
    "fake_scribble": "controlnet.annotators.hed:FakeScribble",
    "mlsd": "controlnet.annotators.mlsd:Mlsd",
    "lines": "controlnet.annotators.lines:Lines",
    "pose": "controlnet.annotators.pose:Pose",
    "openpose": "controlnet.annotators.openpose:OpenPose",
    "seg": "controlnet.annotators.seg:Segmentation",
    "depth": "controlnet.annotators.depth:Depth",
    "normal": "controlnet.annotators.normal:Normal",
    "lineart": "controlnet.annotators.lineart:Lineart",
    "lineart_anime": "controlnet.annotators.lineart:LineartAnime",
    "lineart_standard": "controlnet.annotators.lines:LineartStandard",
    "shuffle": "controlnet.annotators.shuffle:Shuffle",
    "tile": "controlnet.annotators.tile:Tile",
    "grey": "controlnet.annotators.tile:Grey",
    "inpaint": "controlnet.annotators.inpaint:Inpaint",
    "none": "controlnet.annotators.tile:Nothing",
}


def load(condition: str) -> "type[Annotator]":
    """The annotator of a condition, a class. UserError for an unknown one."""
    if condition not in ANNOTATORS:
        near = get_close_matches(condition, ANNOTATORS, n=1)
        remedy = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"there is no annotator {condition!r}; expected one of: {', '.join(ANNOTATORS)}{remedy}")
    module, name = ANNOTATORS[condition].split(":")
    kind: type[Annotator] = getattr(import_module(module), name)
    return kind
