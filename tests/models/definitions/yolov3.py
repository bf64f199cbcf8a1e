"""YOLOv3: Darknet-53, three heads at strides 32, 16 and 8, and the decoding of their boxes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["YoloV3"]

_CLASSES = 80
# Widths and heights in pixels, three for each of the strides 32, 16 and 8.
_ANCHORS = (
    ((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),
    ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)),
    ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)),
)


class _Conv(nn.Sequential):
    """A convolution that keeps height and width (or halves them), batch norm, leaky ReLU."""

    def __init__(self, into: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(into, out, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(out),
            nn.LeakyReLU(0.1),
        )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = _Conv(channels, channels // 2, 1)
        self.expand = _Conv(channels // 2, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expand(self.squeeze(x))


def _stage(into: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(_Conv(into, 2 * into, 3, stride=2), *(_Residual(2 * into) for _ in range(blocks)))


class _Darknet53(nn.Module):
    """The backbone; returns the features at strides 32, 16 and 8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Conv(3, 32, 3)
        self.to_4 = nn.Sequential(_stage(32, 1), _stage(64, 2))
        self.to_8 = _stage(128, 8)
        self.to_16 = _stage(256, 8)
        self.to_32 = _stage(512, 4)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at_8 = self.to_8(self.to_4(self.stem(image)))
        at_16 = self.to_16(at_8)
        return self.to_32(at_16), at_16, at_8


class _Head(nn.Module):
    """Five convolutions, whose result also goes up to the next head, and the prediction."""

    def __init__(self, into: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _Conv(into, width, 1),
            _Conv(width, 2 * width, 3),
            _Conv(2 * width, width, 1),
            _Conv(width, 2 * width, 3),
            _Conv(2 * width, width, 1),
        )
        self.predict = nn.Sequential(_Conv(width, 2 * width, 3), nn.Conv2d(2 * width, 3 * (5 + _CLASSES), 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        body = self.body(x)
        return body, self.predict(body)


class _Decode(nn.Module):
    """Turns the predictions of one stride into boxes in pixels and scores."""

    def __init__(self, stride: int, anchors: tuple[tuple[float, float], ...], side: int) -> None:
        super().__init__()
        self.stride = stride
        self.side = side // stride
        rows, columns = torch.meshgrid(torch.arange(self.side), torch.arange(self.side), indexing="ij")
        cells = torch.stack([columns, rows], dim=-1).float()
        self.register_buffer("cells", cells.reshape(1, 1, self.side, self.side, 2))
        self.register_buffer("anchors", torch.tensor(anchors).reshape(1, len(anchors), 1, 1, 2))

    def forward(self, prediction: Tensor) -> tuple[Tensor, Tensor]:
        split = prediction.reshape(-1, 3, 5 + _CLASSES, self.side, self.side).permute(0, 1, 3, 4, 2)
        center = (torch.sigmoid(split[..., 0:2]) + self.cells) * self.stride
        half = torch.exp(split[..., 2:4]) * self.anchors / 2
        boxes = torch.cat([center - half, center + half], dim=-1)
        scores = torch.sigmoid(split[..., 4:5]) * torch.sigmoid(split[..., 5:])
        count = 3 * self.side * self.side
        return boxes.reshape(-1, count, 4), scores.reshape(-1, count, _CLASSES)


class YoloV3(nn.Module):
    """Maps an image, float32 [N, 3, side, side], to candidate boxes.

    Returns boxes, float32 [N, candidates, 4] as x1, y1, x2, y2 in pixels, and scores, float32
    [N, candidates, 80]: three candidates for each cell of the three grids.

    Args:
        side: Height and width of the image, a multiple of 32.
    """

    def __init__(self, side: int = 320) -> None:
        super().__init__()
        self.backbone = _Darknet53()
        self.heads = nn.ModuleList([_Head(1024, 512), _Head(512 + 256, 256), _Head(256 + 128, 128)])
        self.lateral = nn.ModuleList([_Conv(512, 256, 1), _Conv(256, 128, 1)])
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.decoders = nn.ModuleList(
            _Decode(stride, anchors, side) for stride, anchors in zip((32, 16, 8), _ANCHORS, strict=True)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        at_32, at_16, at_8 = self.backbone(image)
        body_32, of_32 = self.heads[0](at_32)
        body_16, of_16 = self.heads[1](torch.cat([self.up(self.lateral[0](body_32)), at_16], dim=1))
        _, of_8 = self.heads[2](torch.cat([self.up(self.lateral[1](body_16)), at_8], dim=1))
        decoded = [decode(of) for decode, of in zip(self.decoders, (of_32, of_16, of_8), strict=True)]
        return torch.cat([boxes for boxes, _ in decoded], 1), torch.cat([scores for _, scores in decoded], 1)
