"""Choosing a batch size: the smallest that is nearly as fast as the best and worth its overhead."""

from __future__ import annotations

import time

import numpy as np

from ..datasets.output import Output
from ..errors import UsageError
from .engine import Engine, Slot

__all__ = ["agree_batch_size", "measure_batch_size", "run_alone"]

_LARGEST = 4096
_MOST_BYTES = 64 << 20
_TOLERANCE = 0.03
_WORTHWHILE_S = 0.004
_BUDGET_S = 1.5
_RUNS = 5
_LONG_RUN_S = 0.01
_UNMEASURED = 32


def agree_batch_size(engine: Engine, output: Output, wanted: int | None) -> int:
    """The batch size of every actor of a job.

    Without a wanted size the first actor's measurement is recorded in the output, and all actors, those of a
    resumed run included, take it from there: results may depend on it in their last bits.

    Raises:
        UsageError: More rows are wanted than the model's fixed batch size, or than the engine was built for.
        OutputError: The record cannot be written.
    """
    fixed, most = engine.inputs[0].batch, engine.max_batch_size
    if wanted is not None:
        if fixed is not None and wanted > fixed:
            raise UsageError(
                f"batch size {wanted} exceeds the model's fixed batch size {fixed}",
                f"say --batch-size {fixed} or export the model with a free batch dimension",
            )
        if most is not None and wanted > most:
            raise UsageError(
                f"batch size {wanted} exceeds the engine's max_batch_size {most}",
                f"raise --max-batch-size to {wanted} or lower --batch-size",
            )
        return wanted
    if fixed is not None:
        return fixed
    agreed = output.agree("batch", lambda: {"batch_size": measure_batch_size(engine)})
    return int(agreed["batch_size"])


def measure_batch_size(engine: Engine) -> int:
    """Doubles the batch until the rate stops rising or the time budget is spent.

    Handing a batch from thread to thread costs a few tenths of a millisecond, so a batch that runs for less
    than ``_WORTHWHILE_S`` is only taken when no larger one is about as fast. Inputs with free row dimensions
    cannot be made up, so their models get a fixed default.
    """
    if not all(spec.is_static for spec in engine.inputs):
        return min(_UNMEASURED, engine.max_batch_size or _UNMEASURED)
    row_bytes = max(1, sum(spec.row_bytes for spec in engine.inputs))
    rates: dict[int, float] = {}
    start, size, flat = time.perf_counter(), 1, 0
    largest = min(_LARGEST, engine.max_batch_size or _LARGEST)
    while size <= largest and (size == 1 or size * row_bytes <= _MOST_BYTES):
        before = max(rates.values(), default=0.0)
        rates[size] = _rate(engine, size)
        flat = 0 if rates[size] > before * (1 + _TOLERANCE) else flat + 1
        is_worthwhile = size / rates[size] >= _WORTHWHILE_S
        if (flat >= 2 and is_worthwhile) or time.perf_counter() - start > _BUDGET_S:
            break
        size *= 2
    best = max(rates.values())
    near = sorted(size for size, rate in rates.items() if rate >= best * (1 - 3 * _TOLERANCE))
    worthwhile = [size for size in near if size / rates[size] >= _WORTHWHILE_S] or near[-1:]
    fast = [size for size in worthwhile if rates[size] >= best * (1 - _TOLERANCE)]
    return min(fast or worthwhile)


def run_alone(engine: Engine, slot: Slot, rows: int) -> float:
    """Executes a filled slot with nothing else on the engine.

    Returns:
        The device's own seconds where the engine tells them, without copies, else those of this thread.
    """
    start_s, device_before_s = time.perf_counter(), engine.device_s
    engine.enqueue(slot, rows)
    engine.wait(slot)
    if device_before_s is None or engine.device_s is None:
        return time.perf_counter() - start_s
    return engine.device_s - device_before_s


def _rate(engine: Engine, rows: int) -> float:
    slot = engine.slot()
    for spec in engine.inputs:
        shape = tuple(dim for dim in spec.row_shape if isinstance(dim, int))
        slot.bind(spec.name, np.zeros((rows, *shape), spec.dtype))
    fastest, spent = float("inf"), 0.0
    for run in range(_RUNS):
        seconds = run_alone(engine, slot, rows)
        spent += seconds
        # The first run allocates; it counts only where runs are so long that this does not matter.
        if run or seconds > _LONG_RUN_S:
            fastest = min(fastest, seconds)
        if run and spent > _LONG_RUN_S:
            break
    return rows / max(fastest, 1e-9)
