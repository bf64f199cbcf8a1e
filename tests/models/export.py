"""Exports the networks of the zoo from their definitions, and stores them without weights.

    python3.11 -m venv .venv-export && . .venv-export/bin/activate
    pip install torch==2.14.1 torchvision==0.29.1 timm==1.0.31 \\
        onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
    python -m tests.models.export [NAME ...]

No trained weights are loaded. Before the export each layer's random weights are scaled once so that its
results have a chosen deviation: what is stored of a weight is its mean, deviation and range, and a network
filled again with random numbers of these then has activations of sane size at any depth.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
import timm
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import detection

from .definitions.cascade_rcnn import cascade_rcnn_resnet50_fpn
from .definitions.icnet import ICNet
from .definitions.yolov3 import YoloV3
from .strip import fill, read, strip, write
from .zoo import ZOO, image

FOLDER = Path(__file__).parent / "networks"
OPSET = 18
BATCH = 2

# Untrained detectors find nothing, or everything; these deviations give scores on both sides of thresholds.
_DEVIATIONS = {"cls_score": 3.0, "cls_logits": 3.0, "bbox_pred": 0.5, "bbox_reg": 0.5, "mask_fcn_logits": 3.0}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one network is made and exported.

    Attributes:
        build: Makes it, untrained.
        outputs: Names of its results.
        exporter: Which of torch's two exporters gives the better graph.
        deviations: Deviation of the results of layers, by a part of their names; 1 for others.
    """

    build: Callable[[], nn.Module]
    outputs: tuple[str, ...] = ("logits",)
    exporter: Literal["dynamo", "torchscript"] = "dynamo"
    deviations: Mapping[str, float] = field(default_factory=dict)


class OneImage(nn.Module):
    """Feeds torchvision's detectors, which take a list of images, with a batch of one."""

    def __init__(self, detector: nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.detector = detector
        self.outputs = outputs

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        (found,) = self.detector([image[0]])
        return tuple(found[name] for name in self.outputs)


def _classifier(build: Callable[..., nn.Module], **options: Any) -> Recipe:
    return Recipe(build=lambda: build(weights=None, **options))


def _timm(name: str) -> Recipe:
    return Recipe(build=lambda: timm.create_model(name, pretrained=False))


def _detector(
    build: Callable[..., nn.Module], outputs: tuple[str, ...] = ("boxes", "labels", "scores"), **options: Any
) -> Recipe:
    def make() -> nn.Module:
        return OneImage(build(weights_backbone=None, **options), outputs)

    return Recipe(build=make, outputs=outputs, exporter="torchscript", deviations=_DEVIATIONS)


# Smaller images, fewer proposals and results than trained networks use; nothing else of a definition changes.
_SMALL = {"min_size": 256, "max_size": 256}
_FEW = {"rpn_pre_nms_top_n_test": 400, "rpn_post_nms_top_n_test": 200, "box_detections_per_img": 20}

RECIPES = {
    "mobilenet_v1": _timm("mobilenetv1_100"),
    "resnet50": _classifier(models.resnet50),
    "vgg16": _classifier(models.vgg16),
    "resnext50": _classifier(models.resnext50_32x4d),
    "alexnet": _classifier(models.alexnet),
    "se_resnext50": _timm("seresnext50_32x4d"),
    "googlenet": _classifier(models.googlenet, aux_logits=False, init_weights=False),
    "dpn68": _timm("dpn68"),
    "yolov3": Recipe(build=YoloV3, outputs=("boxes", "scores")),
    "ssd": _detector(detection.ssd300_vgg16),
    "mobilenet_ssd": _detector(detection.ssdlite320_mobilenet_v3_large),
    "retinanet": _detector(detection.retinanet_resnet50_fpn, **_SMALL),
    "faster_rcnn": _detector(detection.fasterrcnn_resnet50_fpn, **_SMALL, **_FEW),
    "mask_rcnn": _detector(
        detection.maskrcnn_resnet50_fpn, ("boxes", "labels", "scores", "masks"), **_SMALL, **_FEW
    ),
    "cascade_rcnn": _detector(cascade_rcnn_resnet50_fpn, **_SMALL, **_FEW),
    "icnet": Recipe(build=ICNet),
}


def scale_layers(network: nn.Module, sample: Tensor, deviations: Mapping[str, float]) -> None:
    """Scales the weights of each convolution and linear layer by one forward pass.

    Args:
        network: Changed in place: when a layer first runs, its weights are divided by the deviation of its
            results, and multiplied by the deviation wanted.
        sample: An input.
        deviations: Deviations by a part of the layer's name; 1 for others.
    """
    done: set[str] = set()

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        wanted = next((value for part, value in deviations.items() if part in name), 1.0)

        def scale(layer: nn.Module, _: Any, result: Tensor) -> Tensor | None:
            if name in done or result.numel() < 2:
                return None
            done.add(name)
            bias = layer.bias
            if bias is not None:
                result = result - bias.reshape(-1, *[1] * (result.ndim - 2))
            factor = wanted / float(result.std())
            layer.weight.mul_(factor)
            result = result * factor
            return result if bias is None else result + bias.reshape(-1, *[1] * (result.ndim - 2))

        return scale

    for layer in network.modules():
        # Residual branches that begin training at zero would have nothing to scale.
        if isinstance(layer, nn.BatchNorm2d) and not layer.weight.any():
            nn.init.ones_(layer.weight)
    layers = [
        layer.register_forward_hook(hook(name))
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    ]
    with torch.no_grad():
        network(sample)
    for layer in layers:
        layer.remove()


def export(name: str, recipe: Recipe) -> onnx.ModelProto:
    """One network as ONNX, its weights included."""
    entry = ZOO[name]
    is_free = entry.shape[0] == "N"
    torch.manual_seed(0)
    network = recipe.build().eval()
    sample = torch.from_numpy(image(name, BATCH if is_free else 1)[entry.input])
    scale_layers(network, sample, recipe.deviations)
    path = FOLDER / f"{name}.full.onnx"
    options: dict[str, Any] = {
        "input_names": [entry.input],
        "output_names": list(recipe.outputs),
        "opset_version": OPSET,
        "external_data": False,
        "verbose": False,
    }
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if recipe.exporter == "dynamo":
                free = ({0: torch.export.Dim("N")},) if is_free else None
                torch.onnx.export(network, (sample,), path, dynamo=True, dynamic_shapes=free, **options)
            else:
                axes = {value: {0: "N"} for value in (entry.input, *recipe.outputs)} if is_free else None
                torch.onnx.export(network, (sample,), path, dynamo=False, dynamic_axes=axes, **options)
        return onnx.load(path)
    finally:
        path.unlink(missing_ok=True)


def describe(name: str) -> str:
    """Runs a stored network once and tells the sizes of its results."""
    model = fill(read(ZOO[name].path))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    results = session.run(None, image(name))
    return "; ".join(
        f"{value.name} {list(array.shape)} {np.ptp(array) if array.size else 0:.3g}"
        for value, array in zip(session.get_outputs(), results, strict=True)
    )


def main() -> None:
    """Exports the networks named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which networks; all when none is given")
    for name in parser.parse_args().names or RECIPES:
        start_s = time.perf_counter()
        full = export(name, RECIPES[name])
        path = write(strip(full), FOLDER, name)
        took_s = time.perf_counter() - start_s
        print(
            f"{name}: {len(full.graph.node)} nodes, {path.stat().st_size:,} bytes, {took_s:.0f} s", flush=True
        )
        print(f"  {describe(name)}", flush=True)


if __name__ == "__main__":
    main()
