"""What the benchmark found: medians, ratios, goals, and the machine it ran on."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from peers import PLAIN, RAY_DATA, TRTFLEET, Peer, cores
from workloads import Case

__all__ = ["fold_workload", "lines_of", "machine", "save"]

PACKAGES = ("trtfleet", "ray", "onnxruntime", "pyarrow", "numpy", "onnx", "pandas")
OVERHEAD_GOAL_MS = 5.0


@dataclass(frozen=True, kw_only=True)
class Goal:
    """How much faster than a peer trtfleet is to be.

    Attributes:
        text: In words.
        kind: The peer's kind; its fastest settings count.
        threads: Only settings with so many threads; None for all.
        least: The least ratio of the peer's seconds to trtfleet's.
    """

    text: str
    kind: str
    threads: int | None = None
    least: float


GOALS: Mapping[str, Sequence[Goal]] = {
    "digits": (
        Goal(text="against Ray Data's best settings", kind=RAY_DATA, least=4.0),
        Goal(text="against the plain loop's best number of threads", kind=PLAIN, least=1.0),
    ),
    "small_resnet": (
        Goal(text="against the plain loop on one thread", kind=PLAIN, threads=1, least=1.4),
        Goal(text="against Ray Data's best settings", kind=RAY_DATA, least=2.0),
    ),
    "resnet18": (Goal(text="against the plain loop's best number of threads", kind=PLAIN, least=0.95),),
}


def machine() -> dict[str, Any]:
    """Facts about this machine and the software that is measured."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    sizes = (int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    total_kib = next(sizes, 0)
    return {
        "cpu": cpu,
        "cores": cores(),
        "memory_gib": round(total_kib / 2**20, 1),
        "load_before": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def fold_workload(
    case: Case, found: Sequence[tuple[Peer, Mapping[str, Any]]], is_full_size: bool
) -> dict[str, Any]:
    """Medians and ratios of one workload.

    Args:
        case: What was scored.
        found: Every peer with its ``seconds`` and the facts to keep.
        is_full_size: Whether the goals, which are for the full number of rows, say anything.
    """
    ours = next((_median(times) for peer, times in found if peer.kind == TRTFLEET), None)
    peers = []
    for peer, times in found:
        seconds, middle = times["seconds"], _median(times)
        entry: dict[str, Any] = {"name": peer.name, "kind": peer.kind, "threads": peer.threads, **times}
        if middle is not None:
            entry |= {"median_s": middle, "min_s": min(seconds), "max_s": max(seconds)}
            entry["rows_per_s"] = case.rows / middle
            entry["ratio"] = None if ours is None else middle / ours
        peers.append(entry)
    return {
        "bound_by": case.workload.bound_by,
        "rows": case.rows,
        "row_bytes": case.workload.row_bytes,
        "normalize": case.workload.normalize,
        "is_full_size": is_full_size,
        "batch_rows_by_threads": {str(threads): rows for threads, rows in case.batch_rows.items()},
        "peers": peers,
        "goals": [_judged(goal, peers) for goal in GOALS[case.workload.name]],
    }


def lines_of(results: Mapping[str, Any]) -> list[str]:
    """The results as a Markdown table, followed by the goals."""
    facts = results["machine"]
    lines = [
        "",
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB; Python {facts['python']}, "
        + ", ".join(f"{package} {facts[package]}" for package in PACKAGES if facts[package]),
        "",
        "| workload | peer | median s | min to max | rows/s | seconds / trtfleet's |",
        "|---|---|--:|--:|--:|--:|",
    ]
    goals = []
    for name, workload in results["workloads"].items():
        lines += [
            f"| {name}, {workload['rows']:,} rows | {peer['name']} | {_cells(peer)} |"
            for peer in workload["peers"]
        ]
        note = "" if workload["is_full_size"] else " (not the full size, for which the goal is set)"
        goals += [f"{name}: {_goal_line(goal)}{note}" for goal in workload["goals"]]
    if "overhead" in results:
        goals.append(_overhead_line(results["overhead"]))
    return [*lines, "", *goals]


def save(results: Mapping[str, Any], path: Path) -> None:
    """Writes the results; called after each workload, so that an interrupted run leaves what it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")


def _judged(goal: Goal, peers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ratios = [
        peer["ratio"]
        for peer in peers
        if peer["kind"] == goal.kind and goal.threads in (None, peer["threads"]) and peer.get("ratio")
    ]
    ratio = min(ratios, default=None)
    is_met = None if ratio is None else ratio >= goal.least
    return {"text": goal.text, "least": goal.least, "ratio": ratio, "is_met": is_met}


def _goal_line(goal: Mapping[str, Any]) -> str:
    if goal["ratio"] is None:
        return f"{goal['text']}: nothing to compare, goal {goal['least']:g} x"
    verdict = "met" if goal["is_met"] else "MISSED"
    return f"{goal['text']}: {goal['ratio']:.2f} x, goal >= {goal['least']:g} x: {verdict}"


def _overhead_line(overhead: Mapping[str, Any]) -> str:
    cost = overhead.get("ms_a_shard")
    if cost is None:
        return f"overhead: failed: {overhead['error']}"
    verdict = "met" if cost < OVERHEAD_GOAL_MS else "MISSED"
    return (
        f"overhead: {cost:.2f} ms a shard over {overhead['shards']:,} shards, "
        f"goal < {OVERHEAD_GOAL_MS:g} ms: {verdict}"
    )


def _cells(peer: Mapping[str, Any]) -> str:
    if peer["error"]:
        return f"failed: {peer['error'][:80]} | | | "
    ratio = "" if peer["ratio"] is None else f"{peer['ratio']:.2f}"
    spread = f"{peer['min_s']:.2f} to {peer['max_s']:.2f}"
    return f"{peer['median_s']:.2f} | {spread} | {peer['rows_per_s']:,.0f} | {ratio}"


def _median(times: Mapping[str, Any]) -> float | None:
    """None for a peer that failed: its other runs may have been cut short in ways nobody saw."""
    return statistics.median(times["seconds"]) if times["seconds"] and not times["error"] else None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
