"""Editors of hints in the browser: scribbles and masks, poses, segmentations.

Each makes its component inside the current `gr.Blocks` and returns it, a `gr.HTML` with a template, style and script of
its own:

    scribble_editor(label, mode="scribble" | "mask", width=512, height=512, **options of gr.HTML)
    pose_editor(label, width=512, height=512, **options)
    segment_editor(label, width=512, height=512, **options)

`.change` fires whenever the value has changed, `.input` only when the visitor has changed it: at the end of a stroke or
a drag, after undo, after a file was opened. An editor takes `None` for a blank one, and any value that it gave or that
a function below makes; it may lie in a hidden tab, and there may be many on a page.

Values are JSON, and come from a browser: the functions here check all of them and raise UserError.

    scribble and mask, segmentation: {"width", "height", "runs", "background"}
        `runs` is base64 of triples of bytes, row after row: an index and how often it comes, low byte first. Index 0
        is paper and 1 stroke; of a segmentation 0 to 149 a class and 255 none.
    pose: OpenPose's own document, {"people": [{"pose_keypoints_2d": [...]}], "canvas_width", "canvas_height"}, and
        "background"
    "background" is a photograph to draw over, as Gradio's file, or null. It is for the eyes only: no function here
        reads it. A value without the key leaves the photograph that is there.

From values, sizes being those of the canvas:

    scribble_hint(value) -> (H, W, 3) uint8, white strokes on black
    mask_of(value) -> (H, W) uint8, 255 where painted
    pose_people(value) -> People; pose_hint(value, style="original") -> (H, W, 3) uint8
    segment_indices(value) -> (H, W) uint8, 255 without a class; segment_hint(value) -> (H, W, 3) uint8, there black

To values, all but the blank ones with `background=None`, or a photograph (H, W, 3) uint8 to draw over:

    scribble_value(drawing (H, W, 3) uint8 of any polarity)
    mask_value(mask (H, W) uint8)
    pose_value(people, or OpenPose's document)
    segment_value(indices (H, W) uint8)
    blank(width, height), for scribbles and masks; blank_pose(width, height); blank_segment(width, height)
"""

from controlnet.studio.editors.pose import blank_pose, pose_editor, pose_hint, pose_people, pose_value
from controlnet.studio.editors.scribble import (
    blank,
    mask_of,
    mask_value,
    scribble_editor,
    scribble_hint,
    scribble_value,
)
from controlnet.studio.editors.segment import (
    blank_segment,
    segment_editor,
    segment_hint,
    segment_indices,
    segment_value,
)

__all__ = [
    "blank",
    "blank_pose",
    "blank_segment",
    "mask_of",
    "mask_value",
    "pose_editor",
    "pose_hint",
    "pose_people",
    "pose_value",
    "scribble_editor",
    "scribble_hint",
    "scribble_value",
    "segment_editor",
    "segment_hint",
    "segment_indices",
    "segment_value",
]
