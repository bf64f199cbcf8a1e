"""The Ray actors: thin shells around what they do."""

from __future__ import annotations

from typing import Any

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
from .trial.task import HostInfo, Measurement, Order

__all__ = ["CalibrateActor", "CompareActor", "ScoreActor", "SweepActor", "SweepActorOn"]


@ray.remote(max_restarts=0, max_task_retries=0)
class ScoreActor:
    """Scores shards in a process of its own; several calls at once, one per shard in flight."""

    def __init__(self) -> None:
        # Arrow's default allocator returns buffers to the system within milliseconds, and a job asks for the
        # same sizes again and again: taking the C library's halves the cost of writing Parquet.
        pa.set_memory_pool(pa.system_memory_pool())
        self._scorer: Scorer | None = None
        self._task: ScoreTask | None = None

    def start(self, task: ScoreTask) -> ActorInfo:
        """Loads the network; called once, before any other method."""
        self._task = task
        self._scorer = Scorer(task)
        return self._scorer.info

    def score(self, shard: Shard, attempt: str) -> Receipt:
        """See ``Scorer.score``."""
        if self._scorer is None:
            raise ActorStartError("a shard came before the model was loaded")
        return self._scorer.score(shard, attempt)

    def trace(self) -> tuple[tuple[TraceEvent, ...], int, ActorInfo]:
        """The events traced so far, how many were dropped, and who tells."""
        if self._scorer is None:
            raise ActorStartError("a trace was asked for before the model was loaded")
        tracer = self._scorer.tracer
        return tracer.events(), tracer.dropped, self._scorer.info

    def merge(self, group: MergeGroup, run: str) -> FinalPart:
        """See ``merge_group``."""
        if self._task is None:
            raise ActorStartError("a merge came before the job was known")
        output = Output(Storage(self._task.output_url), self._task.generation, self._task.job)
        return merge_group(output, group, run, self._task.compression)


@ray.remote(max_restarts=0, max_task_retries=0)
class CalibrateActor:
    """Observes units of a sample in a process of its own; several calls at once, one per unit in flight."""

    def __init__(self) -> None:
        self._calibrator: Calibrator | None = None

    def start(self, task: CalibrateTask) -> CalibratorInfo:
        """Loads the network; called once, before any other method."""
        self._calibrator = Calibrator(task)
        return self._calibrator.info

    def observe(self, unit: Unit) -> UnitReceipt:
        """See ``Calibrator.observe``."""
        if self._calibrator is None:
            raise ActorStartError("a unit came before the model was loaded")
        return self._calibrator.observe(unit)


@ray.remote(max_restarts=0, max_task_retries=0)
class CompareActor:
    """Compares two networks on units of a sample in a process of its own."""

    def __init__(self) -> None:
        self._comparator: Comparator | None = None

    def start(self, task: CompareTask) -> CalibratorInfo:
        """Loads both networks; called once, before any other method."""
        self._comparator = Comparator(task)
        return self._comparator.info

    def compare(self, unit: Unit) -> UnitReceipt:
        """See ``Comparator.compare``."""
        if self._comparator is None:
            raise ActorStartError("a unit came before the models were loaded")
        return self._comparator.compare(unit)

    def trial(self, sites: tuple[Site, ...], unit: Unit) -> bytes:
        """See ``Comparator.trial``."""
        if self._comparator is None:
            raise ActorStartError("a trial came before the models were loaded")
        return self._comparator.trial(sites, unit)


@ray.remote(max_restarts=0, max_task_retries=0)
class SweepActor:
    """Runs one trial after the other on the devices that Ray gave it."""

    def __init__(self) -> None:
        self._host: TrialHost | None = None

    def start(self, task: None) -> HostInfo:
        """Looks at the devices; called once, before any other method."""
        self._host = TrialHost()
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
