"""What the GPU benchmark found: the tables, and the goals with what was measured against them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from gpu_explore import NO_GPU
from gpu_goals import goals_of, ratios_of
from report import machine

__all__ = ["facts_of_machine", "failures", "lines_of"]

PACKAGES = (
    "trtfleet",
    "ray",
    "onnxruntime-gpu",
    "onnxruntime",
    "pyarrow",
    "numpy",
    "onnx",
    "torch",
    "torchvision",
)
SHARES = ("executing", "starved", "blocked", "idle", "measuring")
Entry = Mapping[str, Any]


def facts_of_machine() -> dict[str, Any]:
    """This machine, its GPU, and the software that is measured."""
    found = machine()
    gpu = ""
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        gpu = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False).stdout.strip()
    return {**found, **{package: _version(package) for package in PACKAGES}, "gpu": gpu or NO_GPU}


def lines_of(results: Mapping[str, Any]) -> list[str]:
    """The results as Markdown tables, followed by the goals."""
    facts, options = results["machine"], results["options"]
    lines = [
        "",
        f"{facts['gpu']}; {facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB; "
        f"Python {facts['python']}, "
        + ", ".join(f"{package} {facts[package]}" for package in PACKAGES if facts.get(package)),
        f"batch {options['batch_rows']}, session {options['session'] or 'defaults'}, "
        f"score with {options['score_options'] or 'its defaults'}",
    ]
    workloads = results["workloads"]
    lines += _run_lines(workloads)
    lines += _engine_lines(workloads)
    lines += _latency_lines(workloads)
    lines += _word_lines(workloads)
    lines += ["", *map(_goal_line, goals_of(results))]
    if options["device"] != "cuda":
        lines.append(f"{NO_GPU}: the goals are not judged")
    elif not options["is_full"]:
        lines.append("not the full size: the goals are not judged")
    return lines


def failures(results: Mapping[str, Any]) -> list[str]:
    """Rows that failed for another reason than a missing GPU."""
    return [
        f"{name}: {row['name']}: {row['error']}"
        for name, entry in results["workloads"].items()
        for row in _rows(name, entry)
        if row.get("error") not in (None, NO_GPU)
    ] + [f"{name}: {entry['error']}" for name, entry in results["workloads"].items() if entry.get("error")]


def _goal_line(goal: Mapping[str, Any]) -> str:
    sign, unit = "<" if goal["is_at_most"] else ">=", f" {goal['unit']}".rstrip()
    if goal["value"] is None:
        return f"{goal['text']}: nothing to compare, goal {sign} {goal['bound']:g}{unit}"
    verdict = {True: "met", False: "MISSED", None: "not judged"}[goal["is_met"]]
    return f"{goal['text']}: {goal['value']:.2f}{unit}, goal {sign} {goal['bound']:g}{unit}: {verdict}"


def _run_lines(workloads: Mapping[str, Entry]) -> Iterator[str]:
    yield ""
    heads = (
        "rows/s",
        "with start-up",
        "x engine",
        *SHARES,
        "sum",
        "device",
        "alone / device",
        "cores",
        "peak MiB",
    )
    yield "| workload | what | rows | s | " + " | ".join(heads) + " |"
    yield "|---|---|" + "--:|" * (2 + len(heads))
    for name, entry in workloads.items():
        engine = entry.get("engine_rows_per_s")
        for row in (*entry.get("runs", []), *entry.get("peers", [])):
            if "error" in row:
                yield f"| {name} | {row['name']} | failed: {row['error'][:120]} |"
                continue
            shares = row.get("summary", {}).get("shares") or {}
            account, memory = row.get("account", {}), row.get("memory", {})
            cells = [
                f"{row['rows_per_s']:,.0f}",
                f"{row['rows_per_s_in_all']:,.0f}",
                f"{row['rows_per_s'] / engine:.3f}" if engine else "",
                *(_percent(shares.get(share)) for share in SHARES),
                _number(account.get("sum"), ".3f"),
                _percent(account.get("device")),
                _number(account.get("explained"), ".2f"),
                _percent(row.get("cores_busy")),
                _number((memory.get("resident_bytes") or 0) / 2**20 or None, ",.0f"),
            ]
            yield f"| {name} | {row['name']} | {row['rows']:,} | {row['seconds']:.2f} | {' | '.join(cells)} |"


def _engine_lines(workloads: Mapping[str, Entry]) -> Iterator[str]:
    entries = {name: entry["engine_only"] for name, entry in workloads.items() if "engine_only" in entry}
    if not entries:
        return
    yield from ("", "| workload | engine by itself | rows/s | min to max | load s | first run s |")
    yield "|---|---|--:|--:|--:|--:|"
    for name, rows in entries.items():
        for row in rows:
            if "error" in row:
                yield f"| {name} | {row['name']} | {row['error'][:120]} |"
                continue
            spread = f"{min(row['rates']):,.0f} to {max(row['rates']):,.0f}"
            times = f"{_number(row.get('load_s'), '.1f')} | {_number(row.get('first_s'), '.1f')}"
            yield f"| {name} | {row['name']} | {row['rows_per_s']:,.0f} | {spread} | {times} |"


def _latency_lines(workloads: Mapping[str, Entry]) -> Iterator[str]:
    rows = workloads.get("latency", {}).get("latencies", [])
    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for ms in row.get("ms", {}).values() for name in ms))
    yield from (
        "",
        "| network | batch | " + "".join(f"{name}, ms | " for name in names) + "ratio | without TF32 |",
    )
    yield "|---|--:|" + "--:|" * (len(names) + 2)
    for row in rows:
        if "error" in row:
            yield f"| {row['name']} | {row['error'][:120]} |"
            continue
        for batch, ms in row["ms"].items():
            times = " | ".join(_number(ms.get(name), ".3f") for name in names)
            ratios = " | ".join(_number(ratio, ".2f") for ratio in ratios_of(ms))
            yield f"| {row['name']} | {batch} | {times} | {ratios} |"


def _word_lines(workloads: Mapping[str, Entry]) -> Iterator[str]:
    for name, entry in workloads.items():
        runs = [row for row in entry.get("runs", []) if "error" not in row and "quarter" not in row["name"]]
        if runs:
            yield from ("", f"{name}, {runs[-1]['name']}, in trtfleet's words:")
            yield from (f"    {line}" for line in runs[-1]["words"])


def _rows(name: str, entry: Entry) -> list[Mapping[str, Any]]:
    """All rows of a workload but the settings explored: that one of those fails is a finding."""
    if name == "explore":
        return []
    return [row for key in ("engine_only", "runs", "peers", "latencies") for row in entry.get(key, [])]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
