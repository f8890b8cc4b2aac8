"""Tiny random models of the classes that annotators take from transformers, saved by transformers' own writers."""

from collections.abc import Callable
from pathlib import Path

import transformers
from transformers import PreTrainedModel
from transformers.models.rt_detr.configuration_rt_detr_resnet import RTDetrResNetConfig
from transformers.models.tipsv2.configuration_tipsv2 import Tipsv2VisionConfig
from transformers.models.vitpose_backbone.configuration_vitpose_backbone import VitPoseBackboneConfig

import tiny
from controlnet.annotators.weights import WEIGHTS

TRANSFORMER = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2)


def save(name: str, weights_dir: Path, safe: bool = True) -> Path:
    """The model that `weights.WEIGHTS` calls `name`, where `--weights-dir` has it; unsafe is a pickle, as of old."""
    folder = weights_dir / WEIGHTS[name].repository.split("/")[-1]
    model = MODELS[name]()
    model.save_pretrained(folder)
    if not safe:
        import torch

        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def dpt_hybrid() -> PreTrainedModel:
    backbone = transformers.BitConfig(
        embedding_size=8,
        hidden_sizes=[16, 16, 32],
        depths=[1, 1, 1],
        num_groups=4,
        layer_type="bottleneck",
        global_padding="same",
        embedding_dynamic_padding=True,
        out_features=["stage1", "stage2", "stage3"],
    )
    config = transformers.DPTConfig(
        is_hybrid=True,
        backbone_config=backbone,
        backbone_featmap_shape=[1, 32, 4, 4],
        backbone_out_indices=[0, 1, 2, 3],
        image_size=64,
        intermediate_size=32,
        neck_hidden_sizes=[16, 16, 16, 16],
        neck_ignore_stages=[0, 1],
        reassemble_factors=[1, 1, 1, 0.5],
        readout_type="project",
        fusion_hidden_size=32,
        **TRANSFORMER,
    )
    return randomised(transformers.DPTForDepthEstimation(config))


def depth_anything() -> PreTrainedModel:
    backbone = transformers.Dinov2Config(
        mlp_ratio=2, image_size=56, patch_size=14, out_indices=[1, 2, 3, 4], reshape_hidden_states=False, **TRANSFORMER
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    return randomised(transformers.DepthAnythingForDepthEstimation(config))


def tipsv2() -> PreTrainedModel:
    backbone = Tipsv2VisionConfig(
        intermediate_size=32,
        image_size=56,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        **TRANSFORMER,
    )
    config = transformers.Tipsv2DptConfig(
        backbone_config=backbone, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=16
    )
    return randomised(transformers.Tipsv2DptForNormalEstimation(config))


def upernet() -> PreTrainedModel:
    backbone = transformers.ConvNextConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=16, num_labels=150, auxiliary_channels=8, auxiliary_in_channels=16
    )
    return randomised(transformers.UperNetForSemanticSegmentation(config))


def person_detector() -> PreTrainedModel:
    backbone = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="bottleneck",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[16, 16, 16],
        encoder_hidden_dim=16,
        encoder_layers=1,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_in_channels=[16, 16, 16],
        decoder_layers=1,
        decoder_ffn_dim=32,
        decoder_attention_heads=2,
        d_model=16,
        num_queries=20,
        num_denoising=0,
        num_labels=80,
    )
    return randomised(transformers.RTDetrForObjectDetection(config))


def vitpose() -> PreTrainedModel:
    backbone = VitPoseBackboneConfig(
        image_size=[256, 192], patch_size=[16, 16], mlp_ratio=2, out_indices=[4], **TRANSFORMER
    )
    config = transformers.VitPoseConfig(backbone_config=backbone, num_labels=17, use_simple_decoder=True)
    return randomised(transformers.VitPoseForPoseEstimation(config))


def randomised(model: PreTrainedModel) -> PreTrainedModel:
    tiny.randomised(model)
    return model.eval().requires_grad_(False)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "dpt_hybrid": dpt_hybrid,
    "depth_anything": depth_anything,
    "tipsv2": tipsv2,
    "upernet": upernet,
    "person_detector": person_detector,
    "vitpose": vitpose,
}
