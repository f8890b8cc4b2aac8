"""Pictures of indices, (H, W) uint8, as the editors of pixels exchange them: base64 of runs."""

import base64
import binascii
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from controlnet.errors import UserError
from controlnet.studio.editors.component import Value, check_size

Indices = NDArray[np.uint8]  # (H, W)

LONGEST_RUN = 0xFFFF  # what two bytes hold
MOST_RUNS = 1 << 21  # 8 MB of text: noise of 2 megapixels, far more than anybody draws


def to_value(indices: Indices) -> Value:
    """Indices -> a value. UserError for a picture that is larger than a canvas, or as restless as noise."""
    height, width = indices.shape
    check_size(width, height)
    return {"width": width, "height": height, "runs": _encode(indices.ravel())}


def from_value(value: object, allowed: Iterable[int]) -> Indices:
    """A value -> its indices. UserError for anything that no editor gives, and indices that are not `allowed`."""
    if not isinstance(value, Mapping):
        raise UserError(f"no drawing: found {type(value).__name__}, expected an object; draw something first")
    width, height = check_size(value.get("width"), value.get("height"))
    indices = _decode(value.get("runs"), width * height)
    if strange := sorted(set(np.unique(indices).tolist()) - set(allowed)):
        raise UserError(f"a drawing with the indices {strange[:5]}; this editor knows none of them")
    return indices.reshape(height, width)


def _encode(flat: Indices) -> str:
    starts = np.flatnonzero(np.diff(flat, prepend=flat[0] ^ 1))  # the first is one, whatever it is
    lengths = np.diff(starts, append=flat.size)
    parts = -(-lengths // LONGEST_RUN)
    if parts.sum() > MOST_RUNS:
        raise UserError(f"a picture of {parts.sum():,} runs of equal pixels; expected {MOST_RUNS:,} at most: smooth it")
    whole = np.full(parts.sum(), LONGEST_RUN)
    whole[np.cumsum(parts) - 1] = lengths - (parts - 1) * LONGEST_RUN
    return base64.b64encode(
        np.stack([np.repeat(flat[starts], parts), whole & 255, whole >> 8], axis=1).astype(np.uint8).tobytes()
    ).decode()


def _decode(text: object, area: int) -> Indices:
    if not isinstance(text, str) or len(text) > 4 * MOST_RUNS:
        raise UserError(f'"runs" is {type(text).__name__}; expected base64 of {MOST_RUNS:,} runs at most')
    try:
        triples = np.frombuffer(base64.b64decode(text, validate=True), np.uint8).reshape(-1, 3)
    except (binascii.Error, ValueError) as error:
        raise UserError(f'"runs" is not what an editor sends ({error}); expected base64 of triples of bytes') from error
    lengths = triples[:, 1] + (triples[:, 2].astype(np.int64) << 8)
    if lengths.sum() != area:
        raise UserError(f'"runs" tells {lengths.sum():,} pixels; expected {area:,}, as the canvas has')
    return np.repeat(triples[:, 0], lengths)
