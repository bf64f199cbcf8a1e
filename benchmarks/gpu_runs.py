"""Runs of trtfleet as a user would start them, watched from outside, and their results read back."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import trtfleet
from gpu_watch import Watch

__all__ = ["account_of", "best_classes", "fresh_folder", "run_trtfleet"]

_ROUNDING = 1e-6
_CALL_S = 0.5


@contextlib.contextmanager
def fresh_folder(work: Path) -> Iterator[Path]:
    """A path for an output that does not exist, and will not any more afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="out-", dir=work))
    try:
        yield folder / "scored"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_trtfleet(model: Path, files: Sequence[Path], out: Path, **options: Any) -> dict[str, Any]:
    """Calls ``trtfleet.score`` as a user would.

    Args:
        model: The network as trained.
        files: The dataset.
        out: Where results go.
        options: Of ``trtfleet.score``.

    Returns:
        The summary as plain values under ``summary``; ``seconds`` of the call; ``rows_per_s`` from the first
        actor being ready to the last commit, ``rows_per_s_in_all`` with start and merging; what ``Watch``
        saw; and ``account``, how the shares of time add up.
    """
    with Watch() as watch:
        start_s = time.monotonic()
        summary = trtfleet.score(model, [str(path) for path in files], out, **options)
        end_s = time.monotonic()
    scored_s = end_s - summary.merge_s
    return {
        "rows": summary.rows,
        "seconds": end_s - start_s,
        "rows_per_s": summary.rows_per_s,
        "rows_per_s_in_all": summary.rows / (end_s - start_s),
        "cores_busy": watch.cores_busy(scored_s - summary.scoring_s, scored_s),
        "memory": watch.memory(),
        "account": account_of(summary, end_s - start_s),
        "words": summary.lines(),
        "summary": summary.as_json(),
    }


def account_of(summary: Any, seconds: float) -> dict[str, Any]:
    """Whether the summary's account of time is consistent with itself and with our clock.

    Args:
        summary: Of the job.
        seconds: What the call took by our clock.

    Returns:
        ``sum`` of the shares of time, to be 1; ``device``, the device's share by its own clocks, which the
        share of executing contains; ``wall``, the summary's seconds by ours, to be about 1; ``adds_up``,
        whether all of that holds. And ``explained``: what the rows take at the engine's own rate by the
        device's seconds in the job, two measurements that know nothing of each other; below 1 where batches
        in the job run slower.
    """
    shares = summary.as_json().get("shares")
    if not shares:
        return {"sum": None, "adds_up": None}
    total, wall = sum(shares.values()), summary.seconds / seconds
    device = getattr(summary, "device_share", None)
    explained = None
    if device and summary.engine_rows_per_s:
        alone_s = summary.rows_scored * summary.actors / summary.engine_rows_per_s
        explained = alone_s / (device * summary.scoring_s * summary.actors)
    adds_up = (
        abs(total - 1) < _ROUNDING
        and (device is None or device <= shares["executing"] + _ROUNDING)
        and abs(summary.seconds - seconds) < _CALL_S
    )
    return {"sum": total, "device": device, "wall": wall, "explained": explained, "adds_up": adds_up}


def best_classes(out: Path, distinct: int, files: int, *, is_ordered: bool) -> np.ndarray:
    """Reads a result of the images back.

    Args:
        out: Parquet with ``id`` and a column of answers, best first, whose name ends in ``_indices``.
        distinct: Rows of a file, whose ids are 0, 1, 2, ...
        files: Of the dataset.
        is_ordered: Whether rows must be in the dataset's order.

    Returns:
        The best class of every row, int64 [distinct, files], sorted by id.

    Raises:
        ValueError: Rows are missing, doubled or out of order.
    """
    found = pa.concat_tables([pq.read_table(part) for part in sorted(out.glob("*.parquet"))])
    ids = found["id"].to_numpy()
    if len(ids) != distinct * files:
        raise ValueError(f"{len(ids):,} rows were written instead of {distinct * files:,}")
    if is_ordered and not np.array_equal(ids, np.tile(np.arange(distinct), files)):
        raise ValueError("rows are not in the dataset's order")
    order = np.argsort(ids, kind="stable")
    if not np.array_equal(ids[order], np.repeat(np.arange(distinct), files)):
        raise ValueError("rows are missing, others are there twice")
    name = next(name for name in found.column_names if name.endswith("_indices"))
    answers = found[name].combine_chunks().flatten().to_numpy().reshape(len(ids), -1)
    return answers[order, 0].reshape(distinct, files)
