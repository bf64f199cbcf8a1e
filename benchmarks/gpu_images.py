"""The workloads of images: how near trtfleet comes to the engine alone, and how far the others stay behind.

``images``: FixedSizeBinary uint8 images, ``--normalize imagenet --emit topk:5``, against the engine alone,
Ray Data and a plain loop. ``tensor``: the same as ``fixed_shape_tensor``. ``jpeg``: encoded images of about
100 KB. ``two_actors``: ``images`` with two actors on one GPU, against one. All at one batch size, in FP16.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gpu_data
import gpu_networks
from gpu_bench import Bench
from gpu_engine import Variant, engine_rates
from gpu_isolate import each_apart, run_apart
from gpu_peers import RAY_DATA_SETTINGS, RayData, plain_loop, ray_data
from gpu_runs import best_classes, fresh_folder, run_trtfleet

__all__ = ["engine_only", "images", "jpeg", "tensor", "two_actors"]

RUN_LIMIT_S = 120.0
ENGINE_LIMIT_S = 90.0
PEER_LIMIT_S = 90.0
GPU_DECODER = "nvidia.nvimgcodec"
OWN_STREAM = "own stream"
CUDA_GRAPH = "own stream, CUDA graph"


def engine_only(bench: Bench, entry: dict[str, Any]) -> None:
    """The engine's own rate: the best of plain runs and of a CUDA graph, now and before.

    Every measurement is a row of ``engine_only``; the best rate is the workload's ``engine_rows_per_s``.
    """
    model = gpu_networks.prepared(bench.scale, bench.work)
    plain = Variant(name=OWN_STREAM, provider=bench.session.provider)
    graph = Variant(name=CUDA_GRAPH, provider=bench.session.provider, is_graph=True)
    variants = [plain, graph] if bench.has_gpu else [plain]
    rows = entry.setdefault("engine_only", [])
    found = each_apart(
        *(engine_rates, variants, {"": str(model)}, bench.scale.device, bench.scale.batch_rows),
        bench.window_s,
        limit_s=bench.left_s(ENGINE_LIMIT_S),
    )
    for variant, facts, error in found:
        bench.add(rows, f"engine only, {variant.name}", facts, error)
    rates = [row["rows_per_s"] for row in rows if "error" not in row]
    entry["engine_rows_per_s"] = max(rates, default=None)


def images(bench: Bench, entry: dict[str, Any]) -> None:
    """FixedSizeBinary images: trtfleet between two measurements of the engine, then the others."""
    scale = bench.scale
    files = gpu_data.images(scale, bench.work, "binary", scale.copies)
    engine_only(bench, entry)
    _rounds(bench, entry, files, scale.rounds)
    engine_only(bench, entry)
    # To see whether memory grows with the dataset.
    _rounds(bench, entry, files[: max(1, len(files) // 4)], 1, name="trtfleet, a quarter of the rows")
    _peers(bench, entry, files)


def tensor(bench: Bench, entry: dict[str, Any]) -> None:
    """``fixed_shape_tensor`` images."""
    files = gpu_data.images(bench.scale, bench.work, "tensor", bench.scale.slow_copies)
    engine_only(bench, entry)
    _rounds(bench, entry, files, min(2, bench.scale.rounds))


def jpeg(bench: Bench, entry: dict[str, Any]) -> None:
    """JPEG images, decoded by the GPU where nvImageCodec is installed, else by the CPU."""
    files = gpu_data.jpegs(bench.scale, bench.work, bench.scale.slow_copies)
    entry["row_bytes"] = sum(path.stat().st_size for path in files) // (bench.scale.distinct * len(files))
    entry["gpu_decoder"] = _has(GPU_DECODER)
    engine_only(bench, entry)
    _rounds(bench, entry, files, min(2, bench.scale.rounds), is_raw=False)
    if not entry["gpu_decoder"]:
        # Threads of one process wait for Python's lock between images.
        _rounds(bench, entry, files, 1, name="trtfleet, 4 actors", actors=4, is_raw=False)


def two_actors(bench: Bench, entry: dict[str, Any]) -> None:
    """One actor and two on the same GPU, taking turns."""
    scale = bench.scale
    files = gpu_data.images(scale, bench.work, "binary", scale.copies)
    for _ in range(min(2, scale.rounds)):
        for actors in (1, 2):
            _rounds(
                bench, entry, files, 1, name=f"trtfleet, {actors} actor{'s' * (actors > 1)}", actors=actors
            )


def _rounds(
    bench: Bench,
    entry: dict[str, Any],
    files: Sequence[Path],
    rounds: int,
    *,
    name: str = "trtfleet, 1 actor",
    actors: int = 1,
    is_raw: bool = True,
) -> None:
    """Runs of trtfleet.

    Args:
        bench: The run of the benchmark.
        entry: The workload's results; gets a row a run.
        files: The dataset.
        rounds: How many runs.
        name: Of the rows.
        actors: How many share the GPU.
        is_raw: Whether these are the raw images, whose answers must be everywhere the same.
    """

    def run() -> dict[str, Any]:
        with fresh_folder(bench.work) as out:
            facts = run_trtfleet(
                gpu_networks.network(bench.scale, bench.work),
                files,
                out,
                **{
                    "keep": "id",
                    "normalize": gpu_networks.NORMALIZE,
                    "emit": gpu_networks.EMIT,
                    "precision": gpu_networks.PRECISION,
                    "backend": bench.backend,
                    "batch_size": bench.scale.batch_rows,
                    "actors": actors,
                    "gpus_per_actor": 1 / actors,
                    **bench.score_options,
                },
            )
            agreement = _agreement(bench, out, files, is_ordered=True) if is_raw else None
        return {**facts, "agreement": agreement}

    for _ in range(rounds):
        bench.measure(entry.setdefault("runs", []), name, RUN_LIMIT_S, run)


def _agreement(bench: Bench, out: Path, files: Sequence[Path], *, is_ordered: bool) -> float:
    """Share of rows with the same best class as in the first result; raises when rows are missing."""
    best = best_classes(out, bench.scale.distinct, len(files), is_ordered=is_ordered)
    if bench.answers is None:
        bench.answers = best[:, 0].copy()
    return float((best == bench.answers[:, None]).mean())


def _peers(bench: Bench, entry: dict[str, Any], files: Sequence[Path]) -> None:
    scale = bench.scale
    few = files[: scale.peer_copies]
    more = files[: 4 * scale.peer_copies]
    rows = entry.setdefault("peers", [])
    _plain(bench, rows, more)
    tried = {}
    for settings in RAY_DATA_SETTINGS[: scale.peer_settings]:
        run = partial(_ray_data, bench, settings, few)
        found = bench.measure(rows, f"Ray Data, {settings.name}", PEER_LIMIT_S, run)
        if found:
            tried[settings] = found
    if not tried:
        return
    fastest = min(tried, key=lambda settings: tried[settings]["seconds"])
    run = partial(_ray_data, bench, fastest, more)
    large = bench.measure(rows, f"Ray Data, {fastest.name}, again", PEER_LIMIT_S, run)
    small = tried[fastest]
    if large and len(more) > len(few) and large["seconds"] > small["seconds"]:
        # What the further rows took is free of start-up, which both runs have.
        rate = (large["rows"] - small["rows"]) / (large["seconds"] - small["seconds"])
        large |= {"rows_per_s": rate, "is_without_startup": True}
        bench.keep()


def _plain(bench: Bench, rows: list[dict[str, Any]], files: Sequence[Path]) -> None:
    scale = bench.scale
    model = gpu_networks.prepared(scale, bench.work)

    def run() -> dict[str, Any]:
        with fresh_folder(bench.work) as out:
            arguments = (model, files, out, scale.device, bench.session, scale.batch_rows)
            (facts,) = run_apart(plain_loop, *arguments, limit_s=bench.left_s(PEER_LIMIT_S))
            agreement = _agreement(bench, out, files, is_ordered=True)
        in_all = facts["rows"] / (facts["seconds"] + facts["startup_s"])
        return {**facts, "rows_per_s_in_all": in_all, "agreement": agreement}

    bench.measure(rows, "plain loop", PEER_LIMIT_S + 5, run)


def _ray_data(bench: Bench, settings: RayData, files: Sequence[Path]) -> dict[str, Any]:
    scale = bench.scale
    with fresh_folder(bench.work) as out:
        seconds = ray_data(
            settings,
            gpu_networks.prepared(scale, bench.work),
            files,
            out,
            device=scale.device,
            variant=bench.session,
            batch_rows=scale.batch_rows,
        )
        agreement = _agreement(bench, out, files, is_ordered=False)
    rows = scale.distinct * len(files)
    rate = rows / seconds
    return {
        "rows": rows,
        "seconds": seconds,
        "rows_per_s": rate,
        "rows_per_s_in_all": rate,
        "is_without_startup": False,
        "agreement": agreement,
    }


def _has(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
