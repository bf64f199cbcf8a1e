"""Choosing a batch size: the smallest that is nearly as fast as the best and worth its overhead."""

from __future__ import annotations

import time

from ..datasets.output import Output
from ..errors import UsageError
from .engine import Engine
from .warm_up import bind_zeros, run_alone

__all__ = ["agree_batch_size", "measure_batch_size"]

_LARGEST = 4096
_MOST_BYTES = 64 << 20
_TOLERANCE = 0.03
_WORTHWHILE_S = 0.004
_BUDGET_S = 1.5
_DEVICE_BUDGET_S = 12.0
_SMALLEST_ON_DEVICE = 8
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
    # A device chooses kernels for each size, which takes long, and small batches are never its best.
    start, size, flat = time.perf_counter(), 1 if engine.device_s is None else _SMALLEST_ON_DEVICE, 0
    budget_s = _BUDGET_S if engine.device_s is None else _DEVICE_BUDGET_S
    largest = min(_LARGEST, engine.max_batch_size or _LARGEST)
    size = min(size, largest)
    while size <= largest and (not rates or size * row_bytes <= _MOST_BYTES):
        before = max(rates.values(), default=0.0)
        rates[size] = _rate(engine, size)
        flat = 0 if rates[size] > before * (1 + _TOLERANCE) else flat + 1
        is_worthwhile = size / rates[size] >= _WORTHWHILE_S
        if (flat >= 2 and is_worthwhile) or time.perf_counter() - start > budget_s:
            break
        size *= 2
    best = max(rates.values())
    near = sorted(size for size, rate in rates.items() if rate >= best * (1 - 3 * _TOLERANCE))
    worthwhile = [size for size in near if size / rates[size] >= _WORTHWHILE_S] or near[-1:]
    fast = [size for size in worthwhile if rates[size] >= best * (1 - _TOLERANCE)]
    return min(fast or worthwhile)


def _rate(engine: Engine, rows: int) -> float:
    slot = engine.slot()
    bind_zeros(engine, slot, rows)
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
