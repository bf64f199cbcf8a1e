"""The goals of the GPU benchmark, and what was measured against them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from gpu_torch import EAGER_STRICT, EAGER_TF32

__all__ = ["goals_of", "ratios_of"]

LEAST_AGREEMENT = 0.98
MOST_MEMORY_GIB = 4.0
ONE_ACTOR, TWO_ACTORS = "trtfleet, 1 actor", "trtfleet, 2 actors"
Entry = Mapping[str, Any]


def goals_of(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every goal of the workloads that ran.

    Returns:
        ``text``, ``value`` (None where nothing was measured), ``bound``, ``is_at_most``, ``unit``, and
        ``is_met``: None where there is nothing to judge, because of a missing value, a smaller size, or no
        GPU.
    """
    is_judged = results["options"]["is_full"] and results["options"]["device"] == "cuda"
    return [
        {**goal, "is_met": _is_met(goal) if is_judged or goal["unit"] == "" else None}
        for goal in _goals(results["workloads"])
    ]


def ratios_of(ms: Mapping[str, float]) -> tuple[float | None, float | None]:
    """PyTorch's milliseconds by those of the best session in the same precision: with TF32, and without."""
    ours = {name: value for name, value in ms.items() if name not in (EAGER_TF32, EAGER_STRICT)}
    strict = [value for name, value in ours.items() if name.startswith("no TF32")]
    tf32 = [value for name, value in ours.items() if not name.startswith("no TF32")]
    return (
        ms[EAGER_TF32] / min(tf32) if tf32 else None,
        ms[EAGER_STRICT] / min(strict) if strict else None,
    )


def _goals(workloads: Mapping[str, Entry]) -> Iterator[dict[str, Any]]:
    images = workloads.get("images", {})
    if images:
        yield _goal("images: trtfleet by the engine alone", _by_engine(images), 0.97)
        others = [r["rows_per_s"] for r in images.get("peers", []) if _is_ray_data(r)]
        ours = _median(images, ONE_ACTOR)
        value = ours / max(others) if others and ours else None
        yield _goal("images: trtfleet by Ray Data's best settings", value, 10.0)
    if "tensor" in workloads:
        yield _goal("tensor: trtfleet by the engine alone", _by_engine(workloads["tensor"]), 0.60)
        yield _goal(
            "tensor: the summary names reading as the limit", _names_reading(workloads["tensor"]), 1, ""
        )
    if "jpeg" in workloads:
        jpeg = workloads["jpeg"]
        yield _goal(
            "jpeg: share of the cores that decode", _median(jpeg, ONE_ACTOR, "cores_busy"), 0.90, "of 1"
        )
        if jpeg.get("gpu_decoder"):
            yield _goal("jpeg: trtfleet by the engine alone", _by_engine(jpeg), 0.80)
    if "table" in workloads:
        value = _median(workloads["table"], "trtfleet, columns", "gb_per_s")
        yield _goal("table: input columns through one GPU", value, 2.0, "GB/s")
    if "two_actors" in workloads:
        one, two = (_median(workloads["two_actors"], name) for name in (ONE_ACTOR, TWO_ACTORS))
        yield _goal("two actors by one on the same GPU", two / one if one and two else None, 1.0)
    yield from _overall(workloads)
    for row in workloads.get("latency", {}).get("latencies", []):
        for batch, least in row.get("goals", {}).items():
            value = ratios_of(row["ms"][batch])[0]
            yield _goal(f"latency of {row['name']} at batch {batch}: PyTorch eager by ours", value, least)


def _overall(workloads: Mapping[str, Entry]) -> Iterator[dict[str, Any]]:
    runs = [row for entry in workloads.values() for row in entry.get("runs", []) if "error" not in row]
    if not runs:
        return
    peaks = [row["memory"]["resident_bytes"] for row in runs if row["memory"]["resident_bytes"]]
    value = max(peaks) / 2**30 if peaks else None
    yield _goal(
        "host memory of an actor, the most of all runs", value, MOST_MEMORY_GIB, "GiB", is_at_most=True
    )
    told = [row["account"]["adds_up"] for row in runs if row["account"]["adds_up"] is not None]
    yield _goal("runs whose account of time adds up", sum(told) / len(told) if told else None, 1.0, "")
    scored = (row for entry in workloads.values() for key in ("runs", "peers") for row in entry.get(key, []))
    agreed = [row["agreement"] for row in scored if row.get("agreement") is not None]
    text = "best classes that agree with the first result's, the least of all"
    yield _goal(text, min(agreed, default=None), LEAST_AGREEMENT, "")


def _goal(
    text: str, value: float | None, bound: float, unit: str = "x", *, is_at_most: bool = False
) -> dict[str, Any]:
    return {"text": text, "value": value, "bound": bound, "unit": unit, "is_at_most": is_at_most}


def _is_met(goal: Mapping[str, Any]) -> bool | None:
    value, bound = goal["value"], goal["bound"]
    if value is None:
        return None
    return bool(value < bound) if goal["is_at_most"] else bool(value >= bound)


def _median(entry: Entry, name: str, key: str = "rows_per_s") -> float | None:
    values = [row[key] for row in entry.get("runs", []) if row["name"] == name and row.get(key) is not None]
    return statistics.median(values) if values else None


def _by_engine(entry: Entry) -> float | None:
    ours, engine = _median(entry, ONE_ACTOR), entry.get("engine_rows_per_s")
    return ours / engine if ours and engine else None


def _is_ray_data(row: Mapping[str, Any]) -> bool:
    return row["name"].startswith("Ray Data") and "error" not in row


def _names_reading(entry: Entry) -> float | None:
    told = [line for row in entry.get("runs", []) for line in row.get("words", []) if "limit" in line]
    return float(any("reading" in line for line in told)) if told else None
