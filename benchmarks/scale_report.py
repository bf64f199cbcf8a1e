"""What the simulation found: a table, the goals, and the machine it ran on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from report import machine

__all__ = ["GOALS", "lines_of", "save"]

GOALS = {
    "process_cpu_us": ("CPU a shard, the simulated cluster included", 200.0, "us"),
    "peak_mib": ("peak memory", 1024.0, "MiB"),
    "first_dispatch_s": ("start to first dispatch from cached footers", 30.0, "s"),
}
"""What the largest fresh case is held against: words, the value to stay below, its unit."""

_HAPPENED = {
    "StartActor": "actors started",
    "ActorFailedToStart": "failed starts",
    "died": "deaths",
    "frozen": "frozen actors",
    "ShardError": "errors",
    "again": "further attempts",
    "twins": "commits that came second",
}
_REAL = {
    "calls": ("a shard through Ray and two actors that answer at once", "shards"),
    "footers": ("a footer of 10 row groups and 12 columns, local", "files"),
    "records": ("a commit record, local", "records"),
}


def lines_of(results: Mapping[str, Any]) -> list[str]:
    """The results as Markdown tables, followed by the goals."""
    facts = results["machine"]
    lines = [
        "",
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB; Python {facts['python']}, "
        f"ray {facts['ray']}, pyarrow {facts['pyarrow']}",
        "",
        "| shards | actors | CPU us a shard | of it the driver | peak MiB | planning s | first dispatch s "
        "| events |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [_case_line(case) for case in results["cases"]]
    lines += ["", "| shards | virtual | what happened |", "|--:|--:|---|"]
    lines += [_happened_line(case) for case in results["cases"] if not case["error"]]
    lines += ["", "| measured for real | CPU us | wall us | number |", "|---|--:|--:|--:|"]
    lines += [_real_line(name, found) for name, found in results["real"].items()]
    note = "" if results["is_full_size"] else " (not the full size, for which the goal is set)"
    goals = [f"{goal['text']}: {_number(goal)}{note}" for goal in results["goals"]]
    return [*lines, "", *goals]


def save(results: dict[str, Any], path: Path) -> None:
    """Adds the machine and the goals, and writes all of it; called after each part."""
    results.setdefault("machine", machine())
    fresh = [case for case in results["cases"] if not case["error"] and not case["resumed"]]
    largest = max(fresh, key=lambda case: case["shards"], default=None)
    results["goals"] = [
        {"text": text, "value": largest[key], "below": below, "unit": unit, "is_met": largest[key] < below}
        for key, (text, below, unit) in GOALS.items()
        if largest is not None
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")


def _case_line(case: Mapping[str, Any]) -> str:
    name = f"| {case['shards']:,}{_resumed(case)} | {case['actors']:,} |"
    if case["error"]:
        return f"{name} failed: {case['error'][:80]} | | | | | |"
    return (
        f"{name} {case['process_cpu_us']:.0f} | {case['driver_us']:.0f} | {case['peak_mib']:,.0f} "
        f"| {case['planning_s']:.1f} | {case['first_dispatch_s']:.1f} | {case['events']:,} |"
    )


def _happened_line(case: Mapping[str, Any]) -> str:
    words = [f"{case['happened'].get(key, 0):,} {text}" for key, text in _HAPPENED.items()]
    return f"| {case['shards']:,}{_resumed(case)} | {case['virtual_s'] / 60:.0f} min | {', '.join(words)} |"


def _resumed(case: Mapping[str, Any]) -> str:
    return f", {case['resumed']:.0%} committed before" if case["resumed"] else ""


def _real_line(name: str, found: Mapping[str, Any]) -> str:
    text, of = _REAL[name]
    if found["error"]:
        return f"| {text} | failed: {found['error'][:80]} | | |"
    return f"| {text} | {found['cpu_us']:.0f} | {found['wall_us']:.0f} | {found['count']:,} {of} |"


def _number(goal: Mapping[str, Any]) -> str:
    verdict = "met" if goal["is_met"] else "MISSED"
    return f"{goal['value']:,.1f} {goal['unit']}, goal < {goal['below']:g} {goal['unit']}: {verdict}"
