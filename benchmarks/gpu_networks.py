"""The networks of the GPU benchmark, made once from fixed seeds and kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
from gpu_scale import Scale
from models import small_resnet, tiny_mlp
from trtfleet.trt_actors.building.options import BuildOptions
from trtfleet.trt_actors.building.precision import to_precision
from trtfleet.trt_actors.graph import Emit, Normalize, StoredInput, prepare
from trtfleet.trt_actors.model import load_model
from workloads import made

__all__ = ["EMIT", "NORMALIZE", "PRECISION", "bare", "made", "mlp", "network", "prepared"]

NORMALIZE = "imagenet"
EMIT = "topk:5"
PRECISION = "fp16"
MLP_CLASSES = 4


def network(scale: Scale, work: Path) -> Path:
    """ResNet-50 for a GPU, a ten-layer ResNet of 32x32 images for the CPU; float32, random weights."""
    name = "resnet50" if scale.device == "cuda" else "small_resnet"

    def make(folder: Path) -> None:
        if scale.device == "cuda":
            model = import_module("trtfleet.tests.models.zoo").load(name)
        else:
            model = small_resnet(classes=10, size=scale.side)
        onnx.save(model, str(folder / f"{name}.onnx"))

    return made(work / f"{name}-{scale.side}", make) / f"{name}.onnx"


def mlp(scale: Scale, work: Path) -> Path:
    """A network of two small layers over the table's columns."""

    def make(folder: Path) -> None:
        onnx.save(tiny_mlp(scale.columns, MLP_CLASSES), str(folder / "mlp.onnx"))

    return made(work / f"mlp-{scale.columns}", make) / "mlp.onnx"


def prepared(scale: Scale, work: Path) -> Path:
    """The network that trtfleet makes of it, for everyone else: uint8 NHWC in, FP16 inside, five best out.

    Converted to FP16 by trtfleet's own ``--precision fp16``, pre- and post-processing included.
    """
    model = network(scale, work)

    def make() -> onnx.ModelProto:
        whole = prepare(
            load_model(model),
            stored={"image": StoredInput(dtype=np.dtype(np.uint8), layout="nhwc")},
            normalize=Normalize.parse(NORMALIZE),
            emit=Emit.parse(EMIT),
        )
        return onnx.load_from_string(whole.model_bytes)

    return _halved(model.with_name(f"prepared-{scale.batch_rows}.onnx"), make, scale)


def bare(scale: Scale, work: Path) -> Path:
    """The network in FP16 without pre- and post-processing."""
    model = network(scale, work)
    return _halved(model.with_name(f"bare-{scale.batch_rows}.onnx"), lambda: onnx.load(str(model)), scale)


def _halved(target: Path, make: Callable[[], onnx.ModelProto], scale: Scale) -> Path:
    if not target.exists():
        options = BuildOptions(precision=PRECISION, max_batch_size=scale.batch_rows)
        draft = target.with_suffix(f".{os.getpid()}.draft")
        draft.write_bytes(to_precision(make(), options).model.SerializeToString(deterministic=True))
        draft.replace(target)
    return target
