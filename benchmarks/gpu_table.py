"""The workload of numbers: 256 float32 columns through a network of two small layers, in three layouts.

``columns``, one column a number, is what the goal speaks of; trtfleet stacks them into rows. FixedSizeBinary
and ``fixed_size_list`` hold the same numbers a row at a time, and show what stacking or decoding costs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gpu_data
import gpu_networks
import pyarrow.parquet as pq
from gpu_bench import Bench
from gpu_runs import fresh_folder, run_trtfleet

__all__ = ["table"]

RUN_LIMIT_S = 90.0
SMALLER = 4


def table(bench: Bench, entry: dict[str, Any]) -> None:
    """Each layout once, the columns as often as there are rounds, at most twice."""
    scale = bench.scale
    fewer = max(1, scale.table_copies // SMALLER)
    entry["row_bytes"] = 4 * scale.columns
    for _ in range(min(2, scale.rounds)):
        _run(bench, entry, "columns", scale.table_copies)
    _run(bench, entry, "binary", fewer)
    _run(bench, entry, "list", fewer)


def _run(bench: Bench, entry: dict[str, Any], layout: gpu_data.TableLayout, copies: int) -> None:
    scale = bench.scale
    files = gpu_data.table(scale, bench.work, layout, copies)
    columns = gpu_data.names(scale.columns) if layout == "columns" else ["features"]

    def run() -> dict[str, Any]:
        with fresh_folder(bench.work) as out:
            facts = run_trtfleet(
                gpu_networks.mlp(scale, bench.work),
                files,
                out,
                **{
                    "input": {"features": columns},
                    "backend": bench.backend,
                    "actors": 1,
                    **{k: v for k, v in bench.score_options.items() if k not in ("precision", "batch_size")},
                },
            )
            _check_rows(out, scale.table_rows * copies)
        gigabytes = facts["rows_per_s"] * entry["row_bytes"] / 1e9
        return {**facts, "layout": layout, "gb_per_s": gigabytes}

    bench.measure(entry.setdefault("runs", []), f"trtfleet, {layout}", RUN_LIMIT_S, run)


def _check_rows(out: Path, rows: int) -> None:
    found = sum(pq.read_metadata(part).num_rows for part in sorted(out.glob("*.parquet")))
    if found != rows:
        raise ValueError(f"{found:,} rows were written instead of {rows:,}")
