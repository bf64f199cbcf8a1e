"""One actor's part of a calibration, without Ray: units of a sample in, their statistics out."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Mapping

import numpy as np

from ...datasets.sampling import Unit
from ...errors import CalibrationError, TrtfleetError, UsageError
from ..batches import BadInput
from ..event_log import actor_log
from ..watchdog import ENGINE, Watchdog
from .observed import ObservedNetwork
from .observer import Collection, HostObserver, Observer
from .sample_feed import SampleFeed, bad_samples
from .statistics import Statistics, encode
from .task import CalibrateTask, CalibratorInfo, UnitReceipt

__all__ = ["BACKENDS", "Calibrator", "open_observer"]

BACKENDS = ("auto", "onnxruntime-cuda", "onnxruntime-cpu")
"""Where a calibration may run; behind ``auto``, in order of preference."""

_NOT_FINITE = "exclude what makes them with --exclude, check the rows, or does --normalize fit the model?"


def open_observer(backend: str, network: ObservedNetwork) -> tuple[Observer, str]:
    """Opens the best observer that is allowed on this device.

    Returns:
        The open observer, and why a better one was not taken (empty when the best was).

    Raises:
        UsageError: The backend is unknown.
        BackendError: The backend asked for is not available.
        ModelError: The network cannot be loaded.
    """
    if backend not in BACKENDS:
        raise UsageError(f"backend {backend!r} does not calibrate", f"choose one of {', '.join(BACKENDS)}")
    reason = ""
    if backend == "onnxruntime-cuda" or (backend == "auto" and os.environ.get("CUDA_VISIBLE_DEVICES")):
        # Imported here: it looks for GPU libraries, which actors on CPUs do not need.
        from .device_observer import DeviceObserver

        try:
            return DeviceObserver(network).open(), ""
        except TrtfleetError as error:
            if backend != "auto":
                raise
            reason = f"onnxruntime-cuda: {error.fact}"
    return HostObserver(network).open(), reason


class Calibrator:
    """Observes units for one job on one device; ``observe`` may be called by several threads at once.

    Use as a context manager, or call ``close``.

    Args:
        task: The job.
        watchdog: Watches the hook and the network; stays the caller's to close.

    Raises:
        TrtfleetError: The network cannot be loaded, the backend is missing, or the hook cannot be imported.
    """

    def __init__(self, task: CalibrateTask, watchdog: Watchdog | None = None) -> None:
        start_s = time.monotonic()
        self._task = task
        self._log = actor_log(task.log_format, task.run)
        self._opened = contextlib.ExitStack()
        self._opened.enter_context(self._log.taking_over())
        self._watchdog = watchdog or Watchdog()
        self._feed = SampleFeed(task, self._watchdog)
        self._observer, not_taken = open_observer(task.backend, task.observed)
        self._computing = threading.Lock()
        self.info = CalibratorInfo(
            backend=self._observer.backend,
            not_taken=not_taken,
            node=socket.gethostname(),
            pid=os.getpid(),
            start_s=time.monotonic() - start_s,
        )
        self._log.tell("engine_ready", **self.info.told)

    def __enter__(self) -> Calibrator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the threads and releases the device."""
        self._feed.close()
        with self._computing:
            self._observer.close()
        self._opened.close()

    def observe(self, unit: Unit) -> UnitReceipt:
        """Runs a unit's batches through the network.

        Memory does not grow with the unit: a batch is dropped when its tensors are counted.

        Raises:
            CalibrationError: A tensor has values that are not finite; the message names it and the rows.
            TrtfleetError: The unit cannot be read or run.
        """
        with self._log.bound(unit=unit.id).attempt(rows=unit.rows) as told:
            receipt = self._observe(unit)
            told.update(rows=receipt.rows, bad_rows=len(receipt.bad))
        return receipt

    def _observe(self, unit: Unit) -> UnitReceipt:
        start = time.monotonic()
        bad: list[BadInput] = []
        rows = 0
        collection = self._collection()
        try:
            for piece in self._feed.pieces(unit, bad):
                rows += len(piece)
                self._add(collection, piece.on_host)
            with self._computing:
                statistics = collection.statistics()
        finally:
            self._close(collection)
        if self._not_finite(statistics):
            raise self._blame(unit)
        return UnitReceipt(
            statistics=encode(statistics),
            rows=rows,
            bad=bad_samples(unit, bad),
            seconds=time.monotonic() - start,
        )

    def _collection(self) -> Collection:
        with self._computing:
            return self._observer.collection()

    def _add(self, collection: Collection, arrays: Mapping[str, np.ndarray]) -> None:
        with self._computing, self._watchdog.step(ENGINE):
            collection.add(arrays)

    def _close(self, collection: Collection) -> None:
        with self._computing:
            collection.close()

    def _not_finite(self, statistics: Statistics) -> tuple[str, int] | None:
        """The first tensor, in the order of the network, with values that are not finite; and how many."""
        counts = (
            (name, statistics[name].non_finite) for name in self._task.observed.tensors if name in statistics
        )
        return next((found for found in counts if found[1]), None)

    def _blame(self, unit: Unit) -> CalibrationError:
        """Runs the unit again, batch by batch, to find out which rows give values that are not finite."""
        for blocks in self._feed.batches(unit):
            collection = self._collection()
            try:
                for piece in self._feed.decode(blocks, unit.batch_size, []):
                    self._add(collection, piece.on_host)
                with self._computing:
                    found = self._not_finite(collection.statistics())
            finally:
                self._close(collection)
            if found:
                tensor, count = found
                where = _range(unit, int(blocks[0].rows[0]), int(blocks[-1].rows[-1]))
                return CalibrationError(
                    f"tensor {tensor!r} has {count:,} values that are NaN or infinite {where}", _NOT_FINITE
                )
        where = _range(unit, unit.first, unit.first + unit.rows - 1)
        return CalibrationError(
            f"a tensor had values that are NaN or infinite {where}, but not when they ran again", _NOT_FINITE
        )


def _range(unit: Unit, first: int, last: int) -> str:
    (file, start), (other, stop) = unit.locate(first), unit.locate(last)
    if file == other:
        return f"in the sampled rows {start:,} to {stop:,} of {file}"
    return f"in the sampled rows from {start:,} of {file} to {stop:,} of {other}"
