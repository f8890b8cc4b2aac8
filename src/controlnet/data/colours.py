"""The 140 named colours of HTML, in words, and how far apart two colours look."""

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

# HTML's 140 colour names (CSS 3 without the seven "grey" spellings), written as words as in "pale golden rod".
NAMES: tuple[str, ...] = tuple(
    name.strip()
    for name in """
    alice blue, antique white, aqua, aquamarine, azure, beige, bisque, black, blanched almond, blue, blue violet,
    brown, burly wood, cadet blue, chartreuse, chocolate, coral, cornflower blue, cornsilk, crimson, cyan, dark blue,
    dark cyan, dark golden rod, dark gray, dark green, dark khaki, dark magenta, dark olive green, dark orange,
    dark orchid, dark red, dark salmon, dark sea green, dark slate blue, dark slate gray, dark turquoise, dark violet,
    deep pink, deep sky blue, dim gray, dodger blue, fire brick, floral white, forest green, fuchsia, gainsboro,
    ghost white, gold, golden rod, gray, green, green yellow, honey dew, hot pink, indian red, indigo, ivory, khaki,
    lavender, lavender blush, lawn green, lemon chiffon, light blue, light coral, light cyan, light golden rod yellow,
    light gray, light green, light pink, light salmon, light sea green, light sky blue, light slate gray,
    light steel blue, light yellow, lime, lime green, linen, magenta, maroon, medium aquamarine, medium blue,
    medium orchid, medium purple, medium sea green, medium slate blue, medium spring green, medium turquoise,
    medium violet red, midnight blue, mint cream, misty rose, moccasin, navajo white, navy, old lace, olive,
    olive drab, orange, orange red, orchid, pale golden rod, pale green, pale turquoise, pale violet red, papaya whip,
    peach puff, peru, pink, plum, powder blue, purple, red, rosy brown, royal blue, saddle brown, salmon, sandy brown,
    sea green, sea shell, sienna, silver, sky blue, slate blue, slate gray, snow, spring green, steel blue, tan, teal,
    thistle, tomato, turquoise, violet, wheat, white, white smoke, yellow, yellow green
    """.split(",")
)

RGB: dict[str, tuple[int, int, int]] = {name: ImageColor.getrgb(name.replace(" ", ""))[:3] for name in NAMES}


def difference(first: NDArray[np.generic], second: NDArray[np.generic]) -> NDArray[np.float64]:
    """CIEDE2000 between RGB colours (..., 3) in [0, 255]; about 2 is just visible, 10 is "another shade".

    Source: Sharma, Wu and Dalal 2005, by way of scikit-image.
    """
    from skimage.color import deltaE_ciede2000, rgb2lab

    lab = [rgb2lab(np.asarray(colour, dtype=np.float64) / 255) for colour in (first, second)]
    return np.asarray(deltaE_ciede2000(*lab), dtype=np.float64)
