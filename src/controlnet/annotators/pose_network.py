"""People by networks of transformers: RT-DETR finds them (Zhao et al. 2024), ViTPose their joints (Xu et al. 2022)."""

# b pictures, n people, q queries, h w size of a picture
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import RTDetrForObjectDetection, VitPoseForPoseEstimation

from controlnet.annotators.heatmaps import Box, crop, keypoints, window_around
from controlnet.annotators.pixels import IMAGENET, UNIT, normalised
from controlnet.annotators.tensors import run
from controlnet.annotators.weights import load_model

DETECTOR_SIDE = 640  # pixels, of the stretched pictures that RT-DETR was trained on
PERSON = 0  # of COCO's classes


class PersonDetector(nn.Module):
    """Pictures -> the boxes of people."""

    def __init__(self, weights_dir: Path | None):
        super().__init__()
        self.model = load_model(RTDetrForObjectDetection, "person_detector", weights_dir)

    def find(self, pictures_bhwc: NDArray[np.uint8], threshold: float) -> list[list[Box]]:
        """The boxes in each picture with a score above the threshold, surest first."""
        height, width = pictures_bhwc.shape[1:3]
        squares = np.stack([cv2.resize(rgb, (DETECTOR_SIDE, DETECTOR_SIDE)) for rgb in pictures_bhwc])
        found_bq5 = run(self, normalised(squares, UNIT))
        found_bq5[..., :4] *= [width, height, width, height]
        surest_first = [found[np.argsort(-found[:, 4], kind="stable")] for found in found_bq5]
        return [[Box(*map(float, row[:4])) for row in found if row[4] > threshold] for found in surest_first]

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Squares in [0, 1] -> (b, q, 5) left, top, right, bottom in [0, 1], score."""
        found = self.model(x_bchw)
        centre, size = found.pred_boxes.float().split(2, dim=-1)
        corners = torch.cat([centre - size / 2, centre + size / 2], dim=-1).clamp(0, 1)
        return torch.cat([corners, found.logits[..., PERSON, None].float().sigmoid()], dim=-1)


class PoseNetwork(nn.Module):
    """Pictures and boxes -> COCO's 17 keypoints of the person in each box."""

    def __init__(self, weights_dir: Path | None):
        super().__init__()
        self.model = load_model(VitPoseForPoseEstimation, "vitpose", weights_dir)
        height, width = self.model.config.backbone_config.image_size
        self.size = (width, height)

    def find(self, pictures_nhwc: NDArray[np.uint8], boxes: Sequence[Box]) -> NDArray[np.float32]:
        """One box in each picture -> (n, 17, 3) x, y in pixels, score."""
        if not boxes:
            return np.empty((0, self.model.config.num_labels, 3), dtype=np.float32)
        windows = [window_around(box, self.size[0] / self.size[1]) for box in boxes]
        crops = [crop(picture, window, self.size) for picture, window in zip(pictures_nhwc, windows, strict=True)]
        return keypoints(run(self, normalised(np.stack(crops), IMAGENET)), windows)

    def forward(self, x_nchw: Tensor) -> Tensor:
        """Normalised crops -> heatmaps (n, 17, h / 4, w / 4)."""
        heat: Tensor = self.model(x_nchw).heatmaps
        return heat
