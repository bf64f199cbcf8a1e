"""Measures trtfleet on one GPU: against the engine by itself, Ray Data, a plain loop and PyTorch.

    python benchmarks/score_gpu.py                                  # all of it, within --budget-s
    python benchmarks/score_gpu.py --only images --only explore     # some of it
    python benchmarks/score_gpu.py --quick                          # small sizes, too small for the goals
    python benchmarks/score_gpu.py --quick --device cpu             # tiny, to see that everything works
    python benchmarks/score_gpu.py --show a.json --show b.json      # the tables of earlier runs, put together

Needs PyTorch for the CUDA stream of the engine's own rate, torchvision and timm for the networks that it is
compared with. Prints tables and the goals, and writes the JSON file after every measurement, so that a run
that is killed leaves what it has.

Workloads, of ResNet-50 in FP16 (``--precision fp16``) at batch 256 with ``--normalize imagenet
--emit topk:5`` unless said otherwise:

- ``images``: 81,920 uint8 images of 224x224x3 as FixedSizeBinary, 2,048 distinct ones; also with Ray Data in
  its best settings and in a plain loop, on fewer of them
- ``table``: 10 million rows of 256 float32 columns through two small layers; fewer in other layouts
- ``tensor``: 65,536 images as ``fixed_shape_tensor``
- ``jpeg``: 65,536 images of 500x375 pixels and about 100 KB, 256 distinct ones
- ``two_actors``: ``images`` with one actor and with two on the GPU
- ``latency``: four networks in FP32 at batch 1, 5 and 10 against PyTorch eager
- ``explore``: settings of ONNX Runtime for the engine by itself, beside PyTorch eager

Rates are given from the first actor being ready to the last commit, and with start-up and merging. The engine
by itself is measured before and after the images; its best median counts, so that a GPU that changes its
clocks does not flatter the ratio.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from gpu_bench import Bench
from gpu_engine import Variant
from gpu_explore import explore, latency
from gpu_goals import goals_of
from gpu_images import images, jpeg, tensor, two_actors
from gpu_isolate import one_line
from gpu_peers import start_ray
from gpu_report import facts_of_machine, failures, lines_of
from gpu_scale import Scale
from gpu_table import table

BUDGET_S = 570.0

WORKLOADS: dict[str, Callable[[Bench, dict[str, Any]], None]] = {
    "images": images,
    "table": table,
    "tensor": tensor,
    "jpeg": jpeg,
    "two_actors": two_actors,
    "latency": latency,
    "explore": explore,
}
WITHOUT_RAY = ("latency", "explore")


def main() -> int:
    """Runs the benchmark; returns 1 when something failed, else 0."""
    options = _options()
    if options.show:
        print("\n".join(lines_of(_together(options.show))))
        return 0
    bench = _bench(options)
    chosen = options.only or list(WORKLOADS)
    signal.signal(signal.SIGTERM, _stop)
    bench.results |= {
        "machine": facts_of_machine(),
        "options": {
            "device": bench.scale.device,
            "is_full": bench.scale.is_full,
            "batch_rows": bench.scale.batch_rows,
            "session": dict(bench.session.provider),
            "score_options": bench.score_options,
            "only": chosen,
        },
        "workloads": {},
    }
    try:
        _run(bench, chosen)
    except KeyboardInterrupt:
        bench.say("stopped; this is what there is")
    finally:
        bench.results["goals"] = goals_of(bench.results)
        bench.keep()
        print("\n".join(lines_of(bench.results)))
        print(f"\nevery single measurement: {bench.json}")
    failed = failures(bench.results)
    print("\n".join(f"failed: {line}" for line in failed), file=sys.stderr)
    return 1 if failed else 0


def _run(bench: Bench, chosen: list[str]) -> None:
    """Workloads that need Ray share one; the others run when its processes are gone."""
    with_ray = [name for name in chosen if name not in WITHOUT_RAY]
    if with_ray:
        with start_ray(bench.scale.device):
            for name in with_ray:
                _workload(bench, name)
    for name in chosen:
        if name in WITHOUT_RAY:
            _workload(bench, name)


def _workload(bench: Bench, name: str) -> None:
    entry: dict[str, Any] = {}
    bench.results["workloads"][name] = entry
    start_s = time.monotonic()
    try:
        WORKLOADS[name](bench, entry)
    except Exception as error:
        # The other workloads are worth having all the same.
        entry["error"] = one_line(error)
    entry["took_s"] = time.monotonic() - start_s
    bench.keep()


def _together(paths: list[str]) -> dict[str, Any]:
    """The results of several runs on one kind of machine; of a workload that is there twice, the last."""
    first, *others = (json.loads(Path(path).read_text()) for path in paths)
    for other in others:
        first["workloads"] |= other["workloads"]
        first["options"]["is_full"] &= other["options"]["is_full"]
    return dict(first)


def _bench(options: argparse.Namespace) -> Bench:
    device = options.device
    if device == "auto":
        device = "cuda" if shutil.which("nvidia-smi") else "cpu"
    scale = Scale.of(device, quick=options.quick, rows_scale=options.rows_scale)
    if options.rounds:
        scale = replace(scale, rounds=options.rounds)
    work = Path(options.work)
    work.mkdir(parents=True, exist_ok=True)
    return Bench(
        scale=scale,
        work=work,
        json=Path(options.json),
        end_s=time.monotonic() + options.budget_s,
        is_quick=options.quick,
        session=Variant(name="default", provider=_pairs(options.provider_option)),
        score_options={key: yaml.safe_load(text) for key, text in _pairs(options.score_option).items()},
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=list(WORKLOADS), help="run this one; repeatable")
    parser.add_argument("--quick", action="store_true", help="small sizes, few settings")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="cpu is tiny")
    parser.add_argument(
        "--budget-s",
        type=float,
        default=BUDGET_S,
        help=f"what is not begun by then is left out (default {BUDGET_S:g})",
    )
    parser.add_argument("--rows-scale", type=float, default=1.0, help="fraction of the full number of rows")
    parser.add_argument("--rounds", type=int, default=0, help="runs of trtfleet (default 3, quick 1)")
    parser.add_argument(
        "--provider-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the CUDA provider, for the engine by itself, Ray Data and the plain loop; give those that "
        "trtfleet itself sets",
    )
    parser.add_argument(
        "--score-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what else trtfleet.score gets",
    )
    folder = Path(tempfile.gettempdir()) / "trtfleet-benchmarks-gpu"
    parser.add_argument("--work", default=str(folder), help=f"keeps datasets between runs (default {folder})")
    parser.add_argument("--json", default="score_gpu.json", help="where the results go")
    parser.add_argument(
        "--show", action="append", metavar="JSON", help="measure nothing, print these results"
    )
    options = parser.parse_args()
    if options.rounds < 0 or options.rows_scale <= 0 or options.budget_s <= 0:
        parser.error("--rounds, --rows-scale and --budget-s must be above 0")
    for pair in (*options.provider_option, *options.score_option):
        if "=" not in pair:
            parser.error(f"{pair!r} is not KEY=VALUE")
    return options


def _pairs(texts: list[str]) -> dict[str, str]:
    return dict(text.split("=", 1) for text in texts)


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
