"""The annotators' weights: one table, one way to find, verify and read them.

A file is looked for in the folder of weights (`--weights-dir`), then in the hub's cache, then on the hub. Published
pickles are read by the tensor-only reader, models of transformers from their folders; nothing of a file is executed.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from controlnet.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Network = TypeVar("Network", bound="nn.Module")


@dataclass(frozen=True)
class Weights:
    """Where weights are published and under which terms."""

    repository: str
    """Of the hub."""
    file: str | None
    """Within the repository; None is a whole model of transformers: its config and weights."""
    licence: str
    size: int | None = None
    """Of the file in bytes, where known."""
    sha256: str | None = None
    """Of the file, where known: the name of its blob on the hub."""
    revision: str = "main"
    is_commercial: bool = True
    """Whether the licence lets one earn money with it."""
    unused: str = "^$"
    """Pattern of weights that the model has in transformers but never uses, so that published files lack them."""

    def __str__(self) -> str:
        return f"{self.repository}/{self.file}" if self.file else self.repository


ORIGINALS, ORIGINALS_REVISION = "lllyasviel/Annotators", "982e7edaec38759d914a963c48c4726685de7d96"
NON_COMMERCIAL = "OpenPose's own licence, academic and non-commercial use only"


def _original(file: str, licence: str, size: int | None, sha256: str, is_commercial: bool = True) -> Weights:
    return Weights(ORIGINALS, file, licence, size, sha256, ORIGINALS_REVISION, is_commercial)


# the repository of the originals states no licences: those of the works that the weights come from
WEIGHTS = {
    "hed": _original(
        "ControlNetHED.pth",
        "Apache-2.0",
        29_444_406,
        "5ca93762ffd68a29fee1af9d495bf6aab80ae86f08905fb35472a083a4c7a8fa",
    ),
    "mlsd": _original(
        "mlsd_large_512_fp32.pth",
        "Apache-2.0",
        6_341_481,
        "5696f168eb2c30d4374bbfd45436f7415bb4d88da29bea97eea0101520fba082",
    ),
    "lineart": _original(
        "sk_model.pth",
        "MIT",
        17_173_511,
        "c686ced2a666b4850b4bb6ccf0748031c3eda9f822de73a34b8979970d90f0c6",
    ),
    "lineart_coarse": _original(
        "sk_model2.pth",
        "MIT",
        17_173_511,
        "30a534781061f34e83bb9406b4335da4ff2616c95d22a585c1245aa8363e74e0",
    ),
    "lineart_anime": _original(
        "netG.pth",
        "MIT",
        217_631_959,
        "ccabdcc3f5cf3c07cf65d58776acb21df7dfda825cdc70c9766a93fd62bfc488",
    ),
    "openpose_body": _original(
        "body_pose_model.pth",
        NON_COMMERCIAL,
        None,
        "25a948c16078b0f08e236bda51a385d855ef4c153598947c28c0d47ed94bb746",
        is_commercial=False,
    ),
    "openpose_hand": _original(
        "hand_pose_model.pth",
        NON_COMMERCIAL,
        None,
        "b76b00d1750901abd07b9f9d8c98cc3385b8fe834a26d4b4f0aad439e75fc600",
        is_commercial=False,
    ),
    "dpt_hybrid": Weights(
        "Intel/dpt-hybrid-midas", None, "Apache-2.0", unused=r"neck\.fusion_stage\.layers\.0\.residual_layer1\."
    ),
    "depth_anything": Weights(
        "depth-anything/Depth-Anything-V2-Small-hf",
        None,
        "Apache-2.0",
        revision="5426e4f0f36572d16453bbda7a8389317b1bef99",
    ),
    "upernet": Weights("openmmlab/upernet-convnext-small", None, "MIT"),
    "person_detector": Weights("PekingU/rtdetr_r50vd_coco_o365", None, "Apache-2.0"),
    "vitpose": Weights("usyd-community/vitpose-base-simple", None, "Apache-2.0"),
    "tipsv2": Weights("google/tipsv2-b14-dpt", None, "Apache-2.0"),
}

MODEL_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is published is taken


def find(name: str, weights_dir: Path | None = None) -> Path:
    """The verified file of the weights called `name`. UserError where it cannot be had, or the hub's is another file.

    In the user's own folder another file may be meant, trained or converted there: that it is another is said aloud.
    """
    from controlnet.checkpoints.models import sha256

    weights = WEIGHTS[name]
    assert weights.file, f"{name} is a whole model: find_model"
    _say_terms(name)
    own = _in_folder(weights, weights_dir)
    path = own or _from_hub(weights, weights.file)
    if weights.sha256 and (found := sha256(path)) != weights.sha256:
        other = f"{path} is not the published {weights}: its SHA-256 is {found}, expected {weights.sha256}"
        if own is None:
            raise UserError(f"{other}; it is cut off or another version: remove it, then run this again")
        _say(f"{other}; it is used as it is")
    return path


def find_model(name: str, weights_dir: Path | None = None) -> Path:
    """The folder of the model of transformers called `name`, which has its config and weights. UserError if not."""
    weights = WEIGHTS[name]
    assert weights.file is None, f"{name} is a file: find"
    _say_terms(name)
    if folder := _in_folder(weights, weights_dir):
        return folder
    config = _from_hub(weights, "config.json")
    for file in MODEL_WEIGHTS:
        with suppress(UserError):
            return _from_hub(weights, file).parent
    raise UserError(f"{weights} has none of {', '.join(MODEL_WEIGHTS)} in {config.parent}; {_remedy(weights)}")


def load_network(
    network: Network,
    name: str,
    weights_dir: Path | None = None,
    translate: Callable[[Mapping[str, "Tensor"]], Mapping[str, "Tensor"]] = dict,
) -> Network:
    """The network with the weights called `name`, ready to be used: evaluating, without gradients.

    `translate` gives the file's tensors the names of ours. UserError if they are not the network's tensors.
    """
    from controlnet.checkpoints.strict import check_fit
    from controlnet.checkpoints.tensor_file import open_tensors

    path = find(name, weights_dir)
    tensors = translate(open_tensors(path).tensors)
    check_fit(str(path), tensors, network.state_dict())
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)


def load_model(kind: Any, name: str, weights_dir: Path | None = None, dtype: "torch.dtype | None" = None) -> Any:
    """The model of transformers called `name`, an instance of its class `kind`, evaluating and without gradients.

    UserError for files that are broken or lack weights.
    """
    return open_model(kind, find_model(name, weights_dir), dtype, WEIGHTS[name].unused)


def open_model(kind: Any, folder: Path, dtype: "torch.dtype | None" = None, unused: str = "^$") -> Any:
    """The model of transformers in a folder, an instance of its class `kind` (or of what an automatic class finds),
    evaluating and without gradients; weights whose names match `unused` may be missing.

    UserError for files that are broken or lack weights.
    """
    import torch
    from transformers import AutoConfig

    from controlnet.checkpoints.parts import reading
    from controlnet.checkpoints.tensor_file import open_tensors

    options: dict[str, Any] = {"dtype": dtype or torch.float32, "output_loading_info": True, "local_files_only": True}
    with reading(folder, kind.__name__):
        if any(folder.glob("*.safetensors")):
            model, report = kind.from_pretrained(folder, use_safetensors=True, **options)
        else:
            tensors = dict(open_tensors(folder / MODEL_WEIGHTS[-1]).tensors)
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            model, report = kind.from_pretrained(None, config=config, state_dict=tensors, **options)
    unread = (*report["missing_keys"], *report["mismatched_keys"])
    if missing := [key for key in unread if not re.match(unused, str(key))]:
        names = ", ".join(map(str, missing[:3]))
        raise UserError(
            f"{folder}: {len(missing)} weights are missing or of another shape ({names}); replace its files"
        )
    return model.eval().requires_grad_(False)


def _in_folder(weights: Weights, folder: Path | None) -> Path | None:
    """In the user's folder: as the file (or model) alone, or under its repository's name as the hub has it."""
    if folder is None:
        return None
    if not folder.is_dir():
        raise UserError(f"--weights-dir {folder} is no folder; expected one that holds {weights.file or weights}")
    names = [weights.file, str(weights)] if weights.file else [weights.repository.split("/")[-1], weights.repository]
    return next((folder / name for name in names if (folder / name).exists()), None)


def _from_hub(weights: Weights, file: str) -> Path:
    """A file of the repository, from the hub's cache or else from the hub, which draws a progress bar."""
    from huggingface_hub import try_to_load_from_cache

    from controlnet.checkpoints.hub import hub_file

    for revision in (weights.revision, "main"):
        cached = try_to_load_from_cache(weights.repository, file, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    try:
        return hub_file(weights.repository, file, weights.revision)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{weights.repository}/{file} is not in the hub's cache and the hub does not give it ({reason}); "
            + _remedy(weights)
        ) from error


def _remedy(weights: Weights) -> str:
    if weights.file is None:
        return (
            f"where the hub can be reached, run `hf download {weights.repository} --local-dir "
            f"FOLDER/{weights.repository.split('/')[-1]}`, copy FOLDER here and give it by --weights-dir FOLDER"
        )
    size = f" ({weights.size / 1e6:.0f} MB)" if weights.size else ""
    return (
        f"where the hub can be reached, run `hf download {weights.repository} {weights.file} --local-dir FOLDER`"
        f"{size}, copy FOLDER here and give it by --weights-dir FOLDER, which then holds FOLDER/{weights.file}"
    )


@cache
def _say_terms(name: str) -> None:
    """Once, aloud, if money may not be earned with the weights."""
    if not WEIGHTS[name].is_commercial:
        _say(f"weights {WEIGHTS[name]}: {WEIGHTS[name].licence}")


def _say(warning: str) -> None:
    from rich.console import Console

    Console(stderr=True, soft_wrap=True).print(warning, style="yellow", markup=False)
