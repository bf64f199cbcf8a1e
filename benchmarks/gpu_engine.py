"""One session of ONNX Runtime by itself: inputs and outputs stay on the device, on a stream of our own.

What is called *engine-only*: the network that trtfleet runs, at the same batch size, fed again and again with
the same random batch by IO binding, with nothing to read, copy or write. Calls only enqueue; the clock stops
when the stream is empty. The rate is the median of several windows.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

__all__ = ["DeviceSession", "Variant", "engine_rates", "open_session"]

SEED = 7
WINDOWS = 5
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
    "tensor(int64)": np.int64,
}
_LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_WARM_RUNS = 3
_QUIET = 3


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to set up a session.

    Attributes:
        name: For the table.
        provider: Options of the CUDA provider.
        level: Graph optimizations: ``all``, ``extended``, ``basic`` or ``none``.
        is_graph: Whether runs are captured in a CUDA graph.
        model: Which of several files to load.
    """

    name: str
    provider: Mapping[str, str] = field(default_factory=dict)
    level: str = "all"
    is_graph: bool = False
    model: str = ""


def open_session(
    model: Path, device: str, *, variant: Variant | None = None, stream: int = 0, threads: int = 0
) -> Any:
    """A session as the peers open it.

    Args:
        model: ONNX file.
        device: ``cuda`` or ``cpu``.
        variant: Its settings; the defaults without it.
        stream: Handle of the CUDA stream to run on; 0 for the session's own.
        threads: CPU threads of one operator; 0 for all cores.

    Raises:
        RuntimeError: The CUDA provider did not load.
    """
    variant = variant or Variant(name="default")
    options = ort.SessionOptions()
    options.graph_optimization_level = _LEVELS[variant.level]
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _QUIET
    providers: list[Any] = ["CPUExecutionProvider"]
    if device == "cuda":
        settings = {"device_id": "0", **variant.provider}
        if stream:
            settings["user_compute_stream"] = str(stream)
        if variant.is_graph:
            settings["enable_cuda_graph"] = "1"
        providers.insert(0, ("CUDAExecutionProvider", settings))
    session = ort.InferenceSession(str(model), options, providers=providers)
    if device == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise RuntimeError("the CUDA provider of ONNX Runtime did not load")
    return session


class DeviceSession:
    """A session bound to memory on its device.

    Args:
        model: ONNX file with one input.
        device: ``cuda``, for which PyTorch makes the stream, or ``cpu``.
        variant: Its settings.
    """

    def __init__(self, model: Path, device: str, variant: Variant) -> None:
        self._device = device
        self._stream: Any = None
        if device == "cuda":
            import torch

            self._stream = torch.cuda.Stream()
        handle = self._stream.cuda_stream if self._stream is not None else 0
        self._session: Any = open_session(model, device, variant=variant, stream=handle)
        self._is_graph = variant.is_graph
        self._binding: Any = None
        self._options = ort.RunOptions()
        self._kept: list[Any] = []

    def bind(self, rows: int, *, graph_id: int = 1) -> None:
        """Fills the input with a random batch and makes room for the outputs, on the device.

        Args:
            rows: Of the batch.
            graph_id: Under which a CUDA graph of this batch is kept.
        """
        self._options = ort.RunOptions()
        if self._device == "cuda":
            self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
            if self._is_graph:
                self._options.add_run_config_entry("gpu_graph_id", str(graph_id))
        self._binding = self._session.io_binding()
        (source,) = self._session.get_inputs()
        batch = _random(_shape(source, rows), _DTYPES[source.type])
        value = ort.OrtValue.ortvalue_from_numpy(batch, self._device, 0)
        self._binding.bind_ortvalue_input(source.name, value)
        self._kept.append((self._binding, value))
        for target in self._session.get_outputs():
            room = ort.OrtValue.ortvalue_from_shape_and_type(
                _shape(target, rows), _DTYPES[target.type], self._device, 0
            )
            self._kept.append(room)
            self._binding.bind_ortvalue_output(target.name, room)

    def run(self) -> None:
        """Starts one batch; on the CPU, runs it."""
        self._session.run_with_iobinding(self._binding, self._options)

    def synchronize(self) -> None:
        """Waits for every batch that was started."""
        if self._stream is not None:
            self._stream.synchronize()

    def warm_up(self) -> float:
        """The first runs, which choose kernels, allocate and capture; returns the first one's seconds."""
        seconds = [self.timed(1) for _ in range(_WARM_RUNS)]
        return seconds[0]

    def timed(self, runs: int) -> float:
        """Seconds for some batches, one behind the other, until the last is finished."""
        start_s = time.perf_counter()
        for _ in range(runs):
            self.run()
        self.synchronize()
        return time.perf_counter() - start_s


def engine_rates(
    variants: Sequence[Variant], models: Mapping[str, str], device: str, rows: int, window_s: float
) -> Iterator[dict[str, Any]]:
    """Measures each variant.

    Args:
        variants: What to measure.
        models: Files by the names that variants call them.
        device: ``cuda`` or ``cpu``.
        rows: Of a batch.
        window_s: Length of one of the windows whose median counts.

    Yields:
        ``rows_per_s`` (median), ``rates`` (each window's), ``load_s`` and ``first_s``, in order.
    """
    for variant in variants:
        start_s = time.perf_counter()
        session = DeviceSession(Path(models[variant.model]), device, variant)
        load_s = time.perf_counter() - start_s
        session.bind(rows)
        first_s = session.warm_up()
        yield {**rate_of(session.timed, rows, window_s), "load_s": load_s, "first_s": first_s}
        del session


def rate_of(timed: Any, rows: int, window_s: float) -> dict[str, Any]:
    """The rate of something that is warm.

    Args:
        timed: Takes a number of batches and returns the seconds they took.
        rows: Of a batch.
        window_s: About how long one window lasts.
    """
    runs = max(1, round(window_s / timed(1)))
    rates = [rows * runs / timed(runs) for _ in range(WINDOWS)]
    return {"rows_per_s": statistics.median(rates), "rates": rates}


def _shape(value: Any, rows: int) -> list[int]:
    first, *rest = value.shape
    with contextlib.suppress(TypeError, ValueError):
        return [rows, *map(int, rest)]
    raise ValueError(f"{value.name} has free dimensions besides {first}: {value.shape}")


def _random(shape: Sequence[int], dtype: Any) -> np.ndarray:
    random = np.random.default_rng(SEED)
    if dtype is np.uint8:
        return random.integers(0, 256, shape, dtype=np.uint8)
    return random.standard_normal(shape, dtype=np.float32).astype(dtype)
