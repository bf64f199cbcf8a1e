"""The gate before a job commits to int8: a sample is scored in single precision too, where the job runs."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Self

from ..cluster.budgets import Limits
from ..cluster.pool import ActorPool, Work
from ..cluster.scheduler import Scheduler
from ..datasets.footers import inspect
from ..datasets.output import Output
from ..datasets.reading import Projection
from ..datasets.sampling import Unit, plan_units, sample_rows
from ..datasets.storage import foreign_errors
from ..errors import OutputError, ParityError
from ..trt_actors.actor import CompareActor
from ..trt_actors.calibration.task import UnitReceipt
from ..trt_actors.comparison.comparison import Comparison
from ..trt_actors.comparison.outputs import pair_outputs
from ..trt_actors.comparison.parity import Parity
from ..trt_actors.comparison.runner import match_inputs
from ..trt_actors.comparison.task import CompareTask
from .network import Fitted, fit
from .plan import Plan, Quantized
from .progress import Reporter
from .room import Room
from .spec import ScoreSpec
from .task import engine_settings

__all__ = ["SAMPLED_ROWS", "Verdict", "judge", "record"]

SAMPLED_ROWS = 256
"""Rows that are compared."""

_BATCH_ROWS = 32


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the gate found.

    Attributes:
        parity: The measure; None where no sampled row could be fed to the network.
        backend: What executed both networks; empty without rows.
        warning: That more is lost than allowed, where the job goes on nevertheless; not kept in the output.
    """

    parity: Parity | None
    backend: str
    warning: str = ""

    @property
    def sentence(self) -> str:
        """The numbers in words."""
        if self.parity is None:
            return "int8 was not compared with fp32: no row of the sample can be fed to the network"
        return f"int8 against fp32, {self.backend}: {self.parity.sentence}"

    def encode(self) -> bytes:
        """The verdict as JSON."""
        parity = None if self.parity is None else vars(self.parity)
        return json.dumps({"parity": parity, "backend": self.backend}).encode()

    @classmethod
    def decode(cls, data: bytes, name: str) -> Self:
        """Reads what ``encode`` gave.

        Raises:
            OutputError: It is damaged.
        """
        try:
            values = json.loads(data)
            parity = values["parity"]
            return cls(parity=None if parity is None else Parity(**parity), backend=str(values["backend"]))
        except (ValueError, TypeError, KeyError) as error:
            raise OutputError(f"{name} is damaged: {error}", "start afresh with --overwrite") from error


def judge(plan: Plan, begun: Output | None, room: Room, shown: Reporter) -> Verdict | None:
    """Compares a job's int8 network with the one in single precision, and lets it pass or not.

    Args:
        plan: The job.
        begun: Its output, where an earlier run began it; what that run measured holds.
        room: What an actor of the job gets.
        shown: Told what was found.

    Returns:
        What to ``record`` in the output; None where nothing was quantized, or the gate is off.

    Raises:
        ParityError: More is lost than allowed.
        TrtfleetError: The networks cannot be run.
    """
    spec, quantized = plan.spec, plan.quantized
    if quantized is None or spec.on_drop == "ignore":
        return None
    verdict = None if begun is None else _recorded(begun)
    if verdict is None:
        verdict = _measure(plan, quantized, room, shown)
    shown.say(verdict.sentence)
    if verdict.parity is None:
        return verdict
    warning = _decide(spec, verdict.parity)
    if warning:
        shown.say(f"warning: {warning}")
    return replace(verdict, warning=warning)


def record(output: Output, verdict: Verdict) -> None:
    """Keeps a verdict in the job's output, so that the job is not held up again when it is resumed.

    Raises:
        OutputError: The output cannot be written.
    """
    with foreign_errors(OutputError, f"cannot write to {output.storage.url}"):
        output.storage.put_new(_path(output), verdict.encode())


def _path(output: Output) -> str:
    return output.path("parity", "int8.json")


def _recorded(output: Output) -> Verdict | None:
    path = _path(output)
    with foreign_errors(OutputError, f"cannot read {output.storage.url}"):
        data = output.storage.get(path)
    return None if data is None else Verdict.decode(data, output.storage.describe(path))


def _decide(spec: ScoreSpec, parity: Parity) -> str:
    """Refuses what loses too much, or says so where that is to be a warning; empty when all is well."""
    try:
        parity.require(spec.max_drop, "the network in int8")
    except ParityError as error:
        if spec.on_drop == "warn":
            return error.fact
        raise ParityError(
            error.fact,
            "`trtfleet compare MODEL MODEL DATA --precision-b int8 --suggest-exclude` proposes what to "
            "--exclude; or calibrate with another --method, raise --max-drop, or say --on-drop warn",
        ) from None
    return ""


def _measure(plan: Plan, quantized: Quantized, room: Room, shown: Reporter) -> Verdict:
    """Runs the sample through both networks in one actor of the job's kind."""
    # Outputs as the networks give them: a class alone says nothing of errors.
    raw = replace(plan.spec, emit="raw", keep=(), postprocess=None)
    single = replace(raw, precision="fp32", table=None, exclude=(), use_calib_mode=False)
    first, second = fit(single, plan.model, plan.schema), fit(raw, quantized.model, plan.schema)
    dataset = plan.dataset
    if plan.spec.filter is not None:
        # A sample is drawn by row numbers, so the filter is left aside.
        dataset = inspect([file for file, _ in dataset.files], first.columns, None)
    # The calibration's own rows would flatter it.
    rows = sample_rows(dataset.rows, SAMPLED_ROWS, quantized.found.table.seed + 1)
    (unit,) = plan_units(dataset.files, rows, batch_size=_batch_rows(plan), unit_batches=len(rows))
    shown.say(f"comparing int8 with fp32 on {unit.rows:,} rows")
    projection = Projection(columns=first.columns, partitions=dataset.partitions)
    receipt, backend = _run(_task(plan, first, second, projection, room.threads), unit, room)
    found = Comparison.decode(receipt.statistics, "what the actor found")
    if not found.rows:
        return Verdict(parity=None, backend="")
    return Verdict(parity=Parity.of(found), backend=backend)


def _batch_rows(plan: Plan) -> int:
    return plan.model.batch or min(_BATCH_ROWS, plan.spec.build_options.max_batch_size)


def _task(plan: Plan, first: Fitted, second: Fitted, projection: Projection, threads: int) -> CompareTask:
    spec, settings = plan.spec, engine_settings(plan)
    return CompareTask(
        **first.feeding(spec, projection, threads),
        other=second.network,
        inputs=match_inputs(first.network.inputs, second.network.inputs),
        pairs=pair_outputs(first.network.outputs, second.network.outputs, ("fp32", "int8")),
        worst=0,
        backend=spec.backend,
        settings=replace(settings, options=replace(settings.options, precision="fp32"), calibration=None),
        settings_b=settings,
    )


def _run(task: CompareTask, unit: Unit, room: Room) -> tuple[UnitReceipt, str]:
    """Has the unit compared on the cluster, by another actor where one dies; also returns the backend."""
    backends: list[str] = []
    receipts: list[UnitReceipt] = []
    work = Work(
        actor=CompareActor,
        task=task,
        resources=room.resources,
        threads=1,
        payload=lambda key, attempt: (unit,),
        count=lambda receipt: (receipt.rows, len(receipt.bad)),
        method="compare",
    )
    pool = ActorPool(
        Scheduler([(unit.id, unit.rows)], Limits(actors=1, in_flight_per_actor=1, max_bad_rows=None), {}),
        work,
        on_started=lambda name, info: backends.append(info.backend),
        on_done=lambda name, key, receipt: receipts.append(receipt),
        on_progress=lambda: None,
    )
    try:
        pool.run()
    finally:
        pool.close()
    return receipts[-1], backends[-1]
