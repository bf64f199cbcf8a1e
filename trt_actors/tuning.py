"""Choosing a batch size: the smallest that is nearly as fast as the best and worth its overhead."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from ..datasets.output import Output
from ..errors import TrtfleetError, UsageError
from .device_name import CPU, slug_of
from .engine import Engine
from .out_of_memory import free_slots, out_of_memory
from .remembered import BatchMemory
from .warm_up import bind_zeros, run_alone

__all__ = [
    "AgreedBatchSize",
    "MeasuredBatchSize",
    "agree_batch_size",
    "agreed_batch_size",
    "measure_batch_size",
    "most_measured",
]

_LARGEST = 4096
_LARGEST_ON_DEVICE = 1 << 14
_MOST_BYTES = 64 << 20
_TOLERANCE = 0.03
_WORTHWHILE_S = 0.004
_BUDGET_S = 1.5
_DEVICE_BUDGET_S = 12.0
_SMALLEST_ON_DEVICE = 8
_RUNS = 5
_LONG_RUN_S = 0.01
_UNMEASURED = 32
_RECORD = "batch"


@dataclass(frozen=True, kw_only=True)
class AgreedBatchSize:
    """The batch size of a job.

    Attributes:
        rows: Rows a batch.
        origin: ``given`` by the user or the model, ``measured`` by this job, ``remembered`` from an earlier
            one; empty where it is a default.
    """

    rows: int
    origin: str


@dataclass(frozen=True, kw_only=True)
class MeasuredBatchSize:
    """What measuring an engine found.

    Attributes:
        rows: Rows a batch.
        rows_per_s: The engine's rate with it; 0 where it could not be measured and ``rows`` is a default.
    """

    rows: int
    rows_per_s: float


def agree_batch_size(
    engine: Engine, output: Output, wanted: int | None, memory: BatchMemory | None = None, device: str = CPU
) -> AgreedBatchSize:
    """The batch size of every actor of a job on one class of devices.

    Without a wanted size that of an earlier job on such a device is taken, else the first actor measures. It
    is recorded in the output, and all actors on such devices, those of a resumed run included, take it from
    there: results may depend on it in their last bits.

    Args:
        engine: Open.
        output: Of the job.
        wanted: What the user says; None for the best.
        memory: What earlier jobs measured, and where this one's measurement is kept.
        device: The class of the engine's device.

    Raises:
        UsageError: More rows are wanted than the model's fixed batch size, or than the engine was built for.
        OutOfMemoryError: There is no memory for a single row.
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
        return AgreedBatchSize(rows=wanted, origin="given")
    if fixed is not None:
        return AgreedBatchSize(rows=fixed, origin="given")
    agreed = output.agree(
        _record_of(device), lambda: _former(output) or {**_proposal(engine, memory), "device": device}
    )
    # Records of earlier versions do not tell the origin.
    return AgreedBatchSize(rows=int(agreed["batch_size"]), origin=str(agreed.get("origin", "")))


def agreed_batch_size(output: Output, device: str) -> int | None:
    """The batch size that the actors of an unfinished job agreed on; None where none has started.

    Args:
        output: Of the job.
        device: The class of an actor's device.
    """
    found = output.agreed(_record_of(device)) or _former(output)
    return None if found is None else int(found["batch_size"])


def _record_of(device: str) -> str:
    return _RECORD if device == CPU else f"{_RECORD}-{slug_of(device)}"


def _former(output: Output) -> dict[str, Any] | None:
    """What a version that knew one size for all devices had agreed on in this output."""
    former = output.agreed(_RECORD)
    return None if former is None or "device" in former else former


def _proposal(engine: Engine, memory: BatchMemory | None) -> dict[str, Any]:
    kept = memory.recall() if memory else None
    if kept is not None and kept <= (engine.max_batch_size or kept):
        return {"batch_size": kept, "origin": "remembered"}
    measured = measure_batch_size(engine)
    if not measured.rows_per_s:
        return {"batch_size": measured.rows, "origin": ""}
    if memory:
        memory.keep(measured.rows, measured.rows_per_s)
    return {"batch_size": measured.rows, "origin": "measured"}


def measure_batch_size(engine: Engine) -> MeasuredBatchSize:
    """Doubles the batch until the rate stops rising, memory runs out, or the time budget is spent.

    Handing a batch from thread to thread costs a few tenths of a millisecond, so a batch that runs for less
    than ``_WORTHWHILE_S`` is only taken when no larger one is about as fast. Inputs with free row dimensions
    cannot be made up, so their models get a fixed default, as do those that fail on zeros.

    Raises:
        OutOfMemoryError: There is no memory for a single row.
        TrtfleetError: The engine is not usable.
    """
    default = MeasuredBatchSize(rows=min(_UNMEASURED, engine.max_batch_size or _UNMEASURED), rows_per_s=0.0)
    if not all(spec.is_static for spec in engine.inputs):
        return default
    rates = _rates(engine)
    if not rates:
        return default
    best = max(rates.values())
    near = sorted(size for size, rate in rates.items() if rate >= best * (1 - 3 * _TOLERANCE))
    worthwhile = [size for size in near if size / rates[size] >= _WORTHWHILE_S] or near[-1:]
    fast = [size for size in worthwhile if rates[size] >= best * (1 - _TOLERANCE)]
    chosen = min(fast or worthwhile)
    return MeasuredBatchSize(rows=chosen, rows_per_s=rates[chosen])


def most_measured(row_bytes: int, *, on_device: bool, most: int | None = None) -> int:
    """The largest batch that measuring may come to, in rows.

    Args:
        row_bytes: Of all inputs; 0 for rows of varying size, which get a default instead.
        on_device: Whether a GPU executes.
        most: What the engine takes; None for any number.
    """
    if not row_bytes:
        return min(_UNMEASURED, most or _UNMEASURED)
    largest = _LARGEST_ON_DEVICE if on_device else _LARGEST
    return max(1, min(largest, most or largest, _MOST_BYTES // row_bytes))


def _rates(engine: Engine) -> dict[int, float]:
    """The engine's rate by batch size, from small to large; empty when it fails on zeros."""
    row_bytes = max(1, sum(spec.row_bytes for spec in engine.inputs))
    rates: dict[int, float] = {}
    # A device chooses kernels for each size, which takes long, and small batches are never its best.
    if engine.device_s is None:
        size, most, budget_s = 1, _LARGEST, _BUDGET_S
    else:
        size, most, budget_s = _SMALLEST_ON_DEVICE, _LARGEST_ON_DEVICE, _DEVICE_BUDGET_S
    start, flat = time.perf_counter(), 0
    largest = min(most, engine.max_batch_size or most)
    size = min(size, largest)
    while size <= largest and (not rates or size * row_bytes <= _MOST_BYTES):
        before = max(rates.values(), default=0.0)
        try:
            rates[size] = _rate(engine, size)
        except Exception as error:
            ran_out = out_of_memory(error, size)
            if ran_out is None and isinstance(error, TrtfleetError):
                raise
            if rates or ran_out is None:
                break
            if size == 1:
                raise ran_out from error
            largest = size = size // 2
            continue
        flat = 0 if rates[size] > before * (1 + _TOLERANCE) else flat + 1
        is_worthwhile = size / rates[size] >= _WORTHWHILE_S
        if (flat >= 2 and is_worthwhile) or time.perf_counter() - start > budget_s:
            break
        size *= 2
    return rates


def _rate(engine: Engine, rows: int) -> float:
    try:
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
    finally:
        # Every size has a slot of its own, and the job needs the memory.
        free_slots(engine)
