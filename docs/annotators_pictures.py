"""Make the pictures of annotators.md: two photographs beside their hints, for every annotator without a network.

    python docs/annotators_pictures.py

The photographs are in scikit-image's package and in the public domain (CC0): a cup of coffee by Rachel Michetti, the
cat Chelsea by Stefan van der Walt; the drawing of a horse by Andreas Preuss.
"""

from pathlib import Path

import cv2
import numpy as np
import skimage.data
from PIL import Image

from controlnet.annotators.annotator import Annotator, NetworkAnnotator
from controlnet.annotators.canny import Canny
from controlnet.annotators.inpaint import Inpaint
from controlnet.annotators.table import ANNOTATORS, load
from controlnet.annotators.tile import Tile
from controlnet.images import Rgb, grid, three_channels

HERE = Path(__file__).parent / "annotators"
HEIGHT, QUALITY = 180, 80
COFFEE, CAT = skimage.data.coffee(), skimage.data.chelsea()
OUTLINE = cv2.dilate(Canny()(np.where(skimage.data.horse(), 255, 0).astype(np.uint8)), np.ones((5, 5)))
SHOWN: dict[str, Annotator] = {"tile": Tile(down=8), "inpaint": Inpaint(share=0.2)}  # others with their defaults
PICTURES = {"scribble": (255 - OUTLINE, OUTLINE)}  # others: coffee and cat


def sheet(condition: str) -> Rgb:
    """Picture, hint, picture, hint."""
    annotator = SHOWN.get(condition) or load(condition)()
    pictures = PICTURES.get(condition, (COFFEE, CAT))
    cells = [cell for picture in pictures for cell in (picture, three_channels(annotator(picture)))]
    return grid([[small(cell) for cell in cells]])


def small(rgb: Rgb) -> Rgb:
    image = Image.fromarray(rgb)
    return np.asarray(image.resize((round(HEIGHT * image.width / image.height), HEIGHT), Image.Resampling.LANCZOS))


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for condition in ANNOTATORS:
        if not issubclass(load(condition), NetworkAnnotator) and condition != "none":
            Image.fromarray(sheet(condition)).save(HERE / f"{condition}.webp", quality=QUALITY, method=6)
