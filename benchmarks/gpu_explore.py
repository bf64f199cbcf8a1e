"""What the engine could do: ONNX Runtime's settings for ResNet-50 in FP16, one by one, beside PyTorch eager.

``explore`` measures rates of the engine alone at the images' batch size; ``latency`` measures FP32 at small
batches (``gpu_torch.py``). Networks of ``explore``: *whole* is what trtfleet runs (uint8 in, five best out),
*bare* the same network in FP16 without pre- and post-processing, which is also all that PyTorch runs.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import gpu_networks
from gpu_bench import Bench
from gpu_engine import Variant, engine_rates
from gpu_isolate import each_apart
from gpu_torch import LATENCY_NETWORKS, eager_rates, latencies

__all__ = ["NO_GPU", "explore", "latency"]

NO_GPU = "no GPU"
NO_TORCH = "PyTorch is not installed"
BATCHES = (1, 5, 10)
EXPLORE_LIMIT_S = 300.0
LATENCY_LIMIT_S = 300.0
VARIANT_LIMIT_S = 60.0
NETWORK_LIMIT_S = 150.0
WHOLE, BARE = "whole", "bare"
_NHWC = {"prefer_nhwc": "1"}
_FUSED = {"fuse_conv_bias": "1"}
_HEURISTIC = {"cudnn_conv_algo_search": "HEURISTIC"}
_TUNED = {"tunable_op_enable": "1", "tunable_op_tuning_enable": "1"}


def _variant(name: str, *parts: dict[str, str], **others: Any) -> Variant:
    provider = {key: value for part in parts for key, value in part.items()}
    return Variant(name=name, model=others.pop("model", WHOLE), provider=provider, **others)


CPU_VARIANTS = (
    _variant("defaults"),
    _variant("optimizations: basic", level="basic"),
    _variant("optimizations: none", level="none"),
)
QUICK_VARIANTS = (
    _variant("defaults"),
    _variant("prefer_nhwc", _NHWC),
    _variant("CUDA graph", is_graph=True),
)
VARIANTS = (
    *QUICK_VARIANTS,
    _variant("prefer_nhwc, fuse_conv_bias", _NHWC, _FUSED),
    _variant("prefer_nhwc, CUDA graph", _NHWC, is_graph=True),
    _variant("fuse_conv_bias", _FUSED),
    _variant("algorithms: HEURISTIC", _HEURISTIC),
    _variant("algorithms: DEFAULT", {"cudnn_conv_algo_search": "DEFAULT"}),
    _variant("prefer_nhwc, HEURISTIC", _NHWC, _HEURISTIC),
    _variant("prefer_nhwc, fuse_conv_bias, HEURISTIC, CUDA graph", _NHWC, _FUSED, _HEURISTIC, is_graph=True),
    _variant("bare network", model=BARE),
    _variant("bare network, prefer_nhwc", _NHWC, model=BARE),
    _variant("bare network, prefer_nhwc, fuse_conv_bias", _NHWC, _FUSED, model=BARE),
    _variant("small workspace", {"cudnn_conv_use_max_workspace": "0"}),
    _variant("no TF32", {"use_tf32": "0"}),
    _variant("cudnn_conv1d_pad_to_nc1d", {"cudnn_conv1d_pad_to_nc1d": "1"}),
    _variant("tunable operators", _TUNED),
    _variant("optimizations: extended", level="extended"),
    _variant("optimizations: basic", level="basic"),
    _variant("optimizations: none", level="none"),
    _variant("prefer_nhwc, optimizations: basic", _NHWC, level="basic"),
)
"""The most telling first: when the time is up, the rest goes without."""


def explore(bench: Bench, entry: dict[str, Any]) -> None:
    """Rates of PyTorch eager, then of ONNX Runtime in every setting."""
    scale, rows = bench.scale, entry.setdefault("engine_only", [])
    limit_s = EXPLORE_LIMIT_S / 4 if bench.is_quick else EXPLORE_LIMIT_S
    layouts = ["channels-last", "contiguous"]
    reason = NO_GPU if not bench.has_gpu else "" if _has_torch() else NO_TORCH
    if reason:
        for layout in layouts:
            bench.add(rows, _eager_name(layout), None, reason)
    else:
        facts = (scale.device, scale.batch_rows, bench.window_s)
        for layout, found, error in each_apart(
            eager_rates, layouts, *facts, limit_s=bench.left_s(limit_s / 3)
        ):
            bench.add(rows, _eager_name(layout), found, error)
    variants = CPU_VARIANTS
    if bench.has_gpu:
        variants = QUICK_VARIANTS if bench.is_quick else VARIANTS
    models = {
        WHOLE: str(gpu_networks.prepared(scale, bench.work)),
        BARE: str(gpu_networks.bare(scale, bench.work)),
    }
    for variant, found, error in each_apart(
        *(engine_rates, variants, models, scale.device, scale.batch_rows, bench.window_s),
        limit_s=bench.left_s(limit_s),
        each_s=VARIANT_LIMIT_S,
    ):
        settings = {
            "provider": dict(variant.provider),
            "level": variant.level,
            "cuda_graph": variant.is_graph,
        }
        found = None if found is None else {**found, "settings": settings}
        bench.add(rows, f"ONNX Runtime, {variant.name}", found, error)


def latency(bench: Bench, entry: dict[str, Any]) -> None:
    """Milliseconds of four networks in FP32 at batch 1, 5 and 10."""
    networks = LATENCY_NETWORKS[:2] if bench.is_quick else LATENCY_NETWORKS
    rows = entry.setdefault("latencies", [])
    reason = NO_GPU if not bench.has_gpu else "" if _has_torch() else NO_TORCH
    if reason:
        for network in networks:
            bench.add(rows, network.name, None, reason)
        return
    for network, found, error in each_apart(
        latencies,
        networks,
        bench.scale.device,
        bench.work,
        BATCHES,
        limit_s=bench.left_s(LATENCY_LIMIT_S),
        each_s=NETWORK_LIMIT_S,
    ):
        goals = {str(rows): least for rows, least in network.goals.items()}
        bench.add(rows, network.name, None if found is None else {**found, "goals": goals}, error)


def _eager_name(layout: str) -> str:
    return f"PyTorch eager, {layout}"


def _has_torch() -> bool:
    return find_spec("torch") is not None and find_spec("torchvision") is not None
