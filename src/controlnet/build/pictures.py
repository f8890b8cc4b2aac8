"""What is known of a row's picture from its bytes alone."""

import hashlib

import cv2
import numpy as np

from controlnet.build.rows import Row
from controlnet.build.shards import IMAGE
from controlnet.errors import UserError
from controlnet.images import Rgb, decode

SIGNATURES = {b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png", b"RIFF": "webp"}
HASHED_SIDE, KEPT_SIDE = 32, 8  # of the grey picture, and of its lowest frequencies: 64 bits


def inspected(row: Row, data: bytes) -> Row:
    """The row with `data` as its picture, decoded once: its format, size, SHA-256 and perceptual hash; or failed."""
    format = next((name for signature, name in SIGNATURES.items() if data.startswith(signature)), None)
    if format is None:
        return row.failed("no picture", f"{len(data):,} bytes, first {data[:16]!r}; expected JPEG, PNG or WebP")
    try:
        rgb = decode(data)
    except UserError as error:
        return row.failed("broken picture", str(error))
    height, width = rgb.shape[:2]
    known = {"format": format, "width": width, "height": height, "phash": perceptual_hash(rgb)}
    return row.having({IMAGE: data}, sha256=hashlib.sha256(data).hexdigest(), **known)


def perceptual_hash(rgb: Rgb) -> str:
    """64 bits in hexadecimal: which of the picture's 8 x 8 lowest frequencies are above their median.

    Pictures that look alike differ in few bits, pictures that don't in about half.
    """
    grey = cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (HASHED_SIDE, HASHED_SIDE), interpolation=cv2.INTER_AREA)
    lowest = cv2.dct(grey.astype(np.float32))[:KEPT_SIDE, :KEPT_SIDE].ravel()
    bits = lowest > np.median(lowest[1:])  # the first is the mean, which only says how bright it is
    return np.packbits(bits).tobytes().hex()
