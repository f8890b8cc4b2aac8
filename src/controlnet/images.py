"""The one place where pictures are decoded, resized, normalised and encoded, so that target and hint never drift apart.

Three forms: *rgb* (H, W, 3) uint8 arrays, *targets* float32 in [-1, 1], *hints* float32 in [0, 1].
"""

# b batch, c channels, h height, w width
import os
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from controlnet.atomic import write_atomically
from controlnet.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Rgb = NDArray[np.uint8]  # (H, W, 3) unless said otherwise

FORMATS = ("PNG", "JPEG", "WEBP")
LARGEST_AREA = 24_000_000  # pixels; a 24-megapixel camera, 72 MB decoded, safe for a small machine
LARGEST_ASPECT = 16  # longer strips are banners and film strips, and resize to slivers
SMALLEST_SIDE = 2  # one-pixel pictures are trackers and placeholders
SIXTEEN_BITS = 257  # 65535 / 255, so that white stays white
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"  # the last chunk
ORIENTATION = 0x0112  # EXIF 2.32, table 4
ORIENTATIONS_ON_THEIR_SIDE = range(5, 9)  # EXIF 2.32: these exchange width and height


class PictureError(UserError):
    """A picture that cannot be used; the message names it and the remedy."""


Source = Path | str | bytes | Image.Image


def decode(source: Source) -> Rgb:
    """The picture as rgb: EXIF orientation applied, alpha on white, 16 bits scaled to 8, first frame.

    Refuses from the header, before decoding, more than 24 megapixels, aspects over 16 and sides under 2 pixels.
    Raises PictureError for these, for other formats than PNG, JPEG and WEBP, and for missing and broken files.
    """
    return _decode(source, _to_rgb)


def decode_with_alpha(source: Source) -> Rgb:
    """As `decode`, but (H, W, 4): the colours under the picture's own alpha, which is 255 where it has none."""
    return _decode(source, _to_rgba)


def header_size(source: Source) -> tuple[int, int]:
    """(width, height) as `decode` would give them, from the header alone; refuses what `decode` refuses there."""
    image = _open(source)
    width, height = image.size
    # getexif of a PNG without EXIF in its header would decode the whole picture to look behind it
    orientation = image.getexif().get(ORIENTATION, 1) if "exif" in image.info else 1
    return (height, width) if orientation in ORIENTATIONS_ON_THEIR_SIDE else (width, height)


def to_target(rgb: Rgb) -> NDArray[np.float32]:
    """rgb -> (H, W, 3) float32 in [-1, 1], what the VAE reads."""
    return rgb.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_hint(rgb: Rgb) -> NDArray[np.float32]:
    """rgb -> (H, W, 3) float32 in [0, 1], what a ControlNet reads."""
    return rgb.astype(np.float32) / np.float32(255)


def to_uint8(pixels_bchw: "Tensor") -> Rgb:
    """Pixels in [-1, 1] (clipped) -> (B, H, W, 3) uint8."""
    # the order of operations is that of diffusers' VaeImageProcessor, so that pictures equal its pictures
    unit_bchw = (pixels_bchw.detach().float().cpu() * 0.5 + 0.5).clamp(0, 1)
    scaled: NDArray[np.float32] = unit_bchw.permute(0, 2, 3, 1).numpy() * 255
    return scaled.round().astype(np.uint8)


def to_pil(pixels_bchw: "Tensor") -> list[Image.Image]:
    """Pixels in [-1, 1] (clipped) -> one PIL image per picture of the batch."""
    return [Image.fromarray(rgb) for rgb in to_uint8(pixels_bchw)]


def resize(rgb: Rgb, size: tuple[int, int]) -> Rgb:
    """rgb stretched to `size` (width, height): Lanczos when it grows, mean over areas when it shrinks.

    The rule of the original's `resize_image`.
    """
    height, width = rgb.shape[:2]
    if (width, height) == size:
        return rgb
    grows = size[0] * size[1] > width * height
    method = Image.Resampling.LANCZOS if grows else Image.Resampling.BOX
    return np.array(Image.fromarray(rgb).resize(size, method))


def three_channels(pixels: NDArray[np.uint8]) -> Rgb:
    """(H, W) grey, (H, W, 1), (H, W, 3) or (H, W, 4) uint8 as (H, W, 3): grey three times, alpha on white.

    The rule of the original's `HWC3`. UserError for other arrays.
    """
    shape = pixels.shape if pixels.ndim == 3 else (*pixels.shape, 1)
    if pixels.dtype != np.uint8 or len(shape) != 3 or shape[2] not in (1, 3, 4) or not pixels.size:
        raise UserError(
            f"a picture of {pixels.dtype} {pixels.shape}; expected uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
        )
    if shape[2] == 4:
        colour, alpha = pixels[..., :3].astype(np.float32), pixels[..., 3:].astype(np.float32) / 255
        return (colour * alpha + 255 * (1 - alpha)).clip(0, 255).astype(np.uint8)
    return pixels if shape[2] == 3 else np.stack([pixels.reshape(shape[:2])] * 3, axis=2)


def four_channels(pixels: NDArray[np.uint8]) -> Rgb:
    """The same arrays as (H, W, 4): with alpha as they are, without it under an alpha of 255."""
    if pixels.ndim == 3 and pixels.shape[2] == 4 and pixels.dtype == np.uint8:
        return pixels
    rgb = three_channels(pixels)
    return np.concatenate([rgb, np.full_like(rgb[..., :1], 255)], axis=2)


def encode_png(rgb: Rgb, path: Path) -> None:
    """Write rgb to `path` as PNG, whole or not at all. UserError when the disk is full or read-only."""
    write_atomically(path, lambda temporary: Image.fromarray(rgb).save(temporary, format="PNG"))


WRITTEN = {"jpg": ("JPEG", {"quality": 95}), "png": ("PNG", {}), "webp": ("WEBP", {"quality": 95})}


def encoded(rgb: Rgb, format: str) -> bytes:
    """rgb as a file of one of the formats in WRITTEN; only PNG loses nothing."""
    written, (name, options) = BytesIO(), WRITTEN[format]
    Image.fromarray(rgb).save(written, format=name, **options)
    return written.getvalue()


def is_whole_png(path: Path) -> bool:
    """Whether there is a file at `path` that ends as a PNG does."""
    try:
        with path.open("rb") as file:
            file.seek(-len(PNG_END), os.SEEK_END)
            return file.read() == PNG_END
    except OSError:  # missing, or shorter than that
        return False


def grid(
    rows: Sequence[Sequence[Rgb]],
    headings: Sequence[str] = (),
    captions: Sequence[str] = (),
    gap: int = 4,
) -> Rgb:
    """Pictures side by side on white, as rgb: `headings` above the columns, a caption under each row, if given.

    Cells are as large as the largest picture; rows may differ in length.
    """
    height = max(cell.shape[0] for row in rows for cell in row)
    width = max(cell.shape[1] for row in rows for cell in row)
    letters = max(10, width // 14)  # about thirty letters a column
    font, line = ImageFont.load_default(letters), round(letters * 1.5)
    top = gap + (line if headings else 0)
    row_step = height + gap + (line if captions else 0)
    columns = max(len(headings), *map(len, rows))
    sheet = Image.new("RGB", (gap + columns * (width + gap), top + len(rows) * row_step), "white")
    draw = ImageDraw.Draw(sheet)
    for column, heading in enumerate(headings):
        draw.text((gap + column * (width + gap), gap), heading, fill="black", font=font)
    for index, row in enumerate(rows):
        for column, cell in enumerate(row):
            sheet.paste(Image.fromarray(cell), (gap + column * (width + gap), top + index * row_step))
    for index, caption in enumerate(captions):
        draw.text((gap, top + index * row_step + height), caption, fill="black", font=font)
    return np.array(sheet)


def _decode(source: Source, convert: Callable[[Image.Image], Image.Image]) -> Rgb:
    image = _open(source)
    try:
        image.load()
        return np.array(convert(ImageOps.exif_transpose(image)))
    except Exception as error:  # Pillow raises nearly any type at a broken file
        raise PictureError(f"{_name(source)}: broken picture ({error}); replace the file or remove it") from error


def _open(source: Source) -> Image.Image:
    """The picture with its header read and judged, its pixels not yet decoded."""
    image = source if isinstance(source, Image.Image) else _read_header(source)
    width, height = image.size
    if width * height > LARGEST_AREA:
        raise PictureError(
            f"{_name(source)}: {width}x{height} pixels are more than {LARGEST_AREA:,}; make it smaller first"
        )
    if min(width, height) < SMALLEST_SIDE or max(width, height) > LARGEST_ASPECT * min(width, height):
        raise PictureError(
            f"{_name(source)}: {width}x{height} pixels; expected sides of at least {SMALLEST_SIDE} and no side more "
            f"than {LARGEST_ASPECT} times the other; crop it or remove it"
        )
    return image


def _read_header(source: Path | str | bytes) -> Image.Image:
    try:
        return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise PictureError(
            f"{_name(source)}: no picture that can be read; expected {', '.join(FORMATS)}; convert it or remove it"
        ) from error
    except Exception as error:  # a bomb, or nearly any type at a broken header
        if isinstance(error, OSError) and error.strerror:  # the system's word, not Pillow's
            raise PictureError(f"{_name(source)}: {error.strerror.lower()}; check the path") from error
        raise PictureError(f"{_name(source)}: broken header ({error}); replace the file or remove it") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        eight_bits = np.clip(np.rint(np.asarray(image) / SIXTEEN_BITS), 0, 255).astype(np.uint8)
        return Image.fromarray(eight_bits).convert("RGB")
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), with_alpha).convert("RGB")
    if image.mode == "CMYK" and "icc_profile" in image.info:
        return _from_cmyk(image)
    return image.convert("RGB")


def _to_rgba(image: Image.Image) -> Image.Image:
    return (image if image.has_transparency_data else _to_rgb(image)).convert("RGBA")


def _from_cmyk(image: Image.Image) -> Image.Image:
    """CMYK says colours only together with its profile."""
    profile = ImageCms.ImageCmsProfile(BytesIO(image.info["icc_profile"]))
    converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None  # None only when converting in place
    return converted


def _name(source: Source) -> str:
    if isinstance(source, bytes):
        return "picture in memory"
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "")) or "picture in memory"
    return str(source)
