"""Hints on disk: PNG, lossless, with their meaning as text under the key `controlnet`."""

import json
import struct
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from controlnet.annotators.annotator import COMPUTE, Annotator
from controlnet.annotators.resolution import to_size
from controlnet.images import Rgb

KEY = "controlnet"
BEFORE_TEXT = 33  # bytes of a PNG's signature and its first chunk, IHDR
# measured on hints of 512: the fastest of OpenCV's, and within a tenth of its smallest
GREY = (
    cv2.IMWRITE_PNG_COMPRESSION, 1,
    cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE,
    cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE,
)  # fmt: skip
COLOUR = (
    cv2.IMWRITE_PNG_COMPRESSION, 1,
    cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB,
    cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT,
)  # fmt: skip


def description(annotator: Annotator) -> dict[str, Any]:
    """What a hint by `annotator` means and with which options it is made, as JSON can say it."""
    options = {name: value for name, value in asdict(annotator).items() if name not in COMPUTE}
    return {"annotator": type(annotator).__name__, "options": options, **asdict(annotator.hint_meaning())}


def encode(pixels: Rgb, text: str = "") -> bytes:
    """A PNG of a hint (h, w, 3) or (h, w, 4), with `text`, which is ASCII. What is grey is kept as grey."""
    if pixels.shape[2] == 4:
        encoded = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA), COLOUR)[1]
    elif _is_grey(pixels):
        encoded = cv2.imencode(".png", np.ascontiguousarray(pixels[..., 0]), GREY)[1]
    else:
        encoded = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), COLOUR)[1]
    png, chunk = encoded.tobytes(), b"tEXt" + KEY.encode() + b"\0" + text.encode("ascii")
    framed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png[:BEFORE_TEXT] + framed + png[BEFORE_TEXT:]


def encode_detail(detail: NDArray[np.uint8] | dict[str, Any], size: tuple[int, int]) -> tuple[str, bytes]:
    """The suffix and the bytes of a detail: values of pixels as grey PNG at `size` (width, height), others as JSON."""
    if isinstance(detail, dict):
        return ".json", json.dumps(detail).encode()
    return ".png", cv2.imencode(".png", to_size(detail, size, is_smooth=False), GREY)[1].tobytes()


def read_description(source: Path | IO[bytes]) -> dict[str, Any] | None:
    """What `description` said when the hint in a file was made; None for a picture that does not say."""
    from PIL import Image

    with Image.open(source) as image:
        text = image.info.get(KEY)
    return json.loads(text) if isinstance(text, str) and text else None


def _is_grey(pixels: Rgb) -> bool:
    return bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all())
