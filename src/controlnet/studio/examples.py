"""Examples: for every condition a prompt and a picture, drawn here."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from controlnet.errors import UserError
from controlnet.studio.asked import Asked, Pixels, UnitAsked
from controlnet.studio.models import Models
from controlnet.studio.units import suited

EMBEDDED_GUIDANCE = 3.0  # its edges fray at the 9 that suits Stable Diffusion


@dataclass(frozen=True)
class Example:
    """`draw` makes the picture that the condition's annotator looks at; None is text alone."""

    condition: str | None
    prompt: str
    draw: Callable[[], Pixels] | None = None

    @property
    def title(self) -> str:
        return self.condition or "no control"


def ring(x: float, y: float, radius: float) -> Callable[[], Pixels]:
    """A white ring two pixels wide on black, 128x128; in parts of the side."""

    def draw() -> Pixels:
        image = Image.new("RGB", (128, 128))
        box = [128 * it for it in (x - radius, y - radius, x + radius, y + radius)]
        ImageDraw.Draw(image).ellipse(box, outline="white", width=2)
        return np.array(image)

    return draw


def house() -> Pixels:
    """A house under a sky, 512x512."""
    image = Image.new("RGB", (512, 512), (150, 190, 225))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 360, 512, 512), fill=(110, 140, 80))
    draw.rectangle((120, 210, 392, 430), fill=(205, 185, 160))
    draw.polygon([(95, 210), (256, 90), (417, 210)], fill=(120, 70, 60))
    draw.rectangle((226, 320, 286, 430), fill=(80, 60, 50))
    for left in (150, 312):
        draw.rectangle((left, 250, left + 50, 305), fill=(235, 240, 250), outline=(90, 80, 70), width=4)
    return np.array(image)


def room() -> Pixels:
    """The corner of an empty room, 512x512."""
    image = Image.new("RGB", (512, 512), (225, 222, 215))
    draw = ImageDraw.Draw(image)
    draw.polygon([(0, 512), (0, 420), (200, 320), (512, 400), (512, 512)], fill=(150, 120, 90))
    draw.polygon([(0, 0), (200, 0), (200, 320), (0, 420)], fill=(205, 205, 210))
    draw.rectangle((290, 90, 430, 230), fill=(170, 200, 230), outline=(90, 90, 90), width=6)
    return np.array(image)


def sphere() -> Pixels:
    """A ball that the light meets from the left, 512x512."""
    y, x = (np.mgrid[:512, :512] - 256) / 150
    z = np.sqrt(np.clip(1 - x * x - y * y, 0, None))
    light = np.where(z > 0, 60 + 180 * np.clip(-0.5 * x - 0.4 * y + 0.75 * z, 0, 1), 40)
    return np.repeat(light.astype(np.uint8)[..., None], 3, axis=2)


def figure() -> Pixels:
    """Somebody who waves, 512x512: enough for a detector of poses to be tried on."""
    image = Image.new("RGB", (512, 512), (235, 232, 225))
    draw = ImageDraw.Draw(image)
    for points in ([(256, 170), (256, 320)], [(256, 190), (330, 120)], [(256, 190), (190, 280)]):
        draw.line(points, fill=(70, 90, 130), width=44)
    for foot in (215, 300):
        draw.line([(256, 315), (foot, 470)], fill=(60, 60, 70), width=40)
    draw.ellipse((216, 70, 296, 160), fill=(215, 175, 150))
    return np.array(image)


def star() -> Pixels:
    """A star in black ink on white, 512x512."""
    image = Image.new("RGB", (512, 512), "white")
    turns = [math.tau * (0.4 * number - 0.25) for number in range(6)]
    points = [(256 + 190 * math.cos(turn), 256 + 190 * math.sin(turn)) for turn in turns]
    ImageDraw.Draw(image).line(points, fill="black", width=10, joint="curve")
    return np.array(image)


EXAMPLES: tuple[Example, ...] = (
    Example("circle", "cyan circle with pink background", ring(0.62, 0.38, 0.24)),
    Example("circle", "gold circle with navy background", ring(0.4, 0.55, 0.33)),
    Example("circle", "crimson circle with light gray background", ring(0.5, 0.5, 0.18)),
    Example(None, "gold star with navy background"),
    Example("canny", "a cottage in the snow, warm light in the windows", house),
    Example("hed", "a cottage by the sea, oil painting", house),
    Example("lineart", "a cottage in a wood, ink and watercolour", house),
    Example("mlsd", "a living room in the evening sun", room),
    Example("scribble", "a starfish on wet sand", star),
    Example("pose", "an astronaut who waves", figure),
    Example("seg", "a farmhouse on a meadow", house),
    Example("depth", "a marble on a dark table, macro photograph", sphere),
    Example("normal", "an orange, studio light", sphere),
)


def available(models: Models) -> list[Example]:
    """Those for which a control is offered."""
    conditions = {models.metadata(name).condition for name in models.offer.given_controls}
    return [it for it in EXAMPLES if it.condition is None or it.condition in conditions]


def filled(example: Example, models: Models) -> Asked:
    """The tab with the example in it. UserError if no control for it is offered."""
    base = next(iter(models.offer.bases))
    is_small = base == "embedded"
    plain = Asked(prompt=example.prompt, base=base, guidance_scale=EMBEDDED_GUIDANCE if is_small else 9.0, seed=1)
    if example.condition is None:
        return plain
    for name in models.offer.given_controls:
        metadata = models.metadata(name)
        if metadata.condition == example.condition:
            assert example.draw is not None
            unit = suited(UnitAsked(control=name, picture=example.draw()), metadata)
            return Asked(**{**vars(plain), "units": (_from_picture(unit),)})
    raise UserError(f"no control for {example.condition} is offered; start the studio with --control")


def _from_picture(unit: UnitAsked) -> UnitAsked:
    return UnitAsked(**{**vars(unit), "source": "Picture"})
