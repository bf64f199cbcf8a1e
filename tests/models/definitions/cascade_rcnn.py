"""Cascade R-CNN: three box heads, each on the boxes of the one before, over torchvision's Faster R-CNN."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FasterRCNN, TwoMLPHead
from torchvision.ops import batched_nms, clip_boxes_to_image

__all__ = ["cascade_rcnn_resnet50_fpn"]

# How far a stage moves boxes: each is trained for better proposals than the one before.
_BOX_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))


class _BoxHead(nn.Module):
    """Scores of all classes, background first, and one correction of the box for all classes together."""

    def __init__(self, into: int, classes: int) -> None:
        super().__init__()
        self.features = TwoMLPHead(into, 1024)
        self.cls_score = nn.Linear(1024, classes)
        self.bbox_pred = nn.Linear(1024, 4)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(pooled)
        return self.cls_score(features), self.bbox_pred(features)


class _CascadeHeads(nn.Module):
    """Takes the place of torchvision's ``RoIHeads`` at inference, for one image."""

    def __init__(
        self, pool: nn.Module, classes: int, score_thresh: float, nms_thresh: float, most: int
    ) -> None:
        super().__init__()
        self.pool = pool
        self.heads = nn.ModuleList(_BoxHead(256 * 7 * 7, classes) for _ in _BOX_WEIGHTS)
        self.coders = [BoxCoder(weights) for weights in _BOX_WEIGHTS]
        self.classes = classes
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.most = most

    def forward(
        self,
        features: OrderedDict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Any]]:
        (boxes,), (image_shape,) = proposals, image_shapes
        scores = []
        for head, coder in zip(self.heads, self.coders, strict=True):
            logits, deltas = head(self.pool(features, [boxes], image_shapes))
            boxes = clip_boxes_to_image(coder.decode_single(deltas, boxes), image_shape)
            scores.append(functional.softmax(logits, dim=-1))
        return [self._detections(boxes, torch.stack(scores).mean(0))], {}

    def _detections(self, boxes: Tensor, scores: Tensor) -> dict[str, Tensor]:
        foreground = scores[:, 1:]
        rows, columns = torch.where(foreground > self.score_thresh)
        boxes, labels, scores = boxes[rows], columns + 1, foreground[rows, columns]
        kept = batched_nms(boxes, scores, labels, self.nms_thresh)[: self.most]
        return {"boxes": boxes[kept], "labels": labels[kept], "scores": scores[kept]}


def cascade_rcnn_resnet50_fpn(classes: int = 91, **options: Any) -> FasterRCNN:
    """Cascade R-CNN with a ResNet-50 feature pyramid; inference only.

    Args:
        classes: Number of classes, the background included.
        options: For torchvision's ``fasterrcnn_resnet50_fpn``.
    """
    model = fasterrcnn_resnet50_fpn(weights=None, num_classes=classes, **options)
    plain = model.roi_heads
    model.roi_heads = _CascadeHeads(
        plain.box_roi_pool, classes, plain.score_thresh, plain.nms_thresh, plain.detections_per_img
    )
    return model
