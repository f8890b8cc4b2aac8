"""What is known of the public controls, whose files say nothing of themselves: recognised by how they are named."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from controlnet.checkpoints.control_metadata import ControlMetadata
from controlnet.checkpoints.model_table import CONDITIONS, FIRST, SD21, SECOND

LINES, DEPTHS, OTHERS = "light on dark", "near is light", "none"  # as the annotators say it
POLARITIES = {"depth": DEPTHS, **dict.fromkeys("canny hed mlsd scribble lineart lineart_anime".split(), LINES)}
WORDS = {*FIRST, *SECOND, *SD21}  # in the names of public controls

# by word, where a public control wants something else than RGB hints, each place of the picture for itself
FIRST_RELEASE = {"normal": {"channel_order": "BGR"}}  # normals from MiDaS' depth: shown (x, y, z), fed (z, y, x)
LATER = {"shuffle": {"averaged": True}}
Exceptions = Mapping[str, Mapping[str, Any]]
# how publishers name their files and repositories, the word captured
PUBLISHED: dict[str, Exceptions] = {
    r"control_sd15_(\w+)": FIRST_RELEASE,  # lllyasviel/ControlNet
    r"sd_controlnet_(\w+)": FIRST_RELEASE,  # the same as diffusers folders
    r"control_([a-z]+)": FIRST_RELEASE,  # the same, extracted for web apps
    r"control_v11\w*?_sd(?:15|15s2|21)_(\w+)": LATER,  # lllyasviel/ControlNet-v1-1, thibaud/controlnet-sd21
    r"controlnet_sd21_(\w+)_diffusers": LATER,
    r"controlnet_(\w+)_sdxl_1_0(?:_mid|_small)?": LATER,
    r"diffusers_xl_([a-z]+)_(?:full|mid|small)": LATER,  # the same, renamed for web apps
}
DECORATION = r"_(fp16|fp32|bf16|pruned|ema)$"  # what repackers append
PLACES = 4  # how far up the names are looked at: repository/snapshots/revision/file in the hub's cache


def with_convention(metadata: ControlMetadata, path: Path) -> ControlMetadata:
    """`metadata` with what is known of a public control by the name of its file, folder or repository, if it is one."""
    for part in reversed(path.parts[-PLACES:]):
        if known := _known(part):
            return replace(metadata, **known)
    return metadata


def _known(name: str) -> dict[str, Any] | None:
    stem = re.sub(r"\.(safetensors|ckpt|pth|pt|bin)$", "", name).rpartition("--")[2]
    word = re.sub(r"[-.]", "_", stem.lower())
    while (shorter := re.sub(DECORATION, "", word)) != word:
        word = shorter
    for pattern, exceptions in PUBLISHED.items():
        found = re.fullmatch(pattern, word)
        if found and found[1] in WORDS:
            condition = CONDITIONS.get(found[1], found[1])
            polarity = POLARITIES.get(condition, OTHERS)
            return {"condition": condition, "polarity": polarity, **exceptions.get(found[1], {})}
    return None
