"""The doctor's self-test: the demo's network on one backend against ONNX Runtime on the CPU."""

from __future__ import annotations

import numpy as np

from ..errors import TrtfleetError
from ..trt_actors.backends import open_backend
from ..trt_actors.building.options import BuildOptions
from ..trt_actors.graph import prepare
from ..trt_actors.model import load_model
from ..trt_actors.prepared import Prepared
from ..trt_actors.task import TensorRTSettings
from .demo import demo_files
from .doctor import Trial

__all__ = ["try_backend"]

_ROWS = 16
_TOLERANCE = 0.02
_SEED = 4


def try_backend(backend: str) -> Trial:
    """Builds, loads and runs the demo's network on one backend and compares it with the CPU."""
    with demo_files() as (path, _):
        model = load_model(path)
    network = prepare(model)
    settings = TensorRTSettings(
        options=BuildOptions(max_batch_size=_ROWS), model_digest=model.digest, use_static=False
    )
    try:
        expected = _run(network, "onnxruntime-cpu", settings)
        found = _run(network, backend, settings)
    except TrtfleetError as error:
        return Trial(backend=backend, works=False, words=error.fact)
    worst = max(
        float(np.abs(found[name] - expected[name]).max() / max(1e-9, np.abs(expected[name]).max()))
        for name in expected
    )
    return Trial(
        backend=backend,
        works=worst <= _TOLERANCE,
        words=f"largest difference to ONNX Runtime on the CPU {worst:.2g} of the range",
    )


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / max(1e-9, np.abs(expected).max()))


def _run(network: Prepared, backend: str, settings: TensorRTSettings) -> dict[str, np.ndarray]:
    engine = open_backend(backend, network, settings=settings, threads=1)
    try:
        rng = np.random.default_rng(_SEED)
        slot = engine.slot()
        for spec in engine.inputs:
            shape = (_ROWS, *(dim for dim in spec.row_shape if isinstance(dim, int)))
            slot.bind(spec.name, rng.random(shape, np.float32).astype(spec.dtype))
        engine.enqueue(slot, _ROWS)
        engine.wait(slot)
        return {name: np.array(values) for name, values in slot.outputs.items()}
    finally:
        engine.close()
