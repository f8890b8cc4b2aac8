"""A whole base in one file, as the original's authors and the community save it; read and written.

Every tensor is accounted for: it belongs to the U-Net, the VAE or a text encoder by `ldm`'s and `text_encoders`'
tables, or a rule of `PASSED_OVER` says why nobody needs it; anything else is an error that names it.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTokenizer

from controlnet.checkpoints import architecture, ldm, text_encoders
from controlnet.checkpoints.architecture import InFile, Told
from controlnet.checkpoints.contents import Contents, Family, recognise, wrong_kind
from controlnet.checkpoints.parts import BaseParts, filled, structure, vae_dtype
from controlnet.checkpoints.tensor_file import TensorFile, open_tensors
from controlnet.checkpoints.text_encoders import TEXT_ENCODERS, TextEncoder
from controlnet.checkpoints.tokenizer import find_tokenizers, packed
from controlnet.choices import Prediction
from controlnet.errors import UserError

SCHEDULE = (  # the buffers of Ho et al. 2020 that the original keeps, float32 (timesteps,)
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"),
    *("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"),
    *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
    "logvar",  # of a loss with learned weights, which is not used
)
AVERAGED, VELOCITY, ZERO_SNR = "model_ema.", "v_pred", "ztsnr"
# tensors that no model of ours has -> why none needs them; a name must match from its beginning
PASSED_OVER = {
    rf"({'|'.join(SCHEDULE)}|lvlb_weights|denoiser\.sigmas)$": "the noise schedule, which follows from its two ends",
    rf"({VELOCITY}|{ZERO_SNR})$": "an empty mark of what the base predicts",
    r"(cond_stage_model|conditioner)\..*\bposition_ids$": "0, 1, 2, ...",
    r"(cond_stage_model|conditioner)\..*\blogit_scale$": "for comparing texts with pictures",
    r"(cond_stage_model|conditioner\.embedders\.0)\.(transformer\.)?text_projection(\.weight)?$": "likewise",
    re.escape(AVERAGED): "averaged weights, which `ema` takes instead of the U-Net's",
    r"control_model\.": "a ControlNet that is attached to this base",
    r"first_stage_model\.loss\.": "what the VAE was trained with",
    r"embedding_manager\.": "textual inversion, of a fine-tuning that ended",
}


def load_base_file(
    path: Path,
    dtype: torch.dtype | None,
    ema: bool = False,
    tokenizer: Path | str | None = None,
    prediction: Prediction | None = None,
) -> BaseParts:
    """A base from a single file of SD 1.x, 2.x or SDXL, safetensors or pickled, in `dtype` or, if None, as saved.

    In float16 the VAE stays in float32. What is in its precision already stays a view of the file, which must be left
    whole; the rest is cast tensor by tensor. `ema`, `tokenizer` and `prediction` as in `base.open_base`. UserError
    names what is missing, left over or not to be told.
    """
    file = open_tensors(path)
    contents = recognise(file.tensors, file.metadata, file.others)
    _check_whole(path, contents)
    try:
        return _load(file, contents, dtype, ema, tokenizer, prediction)
    except UserError as error:
        raise UserError(f"base {path}: {error}") from error


def _check_whole(path: Path, contents: Contents) -> None:
    if contents.kind not in ("base", "base with control") or contents.family is None:
        raise UserError(wrong_kind(path, contents, "a base"))
    wanted = ("unet", "vae", *("text_encoder", "text_encoder_2")[: len(TEXT_ENCODERS[contents.family])])
    if missing := [part.replace("_", " ") for part in wanted if part not in contents.parts]:
        raise UserError(
            f"{path}: {contents.title} without its {' and '.join(missing)}; expected a whole base; take a file that "
            "holds all of it"
        )


def _load(
    file: TensorFile,
    contents: Contents,
    dtype: torch.dtype | None,
    ema: bool,
    tokenizer: Path | str | None,
    prediction: Prediction | None,
) -> BaseParts:
    assert contents.family is not None
    encoders = TEXT_ENCODERS[contents.family]
    tensors = text_encoders.usual_names(needed(file.tensors))
    _check_known(tensors, [ldm.UNET.prefix, ldm.VAE.prefix, *(encoder.part.prefix for encoder in encoders)])
    heard = [text_encoders.heard(encoder, tensors) for encoder in encoders]
    if ema:
        tensors |= averaged(file.tensors)
    told = Told.by(file.header)
    tokenizers = find_tokenizers(tokenizer, encoders, told.tokenizers)
    parts = _structures(contents.family, _said(prediction, contents), tensors, heard, tokenizers, told)
    if ZERO_SNR in file.tensors:
        parts.scheduler_config["rescale_betas_zero_snr"] = True
    parts.check()
    filled(parts.unet, ldm.from_ldm(ldm.UNET, tensors, parts.unet), dtype)
    filled(parts.vae, ldm.from_ldm(ldm.VAE, tensors, parts.vae), vae_dtype(dtype))
    for encoder, its_tensors, text in zip(encoders, heard, parts.text_encoders, strict=True):
        filled(text, text_encoders.from_ldm(encoder, its_tensors, text), dtype)
    return parts


def _said(by_user: Prediction | None, by_file: Contents) -> Prediction:
    prediction = by_user or by_file.prediction
    if prediction is None:
        raise UserError(
            "nothing in it tells whether it predicts noise or velocity, as with many files of SD 2.x; say --prediction "
            "v_prediction (2.0, 2.1 and most made from them: 768 pixels) or epsilon (2-base, 2.1-base: 512 pixels)"
        )
    return prediction


def _structures(
    family: Family,
    prediction: Prediction,
    tensors: Mapping[str, Tensor],
    heard: Sequence[Mapping[str, Tensor]],
    tokenizers: list[CLIPTokenizer],
    told: Told,
) -> BaseParts:
    """Models without weights for a single file's tensors, `heard` being those of each text encoder."""
    texts_told = [*told.text_encoders, *[{}] * len(heard)][: len(heard)]
    each = zip(TEXT_ENCODERS[family], heard, tokenizers, texts_told, strict=True)
    configs = [text_config(*its) for its in each]
    texts = [
        structure(it.kind, config, "its text encoder")
        for it, config in zip(TEXT_ENCODERS[family], configs, strict=True)
    ]
    unet_tensors, vae_tensors = InFile(ldm.UNET.prefix, tensors), InFile(ldm.VAE.prefix, tensors)
    unet_config = architecture.unet_config(unet_tensors, family, prediction, configs[-1]["projection_dim"], told.unet)
    unet = structure(UNet2DConditionModel, unet_config, "its U-Net")
    vae = structure(AutoencoderKL, architecture.vae_config(vae_tensors, family, told.vae), "its VAE")
    scheduler_config = {**(told.scheduler or architecture.scheduler_config(family)), "prediction_type": prediction}
    return BaseParts(unet, vae, texts, tokenizers, scheduler_config, family)


def needed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is left of a single file after the rules of `PASSED_OVER`."""
    rule = re.compile("|".join(PASSED_OVER))
    return {name: tensor for name, tensor in tensors.items() if not rule.match(name)}


def averaged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A single file's averaged weights (EMA) under the names of the U-Net's own; UserError if it lacks any."""
    names = {
        name: AVERAGED + name.removeprefix("model.").replace(".", "")
        for name in tensors
        if name.startswith(ldm.UNET.prefix)
    }
    if missing := sorted(set(names.values()) - tensors.keys()):
        found = len(names) - len(missing)
        raise UserError(
            f"{found} of {len(names)} averaged weights are in it, {missing[0]} is not; leave out --ema, or take a file "
            "that holds them, mostly twice as large and called ema"
        )
    return {name: tensors[theirs] for name, theirs in names.items()}


def _check_known(tensors: Mapping[str, Tensor], prefixes: Sequence[str]) -> None:
    if unknown := sorted(name for name in tensors if not name.startswith(tuple(prefixes))):
        raise UserError(
            f"{len(unknown)} tensors belong to no part of such a base: {', '.join(unknown[:10])}"
            f"{' ...' if unknown[10:] else ''}; take another copy of it, or a file without additions"
        )


def text_config(
    encoder: TextEncoder, tensors: Mapping[str, Tensor], tokenizer: CLIPTokenizer, told: Mapping[str, Any]
) -> dict[str, Any]:
    """Of the model that `encoder` is to us. UserError unless its vocabulary is the tokenizer's."""
    numbers = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    read = architecture.openclip_config if encoder.is_openclip else architecture.clip_config
    config = read(InFile(encoder.part.prefix, tensors), {**numbers, **told})
    if len(tokenizer) != config["vocab_size"]:
        raise UserError(
            f"its text encoder knows {config['vocab_size']} tokens, the tokenizer {len(tokenizer)}; give the folder of "
            "the tokenizer that it was trained with: --tokenizer FOLDER"
        )
    return config


def base_to_ldm(parts: BaseParts) -> dict[str, Tensor]:
    """All tensors of a single file that the original loads strictly: its names, its buffers, its stand-ins.

    Views of the models' weights where the original keeps them alike.
    """
    tensors = ldm.to_ldm(ldm.UNET, parts.unet) | ldm.to_ldm(ldm.VAE, parts.vae)
    for encoder, model in zip(TEXT_ENCODERS[parts.family], parts.text_encoders, strict=True):
        tensors |= text_encoders.to_ldm(encoder, model)
    return tensors | (marks(parts) if parts.family == "sdxl" else schedule(parts.scheduler_config))


def base_metadata(parts: BaseParts) -> dict[str, str]:
    """What a safetensors header must say, so that the file of any base, however narrow, opens again as it was."""
    told = architecture.told_of(
        parts.unet.config,
        parts.vae.config,
        [encoder.config.to_dict() for encoder in parts.text_encoders],
        parts.scheduler_config,
        packed(parts.tokenizers),
    )
    return told.to_header(parts.prediction)


def marks(parts: BaseParts) -> dict[str, Tensor]:
    """By which fine-tunes of SDXL say what they predict: empty tensors."""
    is_marked = {
        VELOCITY: parts.prediction == "v_prediction",
        ZERO_SNR: parts.scheduler_config.get("rescale_betas_zero_snr", False),
    }
    return {name: torch.empty(0) for name, it in is_marked.items() if it}


def schedule(scheduler_config: Mapping[str, Any]) -> dict[str, Tensor]:
    """`SCHEDULE`: what follows from the betas (Ho et al. 2020, sections 2 and 3), computed in float64."""
    betas = _betas(scheduler_config)
    signal = np.cumprod(1 - betas)
    before = np.append(1.0, signal[:-1])
    variance = betas * (1 - before) / (1 - signal)
    values = (
        *(betas, signal, before, np.sqrt(signal), np.sqrt(1 - signal)),
        *(np.log(1 - signal), np.sqrt(1 / signal), np.sqrt(1 / signal - 1)),
        *(variance, np.log(np.maximum(variance, 1e-20)), betas * np.sqrt(before) / (1 - signal)),
        *((1 - before) * np.sqrt(1 - betas) / (1 - signal), np.zeros_like(betas)),
    )
    return {name: torch.from_numpy(value).float() for name, value in zip(SCHEDULE, values, strict=True)}


def _betas(config: Mapping[str, Any]) -> NDArray[np.float64]:
    if config.get("beta_schedule") == "scaled_linear" and config.get("trained_betas") is None:
        ends = config["beta_start"] ** 0.5, config["beta_end"] ** 0.5
        return np.linspace(*ends, config["num_train_timesteps"], dtype=np.float64) ** 2
    betas: NDArray[np.float64] = DDPMScheduler.from_config(config).betas.double().numpy()
    return betas
