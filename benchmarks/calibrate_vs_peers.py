"""Measures trtfleet's calibration against ONNX Runtime's calibrators: the same rows, network and provider.

    pip install .
    python benchmarks/calibrate_vs_peers.py                    # on CPUs, MobileNetV1, 500 images of 224x224
    python benchmarks/calibrate_vs_peers.py --device cuda      # one GPU, ResNet-50
    python benchmarks/calibrate_vs_peers.py --quick            # a quick look; says nothing about the goals

Ways take turns; the medians count. Prints a table and the goals and writes every single time to a JSON file.
README.md explains the ways.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
from calibrate_ways import CalibrationCase, actors_alone, job, onnx_runtime, same_tensors, whole_command
from gpu_data import images
from gpu_isolate import ApartError, run_apart
from gpu_report import facts_of_machine
from gpu_scale import Scale
from models import resnet18, small_resnet
from workloads import made

COMMAND = "trtfleet, the whole command"
JOB = "trtfleet, Ray running"
ACTORS = "trtfleet, the actors alone"
ENTROPY = "ONNX Runtime, entropy"
SAME = "ONNX Runtime, entropy, only the tensors that trtfleet observes"

Way = Callable[[CalibrationCase, float], dict[str, Any]]


def _apart(function: Callable[..., Iterator[dict[str, Any]]], *arguments: Any) -> Way:
    def run(case: CalibrationCase, limit_s: float) -> dict[str, Any]:
        (found,) = run_apart(function, case, *arguments, limit_s=limit_s)
        return dict(found)

    return run


WAYS: dict[str, Way] = {
    COMMAND: _apart(whole_command),
    JOB: _apart(job),
    ACTORS: actors_alone,
    ENTROPY: _apart(onnx_runtime, "Entropy"),
    SAME: _apart(same_tensors),
    "ONNX Runtime, percentile": _apart(onnx_runtime, "Percentile"),
    "ONNX Runtime, minmax": _apart(onnx_runtime, "MinMax"),
}

GOALS = {"cpu": 3.0, "cuda": 20.0}
"""How many times the entropy calibrator's samples a second."""

NETWORKS = {"cpu": "mobilenet_v1", "cuda": "resnet50"}
ZOO = ("mobilenet_v1", "resnet50")
SIDE, ROWS = 224, 500
PACKAGES = ("trtfleet", "ray", "onnxruntime", "onnxruntime-gpu", "pycuda", "pyarrow", "numpy")


def main() -> int:
    """Runs the benchmark; returns 1 when a way failed, else 0."""
    options = _options()
    case = _case(options)
    chosen = options.only or list(WAYS)
    results: dict[str, Any] = {
        "machine": facts_of_machine(),
        "network": options.network,
        "side": options.side,
        "rows": case.rows,
        "batch_rows": case.batch_rows,
        "device": case.device,
        "is_full_size": (options.network, options.side, case.rows) == (NETWORKS[case.device], SIDE, ROWS),
        "ways": {name: {"runs": [], "error": ""} for name in chosen},
    }
    for turn in range(options.rounds):
        for name, found in results["ways"].items():
            if not found["error"]:
                _take_turn(name, found, case, options.limit_s)
                _say(f"round {turn + 1}: {name}: {_last(found)}")
                Path(options.json).write_text(json.dumps(results, indent=2) + "\n")
    print("\n".join(lines_of(results)))
    print(f"\nevery single time: {options.json}")
    return 1 if any(found["error"] for found in results["ways"].values()) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=[*GOALS], default="cpu", help="where networks execute")
    parser.add_argument(
        "--network",
        help="default: mobilenet_v1, resnet50 on a GPU",
        choices=["small_resnet", "resnet18", *ZOO],
    )
    parser.add_argument("--rows", type=int, help=f"images, all of which are samples (default {ROWS})")
    parser.add_argument("--side", type=int, help=f"height and width of an image (default {SIDE})")
    parser.add_argument("--batch-rows", type=int, default=32, help="rows a batch (default 32)")
    parser.add_argument("--rounds", type=int, help="turns of every way (default 3)")
    parser.add_argument("--only", action="append", choices=[*WAYS], help="run this one; repeatable")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")
    parser.add_argument("--chunk-gib", type=float, default=2.0, help="activations that the peers may keep")
    parser.add_argument("--limit-s", type=float, default=600.0, help="after which a run counts as hanging")
    folder = Path(tempfile.gettempdir()) / "trtfleet-benchmarks"
    parser.add_argument("--work", default=str(folder), help=f"keeps the data between runs (default {folder})")
    parser.add_argument("--json", default="calibrate_vs_peers.json", help="where the results go")
    options = parser.parse_args()
    quick = options.quick
    options.network = options.network or ("small_resnet" if quick else NETWORKS[options.device])
    options.rows = options.rows or (70 if quick else ROWS)
    options.side = options.side or (64 if quick else SIDE)
    options.rounds = options.rounds or (1 if quick else 3)
    return options


def _case(options: argparse.Namespace) -> CalibrationCase:
    work = Path(options.work)
    name, side = options.network, options.side

    def make(folder: Path) -> None:
        if name in ZOO:
            model = import_module("trtfleet.tests.models.zoo").load(name)
            for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
                dim.dim_value = side
        else:
            model = {"resnet18": resnet18, "small_resnet": small_resnet}[name](size=side)
        onnx.save(model, str(folder / f"{name}.onnx"))

    scale = Scale(device=options.device, side=side, distinct=options.rows, batch_rows=options.batch_rows)
    return CalibrationCase(
        model=made(work / f"calibrate-{name}-{side}", make) / f"{name}.onnx",
        files=tuple(images(scale, work, "binary", 1)),
        rows=options.rows,
        batch_rows=options.batch_rows,
        device=options.device,
        chunk_bytes=round(options.chunk_gib * 2**30),
    )


def _take_turn(name: str, found: dict[str, Any], case: CalibrationCase, limit_s: float) -> None:
    try:
        run = WAYS[name](case, limit_s)
        if run["rows"] != case.rows:
            raise ApartError(f"it took {run['rows']} rows instead of {case.rows}")
        found["runs"].append(run)
    except ApartError as error:
        found["error"] = str(error)


def lines_of(results: dict[str, Any]) -> list[str]:
    """The results as a Markdown table, followed by the goals."""
    facts, ways = results["machine"], results["ways"]
    lines = [
        "",
        f"{facts['gpu']}; {facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, load "
        f"{facts['load_before']:.1f} before; Python {facts['python']}, "
        + ", ".join(f"{package} {facts[package]}" for package in PACKAGES if facts.get(package)),
        f"{results['network']}, {results['rows']} images of {results['side']}x{results['side']}, batch size "
        f"{results['batch_rows']}, {results['device']}",
        "",
        "| | median s | min to max | samples/s | tensors | x entropy | peak GiB |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [f"| {name} | {_cells(found, results)} |" for name, found in ways.items()]
    note = "" if results["is_full_size"] else " (not the full size, for which the goal is set)"
    least = GOALS[results["device"]]
    goals = [
        f"{name} against {peer}: {_goal(ways[name], ways[peer], least)}{note}"
        for name in (COMMAND, JOB, ACTORS)
        for peer in (ENTROPY, SAME)
        if name in ways and peer in ways
    ]
    return [*lines, "", *goals]


def _cells(found: dict[str, Any], results: dict[str, Any]) -> str:
    if found["error"] or not found["runs"]:
        return f"failed: {found['error'][:80]} | | | | | "
    seconds = [run["seconds"] for run in found["runs"]]
    peer = _rate(results["ways"].get(ENTROPY))
    rate = _rate(found) or 0.0
    # A command and a job have processes whose memory is not seen.
    is_seen = "actors" not in found["runs"][0]
    return " | ".join(
        [
            f"{statistics.median(seconds):.1f}",
            f"{min(seconds):.1f} to {max(seconds):.1f}",
            f"{rate:,.1f}",
            str(found["runs"][0]["tensors"]),
            f"{rate / peer:.2f}" if peer else "",
            f"{max(run['peak_bytes'] for run in found['runs']) / 2**30:.1f}" if is_seen else "",
        ]
    )


def _goal(ours: dict[str, Any], peer: dict[str, Any], least: float) -> str:
    mine, theirs = _rate(ours), _rate(peer)
    if mine is None or theirs is None:
        return f"nothing to compare, goal {least:g} x"
    verdict = "met" if mine / theirs >= least else "MISSED"
    return f"{mine / theirs:.2f} x, goal >= {least:g} x: {verdict}"


def _rate(found: dict[str, Any] | None) -> float | None:
    """Samples a second at the median; None for a way that failed or did not run."""
    if found is None or found["error"] or not found["runs"]:
        return None
    rows: int = found["runs"][0]["rows"]
    return rows / statistics.median(run["seconds"] for run in found["runs"])


def _last(found: dict[str, Any]) -> str:
    return f"failed: {found['error']}" if found["error"] else f"{found['runs'][-1]['seconds']:.1f} s"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
