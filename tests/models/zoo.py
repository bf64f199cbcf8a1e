"""The networks that partitioning, building and running are tested with.

Most are stored in ``networks/`` without weights; those of the onnx package come from where it is installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import backend

from .strip import fill, read

__all__ = ["NETWORKS", "ZOO", "Entry", "Family", "image", "load", "names"]

Family = Literal["classification", "detection", "segmentation"]

NETWORKS = Path(__file__).parent / "networks"
"""Where the stored networks are."""
_LIGHT = Path(backend.__path__[0], "test", "data", "light")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One network.

    Attributes:
        name: Its key, and the beginning of its file's name.
        title: What it is called in papers.
        family: What it is for.
        input: Name of its only input, a float32 image.
        shape: Shape of the input; ``N`` is a free batch dimension.
        source: Where the definition comes from.
    """

    name: str
    title: str
    family: Family
    input: str
    shape: tuple[int | str, ...]
    source: str

    @property
    def path(self) -> Path:
        """Its file, plain or compressed."""
        if self.source.startswith("onnx "):
            return _LIGHT / f"{self.name}.onnx"
        plain = NETWORKS / f"{self.name}.onnx"
        return plain if plain.exists() else plain.with_suffix(".onnx.xz")


def _entry(
    name: str,
    title: str,
    source: str,
    side: int = 224,
    *,
    family: Family = "classification",
    batch: int | str = "N",
) -> Entry:
    shape = (batch, 3, side, side)
    return Entry(name=name, title=title, family=family, input="image", shape=shape, source=source)


def _detector(name: str, title: str, source: str, side: int, batch: int | str = 1) -> Entry:
    return _entry(name, title, source, side, family="detection", batch=batch)


def _light(name: str, title: str, source: str, input_name: str) -> Entry:
    return Entry(
        name=f"light_{name}",
        title=title,
        family="classification",
        input=input_name,
        shape=(1, 3, 224, 224),
        source=f"onnx {source}",
    )


_ENTRIES = (
    _entry("mobilenet_v1", "MobileNetV1", "timm mobilenetv1_100"),
    _entry("resnet50", "ResNet-50", "torchvision resnet50"),
    _entry("vgg16", "VGG-16", "torchvision vgg16"),
    _entry("resnext50", "ResNeXt-50", "torchvision resnext50_32x4d"),
    _entry("alexnet", "AlexNet", "torchvision alexnet"),
    _entry("se_resnext50", "SE-ResNeXt-50", "timm seresnext50_32x4d"),
    _entry("googlenet", "GoogLeNet", "torchvision googlenet"),
    _entry("dpn68", "DPN-68", "timm dpn68"),
    _detector("yolov3", "YOLOv3", "definitions/yolov3.py", 320, "N"),
    _detector("ssd", "SSD", "torchvision ssd300_vgg16", 300),
    _detector("mobilenet_ssd", "MobileNet-SSD", "torchvision ssdlite320_mobilenet_v3_large", 320),
    _detector("retinanet", "RetinaNet", "torchvision retinanet_resnet50_fpn", 256),
    _detector("faster_rcnn", "Faster R-CNN", "torchvision fasterrcnn_resnet50_fpn", 256),
    _detector("mask_rcnn", "Mask R-CNN", "torchvision maskrcnn_resnet50_fpn", 256),
    _detector("cascade_rcnn", "Cascade R-CNN", "definitions/cascade_rcnn.py", 256),
    Entry(
        name="icnet",
        title="ICNet",
        family="segmentation",
        input="image",
        shape=("N", 3, 192, 384),
        source="definitions/icnet.py",
    ),
    _light("bvlc_alexnet", "AlexNet (Caffe)", "bvlc_alexnet", "data_0"),
    _light("densenet121", "DenseNet-121", "densenet121", "data_0"),
    _light("inception_v1", "Inception v1", "inception_v1", "data_0"),
    _light("inception_v2", "Inception v2", "inception_v2", "data_0"),
    _light("resnet50", "ResNet-50 (Caffe2)", "resnet50", "gpu_0/data_0"),
    _light("shufflenet", "ShuffleNet", "shufflenet", "gpu_0/data_0"),
    _light("squeezenet", "SqueezeNet", "squeezenet", "data_0"),
    _light("vgg19", "VGG-19", "vgg19", "data_0"),
    _light("zfnet512", "ZFNet-512", "zfnet512", "gpu_0/data_0"),
)

ZOO = {entry.name: entry for entry in _ENTRIES}
"""Every network by name."""


def names(family: Family | None = None) -> list[str]:
    """Names of all networks, or of those of one family."""
    return [entry.name for entry in _ENTRIES if family in (None, entry.family)]


def load(name: str, seed: int = 0) -> onnx.ModelProto:
    """One network with weights; the same bytes each time for the same seed."""
    return fill(read(ZOO[name].path), seed)


def image(name: str, batch: int = 1, seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """A made-up image for a network, as its feeds; values as after normalization, or 0 to 1 for detectors."""
    entry = ZOO[name]
    shape = [size if isinstance(size, int) else batch for size in entry.shape]
    stream = np.random.default_rng(seed)
    if entry.family == "detection":
        return {entry.input: stream.random(shape, dtype=np.float32)}
    return {entry.input: stream.standard_normal(shape, dtype=np.float32)}
