"""The Ray actors: thin shells around what they do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import pyarrow as pa
import ray

from ..datasets.merge import MergeGroup, merge_group
from ..datasets.output import Output
from ..datasets.records import FinalPart
from ..datasets.sampling import Unit
from ..datasets.shards import Shard
from ..datasets.storage import Storage
from ..errors import ActorStartError
from .calibration.calibrator import Calibrator
from .calibration.task import CalibrateTask, CalibratorInfo, UnitReceipt
from .comparison.comparator import Comparator
from .comparison.task import CompareTask
from .quantization.placement import Site
from .scorer import Scorer
from .task import ActorInfo, Receipt, ScoreTask
from .trace import TraceEvent
from .trial.host import TrialHost
from .trial.task import HostInfo, HostTask, Measurement, Order
from .watchdog import Watchdog

__all__ = ["CalibrateActor", "CompareActor", "ScoreActor", "SweepActor", "SweepActorOn"]

Worker = TypeVar("Worker")
T = TypeVar("T")


class _Watched(Generic[Worker]):
    """Holds what does the work of a process, and the watch over it."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._watchdog = Watchdog()

    def _open(self, make: Callable[[Watchdog], Worker], limit_s: float, memory_bytes: int | None) -> Worker:
        self._watchdog = Watchdog(limit_s, memory_bytes, ends_process=True)
        self._worker = make(self._watchdog)
        return self._worker

    def _do(self, work: Callable[[Worker], T]) -> T:
        if self._worker is None:
            raise ActorStartError("work came before the model was loaded")
        return self._watchdog.run(functools.partial(work, self._worker))


@ray.remote(max_restarts=0, max_task_retries=0)
class ScoreActor(_Watched[Scorer]):
    """Scores shards in a process of its own; several calls at once, one per shard in flight."""

    def __init__(self) -> None:
        super().__init__()
        # Arrow's default allocator returns buffers to the system within milliseconds, and a job asks for the
        # same sizes again and again: taking the C library's halves the cost of writing Parquet.
        pa.set_memory_pool(pa.system_memory_pool())
        self._task: ScoreTask | None = None

    def start(self, task: ScoreTask) -> ActorInfo:
        """Loads the network; called once, before any other method."""
        self._task = task
        make = functools.partial(Scorer, task)
        return self._open(make, task.batch_timeout_s, task.memory_limit_bytes).info

    def score(self, shard: Shard, attempt: str) -> Receipt:
        """See ``Scorer.score`` and ``Watchdog.run``."""
        return self._do(lambda scorer: scorer.score(shard, attempt))

    def trace(self) -> tuple[tuple[TraceEvent, ...], int, ActorInfo]:
        """The events traced so far, how many were dropped, and who tells."""
        if self._worker is None:
            raise ActorStartError("a trace was asked for before the model was loaded")
        tracer = self._worker.tracer
        return tracer.events(), tracer.dropped, self._worker.info

    def merge(self, group: MergeGroup, run: str) -> FinalPart:
        """See ``merge_group``."""
        if self._task is None:
            raise ActorStartError("a merge came before the job was known")
        output = Output(Storage(self._task.output_url), self._task.generation, self._task.job)
        return merge_group(output, group, run, self._task.compression)


@ray.remote(max_restarts=0, max_task_retries=0)
class CalibrateActor(_Watched[Calibrator]):
    """Observes units of a sample in a process of its own; several calls at once, one per unit in flight."""

    def start(self, task: CalibrateTask) -> CalibratorInfo:
        """Loads the network; called once, before any other method."""
        return self._open(functools.partial(Calibrator, task), task.batch_timeout_s, None).info

    def observe(self, unit: Unit) -> UnitReceipt:
        """See ``Calibrator.observe``."""
        return self._do(lambda calibrator: calibrator.observe(unit))


@ray.remote(max_restarts=0, max_task_retries=0)
class CompareActor(_Watched[Comparator]):
    """Compares two networks on units of a sample in a process of its own."""

    def start(self, task: CompareTask) -> CalibratorInfo:
        """Loads both networks; called once, before any other method."""
        return self._open(functools.partial(Comparator, task), task.batch_timeout_s, None).info

    def compare(self, unit: Unit) -> UnitReceipt:
        """See ``Comparator.compare``."""
        return self._do(lambda comparator: comparator.compare(unit))

    def trial(self, sites: tuple[Site, ...], unit: Unit) -> bytes:
        """See ``Comparator.trial``."""
        return self._do(lambda comparator: comparator.trial(sites, unit))


@ray.remote(max_restarts=0, max_task_retries=0)
class SweepActor:
    """Runs one trial after the other on the devices that Ray gave it."""

    def __init__(self) -> None:
        self._host: TrialHost | None = None

    def start(self, task: HostTask) -> HostInfo:
        """Looks at the devices; called once, before any other method."""
        self._host = TrialHost(task)
        return self._host.info

    def measure(self, order: Order) -> Measurement:
        """See ``TrialHost.run``."""
        if self._host is None:
            raise ActorStartError("a trial came before the devices were known")
        return self._host.run(order)


class SweepActorOn:
    """``SweepActor`` on nodes with one kind of accelerator alone; takes ``options`` as the class itself does.

    Args:
        accelerator: As Ray calls it, ``H100`` for example; None for any node.
    """

    def __init__(self, accelerator: str | None) -> None:
        self._accelerator = accelerator

    def options(self, **how: Any) -> Any:
        """The actor class with Ray's options, to be started by ``remote``."""
        if self._accelerator is not None:
            how["resources"] = {f"accelerator_type:{self._accelerator}": 0.001}
        return SweepActor.options(**how)  # type: ignore[attr-defined,unused-ignore]
