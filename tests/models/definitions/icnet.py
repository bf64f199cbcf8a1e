"""ICNet: an image cascade of three resolutions, joined by cascade feature fusion, for segmentation."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ICNet"]


class _ConvNorm(nn.Sequential):
    def __init__(self, into: int, out: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(
            nn.Conv2d(into, out, kernel, stride, padding, dilation, bias=False), nn.BatchNorm2d(out)
        )


class _ConvNormRelu(nn.Sequential):
    def __init__(self, into: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(_ConvNorm(into, out, kernel, stride), nn.ReLU())


class _Bottleneck(nn.Module):
    """A residual block of three convolutions, the middle one dilated; four times wider outside."""

    def __init__(self, into: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            _ConvNormRelu(into, width, 1, stride),
            _ConvNorm(width, width, 3, dilation=dilation),
            nn.ReLU(),
            _ConvNorm(width, 4 * width, 1),
        )
        is_same = into == 4 * width and stride == 1
        self.shortcut = nn.Identity() if is_same else _ConvNorm(into, 4 * width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.branch(x) + self.shortcut(x))


def _stage(into: int, width: int, blocks: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    first = _Bottleneck(into, width, stride, dilation)
    return nn.Sequential(first, *(_Bottleneck(4 * width, width, 1, dilation) for _ in range(blocks - 1)))


class _PyramidPooling(nn.Module):
    """Adds the means over grids of 1, 2, 3 and 6 cells a side, as in ICNet (PSPNet concatenates them)."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.size = (height, width)
        self.pools = nn.ModuleList(nn.AvgPool2d((height // bins, width // bins)) for bins in (1, 2, 3, 6))

    def forward(self, x: Tensor) -> Tensor:
        for pooled in [pool(x) for pool in self.pools]:
            x = x + functional.interpolate(pooled, size=self.size, mode="bilinear", align_corners=False)
        return x


class _CascadeFusion(nn.Module):
    """Joins a coarse branch with one of twice its resolution."""

    def __init__(self, coarse: int, fine: int, out: int = 128) -> None:
        super().__init__()
        self.coarse = _ConvNorm(coarse, out, 3, dilation=2)
        self.fine = _ConvNorm(fine, out, 1)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        return functional.relu(self.coarse(_upsample(coarse, 2)) + self.fine(fine))


def _upsample(x: Tensor, times: int) -> Tensor:
    return functional.interpolate(x, scale_factor=times, mode="bilinear", align_corners=False)


class ICNet(nn.Module):
    """Maps an image, float32 [N, 3, height, width], to logits, float32 [N, classes, height, width].

    Args:
        height: Of the image, a multiple of 192: the pooling grids must divide it at the coarsest resolution.
        width: Of the image, likewise.
        classes: Number of classes of a pixel.
    """

    def __init__(self, height: int = 192, width: int = 384, classes: int = 19) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _ConvNormRelu(3, 32, 3, stride=2),
            _ConvNormRelu(32, 32, 3),
            _ConvNormRelu(32, 64, 3),
            nn.MaxPool2d(3, 2, 1),
        )
        self.stage_2 = _stage(64, 32, 3)
        self.stage_3_begin = _stage(128, 64, 1, stride=2)
        self.stage_3_rest = _stage(256, 64, 3)
        self.stage_4 = _stage(256, 128, 6, dilation=2)
        self.stage_5 = _stage(512, 256, 3, dilation=4)
        self.pooling = _PyramidPooling(height // 32, width // 32)
        self.after_pooling = _ConvNormRelu(1024, 256, 1)
        self.full = nn.Sequential(
            _ConvNormRelu(3, 32, 3, stride=2),
            _ConvNormRelu(32, 32, 3, stride=2),
            _ConvNormRelu(32, 64, 3, stride=2),
        )
        self.fuse_quarter = _CascadeFusion(256, 256)
        self.fuse_full = _CascadeFusion(128, 64)
        self.classify = nn.Conv2d(128, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        half = functional.interpolate(image, scale_factor=0.5, mode="bilinear", align_corners=False)
        # At 1/16 of the image; the quarter-resolution branch goes on from here with the same weights.
        at_16 = self.stage_3_begin(self.stage_2(self.stem(half)))
        quarter = functional.interpolate(at_16, scale_factor=0.5, mode="bilinear", align_corners=False)
        at_32 = self.pooling(self.stage_5(self.stage_4(self.stage_3_rest(quarter))))
        fused = self.fuse_quarter(self.after_pooling(at_32), at_16)
        fused = self.fuse_full(fused, self.full(image))
        return _upsample(self.classify(_upsample(fused, 2)), 4)
