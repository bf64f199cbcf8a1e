"""PyTorch eager beside ONNX Runtime: the rate of ResNet-50 in FP16, and latencies of four networks in FP32.

Latencies are from calling to the end of the work on the device, inputs and outputs staying there, with one
batch at a time. Both run the same network: ONNX Runtime gets PyTorch's own export of it, batch norms folded
as the exporter does. All candidates of a cell take turns, round after round, and medians over all rounds are
compared. PyTorch runs at its defaults: TF32 in convolutions, none in matrix products. ``tf32`` candidates of
ONNX Runtime are compared with that, strict ones with PyTorch without any TF32.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from gpu_engine import DeviceSession, Variant, rate_of

__all__ = ["LATENCY_NETWORKS", "Latency", "eager_rates", "latencies"]

ROUNDS = 5
_ROUND_S = 0.06
_WARM_RUNS = 5
_LEAST_RUNS = 5
_IMAGE = 224
_INCEPTION_IMAGE = 299
_PLAIN = {"cudnn_conv_algo_search": "EXHAUSTIVE"}

EAGER_TF32 = "PyTorch eager, TF32"
EAGER_STRICT = "PyTorch eager, no TF32"

CANDIDATES = (
    Variant(name="TF32", provider={**_PLAIN, "use_tf32": "1"}),
    Variant(name="TF32, CUDA graph", provider={**_PLAIN, "use_tf32": "1"}, is_graph=True),
    Variant(
        name="TF32, NHWC, CUDA graph",
        provider={**_PLAIN, "use_tf32": "1", "prefer_nhwc": "1"},
        is_graph=True,
    ),
    Variant(name="no TF32, CUDA graph", provider={**_PLAIN, "use_tf32": "0"}, is_graph=True),
)
"""ONNX Runtime's, each compared with PyTorch in the same precision."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """A network whose latency is measured.

    Attributes:
        name: For the table.
        library: ``torchvision`` or ``timm``.
        builder: The function there.
        goals: Least ratio of PyTorch's latency to ONNX Runtime's, by batch size.
        side: Height and width of its images.
        options: What else the builder takes.
    """

    name: str
    library: str
    builder: str
    goals: dict[int, float]
    side: int = _IMAGE
    options: tuple[tuple[str, Any], ...] = ()

    def build(self) -> Any:
        """The network, on the CPU, in evaluation mode, with random weights."""
        if self.library == "timm":
            network = import_module("timm").create_model(self.builder, pretrained=False)
        else:
            network = getattr(import_module("torchvision.models"), self.builder)(
                weights=None, **dict(self.options)
            )
        return network.eval()


LATENCY_NETWORKS = (
    Latency(name="ResNet-50", library="torchvision", builder="resnet50", goals={1: 3.5, 5: 3.3, 10: 5.1}),
    Latency(name="MobileNetV1", library="timm", builder="mobilenetv1_100", goals={1: 4.4, 5: 2.6, 10: 3.4}),
    Latency(name="ResNet-101", library="torchvision", builder="resnet101", goals={1: 2.5, 5: 2.6, 10: 4.4}),
    Latency(
        name="Inception-v3",
        library="torchvision",
        builder="inception_v3",
        goals={1: 1.6, 5: 1.9, 10: 2.8},
        side=_INCEPTION_IMAGE,
        options=(("init_weights", False), ("aux_logits", True)),
    ),
)


def eager_rates(layouts: Sequence[str], device: str, rows: int, window_s: float) -> Iterator[dict[str, Any]]:
    """Rates of torchvision's ResNet-50 in FP16, cuDNN's algorithms benchmarked first.

    Args:
        layouts: ``channels-last`` or ``contiguous``.
        device: ``cuda`` or ``cpu``.
        rows: Of a batch.
        window_s: Length of one of the windows whose median counts.

    Yields:
        ``rows_per_s`` and ``rates``, in order.
    """
    import torch

    torch.backends.cudnn.benchmark = True
    for layout in layouts:
        memory = torch.channels_last if layout == "channels-last" else torch.contiguous_format
        network = LATENCY_NETWORKS[0].build().half().to(device).to(memory_format=memory)
        batch = torch.randn(rows, 3, _IMAGE, _IMAGE, device=device).half().to(memory_format=memory)
        call = _calls(network, batch, device)
        call(_WARM_RUNS)
        yield rate_of(call, rows, window_s)


def latencies(
    networks: Sequence[Latency], device: str, work: Path, batches: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Measures each network at each batch size.

    Yields:
        ``ms`` by batch size and candidate, PyTorch's two first, and ``export_s``, in the order of networks.
    """
    import torch

    for network in networks:
        start_s = time.perf_counter()
        module = network.build()
        path = work / f"latency-{network.builder}.onnx"
        export(module, network.side, path)
        export_s = time.perf_counter() - start_s
        module = module.to(device)
        sessions = {variant.name: DeviceSession(path, device, variant) for variant in _candidates(device)}
        cells = {}
        for number, rows in enumerate(batches, 1):
            batch = torch.randn(rows, 3, network.side, network.side, device=device)
            calls = {
                EAGER_TF32: _calls(module, batch, device, tf32=True),
                EAGER_STRICT: _calls(module, batch, device, tf32=False),
            }
            for name, session in sessions.items():
                session.bind(rows, graph_id=number)
                session.warm_up()
                calls[name] = session.timed
            cells[str(rows)] = _take_turns(calls)
        yield {"ms": cells, "export_s": export_s}
        del sessions, module


def export(module: Any, side: int, path: Path) -> None:
    """Writes a module as ONNX with a free batch dimension."""
    import torch

    sample = torch.randn(2, 3, side, side)
    with warnings.catch_warnings():
        # The exporter of TorchScript is deprecated, and the only one that needs nothing else installed.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (sample,),
            str(path),
            dynamo=False,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
        )


def _candidates(device: str) -> Sequence[Variant]:
    return CANDIDATES if device == "cuda" else CANDIDATES[:1]


def _calls(module: Any, batch: Any, device: str, *, tf32: bool = True) -> Callable[[int], float]:
    """A function that runs the module some times and returns the seconds until the device is finished."""
    import torch

    def call(runs: int) -> float:
        torch.backends.cudnn.allow_tf32 = tf32
        with torch.inference_mode():
            start_s = time.perf_counter()
            for _ in range(runs):
                module(batch)
            if device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - start_s

    return call


def _take_turns(calls: dict[str, Callable[[int], float]]) -> dict[str, float]:
    """Median milliseconds of a single call, by name."""
    runs = {}
    for name, call in calls.items():
        for _ in range(_WARM_RUNS):
            once_s = call(1)
        runs[name] = max(_LEAST_RUNS, round(_ROUND_S / once_s))
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            found[name] += [call(1) for _ in range(runs[name])]
    return {name: 1000 * statistics.median(seconds) for name, seconds in found.items()}
