"""A picture's file: PNG with all that made it, for us, for A1111's web UI, and for those who ask whether it is real.

Three texts: `controlnet`, our JSON; `parameters`, which A1111's web UI and others read; and XMP with IPTC's source type
(iptc.org, "Digital Source Type"), by which viewers and platforms tell generated pictures.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from controlnet import __version__
from controlnet.atomic import write_atomically
from controlnet.errors import UserError
from controlnet.generation.recipe import Recipe, UnitChoice
from controlnet.images import Rgb

KEY, A1111_KEY, XMP_KEY = "controlnet", "parameters", "XML:com.adobe.xmp"
SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
SAMPLERS = {  # A1111's names
    "ddim": "DDIM",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_karras": "DPM++ 2M Karras",
    "unipc": "UniPC",
    "lcm": "LCM",
}
MODES = {"balanced": "Balanced", "prompt": "My prompt is more important"}  # others: the control is
RESIZES = {"crop": "Crop and Resize", "fill": "Resize and Fill"}  # others: stretched


@dataclass(frozen=True)
class Made:
    """How a picture came about."""

    recipe: Recipe
    inputs: Mapping[str, str]
    """SHA-256 of the base's weights, and of each file that was read, by the name that the recipe has for it."""
    machine: Mapping[str, Any]
    """What else may change a grey level: device, precision, threads, versions."""
    batch: list[dict[str, Any]] = field(default_factory=list)
    """What was each picture's own in the batch that it was made in; empty if it was alone."""
    place: int = 0
    """Which of the batch it is."""
    safety: Mapping[str, Any] = field(default_factory=dict)
    """The checker, what it found, what was done."""

    def is_as(self, other: "Made") -> bool:
        """Whether the other is the same picture, but for what may change a grey level."""
        where = ("device", "dtype", "storage", "vae")
        return (
            self.recipe == other.recipe
            and self.inputs == other.inputs
            and [self.machine.get(name) for name in where] == [other.machine.get(name) for name in where]
            and self.safety.get("checker") == other.safety.get("checker")
        )

    def to_json(self) -> str:
        values = {name: value for name, value in vars(self).items() if name != "recipe" and value not in ([], {})}
        return json.dumps({"version": __version__, "recipe": self.recipe.to_json(), **values})


def write_picture(path: Path, rgb: Rgb, made: Made) -> None:
    """PNG, whole or not at all."""
    information = PngInfo()
    information.add_text(KEY, made.to_json())
    information.add_text(A1111_KEY, parameters(made, rgb.shape[1], rgb.shape[0]))
    information.add_itxt(XMP_KEY, xmp(made.recipe))
    image = Image.fromarray(rgb)
    write_atomically(path, lambda temporary: image.save(temporary, format="PNG", pnginfo=information))


def read_made(path: Path) -> Made | None:
    """How the picture at `path` was made; None if it is none of ours. UserError for a damaged one."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            text = image.info.get(KEY)
        values = json.loads(text) if isinstance(text, str) else {}
        if "recipe" not in values:
            return None
        recipe = Recipe.from_json(values.pop("recipe"), str(path))
        del values["version"]
        return Made(recipe, **values)
    except OSError:
        return None
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(f"{path}: its settings are damaged ({error}); use another copy of the file") from error


def parameters(made: Made, width: int, height: int) -> str:
    """The text of A1111's web UI: prompt, negative prompt, a line of settings."""
    recipe = made.recipe
    scale = recipe.guidance_scale[0] if recipe.guidance_scale else 1
    settings: dict[str, Any] = {
        "Steps": len(recipe.timesteps) or recipe.steps,
        "Sampler": SAMPLERS.get(recipe.scheduler, recipe.scheduler),
        "CFG scale": f"{scale:g}",
        "Seed": recipe.seed,
        "Size": f"{width}x{height}",
        "Model hash": made.inputs[recipe.base][:10],
        "Model": Path(recipe.base).stem,
    }
    if recipe.clip_skip != 1:
        settings["Clip skip"] = recipe.clip_skip
    if recipe.eta:
        settings["Eta DDIM"] = f"{recipe.eta:g}"
    if recipe.image is not None:
        settings["Denoising strength"] = f"{recipe.image_strength:g}"
    settings |= {f"ControlNet {number}": _unit(unit) for number, unit in enumerate(recipe.units)}
    settings["Version"] = f"controlnet {__version__}"
    lines = [", ".join(filter(None, (recipe.prompt, recipe.added_prompt)))]
    if recipe.negative_prompt:
        lines.append(f"Negative prompt: {recipe.negative_prompt}")
    return "\n".join([*lines, ", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items())])


def _unit(unit: UnitChoice) -> str:
    """As the ControlNet extension of A1111's web UI writes it."""
    return ", ".join(
        [
            f"Module: {unit.annotator or 'none'}",
            f"Model: {Path(unit.control).stem}",
            f"Weight: {unit.strength:g}",
            f"Resize Mode: {RESIZES.get(unit.resize, 'Just Resize')}",
            f"Guidance Start: {unit.start:g}",
            f"Guidance End: {unit.end:g}",
            f"Control Mode: {MODES.get(unit.mode, 'ControlNet is more important')}",
        ]
    )


def _quoted(value: str) -> str:
    """A1111 quotes as JSON what has commas, colons or line ends."""
    return json.dumps(value, ensure_ascii=False) if any(sign in value for sign in ",:\n") else value


def xmp(recipe: Recipe) -> str:
    """IPTC's source type: of what a model made; of a picture that one changed."""
    source = "trainedAlgorithmicMedia" if recipe.image is None else "compositeWithTrainedAlgorithmicMedia"
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        'xmlns:xmp="http://ns.adobe.com/xap/1.0/">'
        f"<Iptc4xmpExt:DigitalSourceType>{SOURCE_TYPES}{source}</Iptc4xmpExt:DigitalSourceType>"
        f"<xmp:CreatorTool>controlnet {__version__}</xmp:CreatorTool>"
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )
