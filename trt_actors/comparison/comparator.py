"""One actor's part of a comparison, without Ray: units of a sample in, what was found out."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

from ...datasets.sampling import Unit
from ...errors import InternalError
from ..batches import BadInput, Piece
from ..calibration.sample_feed import SampleFeed, bad_samples
from ..calibration.task import CalibratorInfo, UnitReceipt
from ..event_log import actor_log
from ..quantization.placement import Site
from ..watchdog import ENGINE, Watchdog
from .comparison import Comparison
from .difference import Difference
from .outputs import OutputPair, RowErrors
from .runner import EngineRunner, Ran, Runner, SessionRunner
from .task import CompareTask
from .trials import Trials
from .worst import WorstRow, choose_worst, keep_worst, plain_key

__all__ = ["Comparator"]


class Comparator:
    """Compares units for one job on one device; its methods may be called by several threads at once.

    Use as a context manager, or call ``close``.

    Args:
        task: The job.
        watchdog: Watches the hook and the networks; stays the caller's to close.

    Raises:
        TrtfleetError: A network cannot be loaded, the backend is missing, or the hook cannot be imported.
    """

    def __init__(self, task: CompareTask, watchdog: Watchdog | None = None) -> None:
        start_s = time.monotonic()
        self._task = task
        self._log = actor_log(task.log_format, task.run)
        self._opened = contextlib.ExitStack()
        self._opened.enter_context(self._log.taking_over())
        self._watchdog = watchdog or Watchdog()
        self._feed = SampleFeed(task, self._watchdog)
        self._first: Runner
        self._second: Runner
        if task.layers:
            self._first = SessionRunner(task.backend, task.network, task.layers)
            self._second = SessionRunner(self._first.backend, task.other, task.layers)
        else:
            self._first = EngineRunner(task.backend, task.network, task.settings)
            # The same backend for both: the precision is to be compared, not the runtime.
            self._second = EngineRunner(self._first.backend, task.other, task.settings_b)
        self._trials: Trials | None = None
        self._computing = threading.Lock()
        self.info = CalibratorInfo(
            backend=self._first.backend,
            not_taken=self._first.not_taken,
            node=socket.gethostname(),
            pid=os.getpid(),
            start_s=time.monotonic() - start_s,
        )
        self._log.tell("engine_ready", **self.info.told)

    def __enter__(self) -> Comparator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the threads and releases the device."""
        self._feed.close()
        with self._computing:
            if self._trials is not None:
                self._trials.close()
            self._second.close()
            self._first.close()
        self._opened.close()

    def compare(self, unit: Unit) -> UnitReceipt:
        """Runs a unit's batches through both networks; a batch is dropped when it is compared.

        Returns:
            In ``statistics`` the bytes of a ``Comparison``.

        Raises:
            TrtfleetError: The unit cannot be read or run.
        """
        with self._log.bound(unit=unit.id).attempt(rows=unit.rows) as told:
            receipt = self._compare(unit)
            told.update(rows=receipt.rows, bad_rows=len(receipt.bad))
        return receipt

    def _compare(self, unit: Unit) -> UnitReceipt:
        start = time.monotonic()
        bad: list[BadInput] = []
        total = Comparison.empty(self._task.pairs)
        for piece in self._feed.pieces(unit, bad):
            total = total.merge(self._compare_batch(unit, piece), self._task.worst)
        return UnitReceipt(
            statistics=total.encode(),
            rows=total.rows,
            bad=bad_samples(unit, bad),
            seconds=time.monotonic() - start,
        )

    def trial(self, sites: tuple[Site, ...], unit: Unit) -> bytes:
        """Compares the first network with itself, quantized at other places, on a unit.

        Args:
            sites: What reads quantized values.
            unit: The rows.

        Returns:
            The bytes of a ``Comparison``, without worst rows.

        Raises:
            TrtfleetError: The unit cannot be read or run.
        """
        with self._computing:
            if self._trials is None:
                self._trials = self._open_trials()
            batches = (piece.on_host for piece in self._feed.pieces(unit, []))
            return self._trials.run(sites, unit.id, batches).encode()

    def _open_trials(self) -> Trials:
        task = self._task
        if task.source is None:
            raise InternalError("a trial without a network to quantize", "this is a defect of trtfleet")
        named = {spec.name for spec in task.source.outputs}
        pairs = [
            OutputPair(a=pair.a, b=pair.a if pair.a in named else pair.b, answers=pair.answers)
            for pair in task.pairs
        ]
        backend = self._first.backend
        if not backend.startswith("onnxruntime"):
            backend = "auto"
        return Trials(self._first, task.source, task.scales, pairs, backend)

    def _compare_batch(self, unit: Unit, piece: Piece) -> Comparison:
        task = self._task
        arrays = piece.on_host
        with self._computing, self._watchdog.step(ENGINE):
            first = self._first.run(arrays)
            second = self._second.run({task.inputs[name]: array for name, array in arrays.items()})
            found, errors = Comparison.of_batch(task.pairs, first.outputs, second.outputs)
            layers = _layers(task.layers, first, second)
        worst = keep_worst(_worst(unit, piece, task.pairs, errors, task.worst), task.worst)
        return Comparison(outputs=found.outputs, layers=layers, worst=worst)


def _layers(names: Sequence[str], first: Ran, second: Ran) -> Mapping[str, Difference]:
    return {name: Difference.of(first.tensors[name], second.tensors[name]) for name in names}


def _worst(
    unit: Unit, piece: Piece, pairs: Sequence[OutputPair], errors: Sequence[RowErrors], most: int
) -> Iterator[WorstRow]:
    chosen = choose_worst(errors, most)
    kept = piece.kept.take([row for row, *_ in chosen]).to_pylist() if chosen else []
    for (row, output, agrees, error), key in zip(chosen, kept, strict=True):
        position = int(piece.rows[row])
        file, number = unit.locate(position)
        yield WorstRow(
            position=position,
            file=file,
            row=number,
            key=plain_key(key),
            output=pairs[output].a,
            error=error,
            agrees=agrees,
            answers=_answers(errors, row),
        )


def _answers(errors: Sequence[RowErrors], row: int) -> tuple[int, int] | None:
    scored = [one for one in errors if one.answers is not None]
    chosen = next((one for one in scored if not one.agrees[row]), scored[0] if scored else None)
    if chosen is None or chosen.answers is None:
        return None
    return int(chosen.answers[row, 0]), int(chosen.answers[row, 1])
