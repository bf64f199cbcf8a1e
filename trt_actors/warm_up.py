"""What a device does once for each batch shape, done before the first shard; measures its rate on the way."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from .engine import Engine, Slot
from .out_of_memory import out_of_memory

__all__ = ["bind_zeros", "fastest_run", "run_alone", "warm_up"]

_RUNS_A_SLOT = 3
"""CUDA graphs are recorded in the third run at the same addresses."""

_RATE_RUNS = 20
_RATE_SECONDS = 0.2


def bind_zeros(engine: Engine, slot: Slot, rows: int) -> None:
    """Fills a slot with zeros; every input must have a fixed row shape."""
    for spec in engine.inputs:
        shape = tuple(dim for dim in spec.row_shape if isinstance(dim, int))
        slot.bind(spec.name, np.zeros((rows, *shape), spec.dtype))


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


def fastest_run(engine: Engine, slot: Slot, rows: int, budget_s: float) -> float:
    """The least seconds of `run_alone` over a few runs, as many as begin within a budget and at least one."""
    fastest_s, start_s, runs = float("inf"), time.perf_counter(), 0
    while not runs or (runs < _RATE_RUNS and time.perf_counter() - start_s < budget_s):
        fastest_s, runs = min(fastest_s, run_alone(engine, slot, rows)), runs + 1
    return fastest_s


def warm_up(engine: Engine, slots: Sequence[Slot], rows: int) -> float:
    """Runs batches of zeros through every slot: memory is there then, kernels chosen and graphs recorded.

    Does nothing for engines that execute on the CPU or whose inputs have free row dimensions. A network that
    fails on zeros is left to meet its first real batch.

    Args:
        engine: Open.
        slots: All that will be used.
        rows: Of a full batch.

    Returns:
        Rows per second that the device executes; 0 when it was not measured.

    Raises:
        OutOfMemoryError: The device has no memory for all these slots.
    """
    if engine.device_s is None or not all(spec.is_static for spec in engine.inputs):
        return 0.0
    try:
        for slot in slots:
            bind_zeros(engine, slot, rows)
            for _ in range(_RUNS_A_SLOT):
                run_alone(engine, slot, rows)
        fastest_s = fastest_run(engine, slots[0], rows, _RATE_SECONDS)
    except Exception as error:
        ran_out = out_of_memory(error, rows)
        if ran_out is not None:
            raise ran_out from error
        return 0.0
    return rows / max(fastest_s, 1e-9)
