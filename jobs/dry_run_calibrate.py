"""The dry run of a calibration."""

from __future__ import annotations

import contextlib

from ..cluster.planning import look_only
from ..datasets.output import Output
from ..datasets.sampling import Unit, plan_units
from ..errors import CalibrationError
from ..trt_actors.device_name import CPU
from ..trt_actors.expectation import Inquiry
from ..trt_actors.runtime.libcuda import gpus
from ..trt_actors.task import FeedTask
from .calibrate_plan import CalibratePlan, make_calibrate_plan
from .calibrate_spec import CalibrateSpec
from .dry_run import DryRun, Pieces, State, Target
from .dry_run_actors import Notes, actors_of, columns_of
from .expected_machines import Machines, expected_machines
from .expected_memory import ExpectedMemory, activation_bytes, read_ahead, row_bytes
from .room import room_of
from .sample_run import UNITS_IN_FLIGHT, unit_batches_of
from .value_text import counted

__all__ = ["dry_run_calibrate"]


def dry_run_calibrate(spec: CalibrateSpec) -> DryRun:
    """Finds out what a calibration would do. Reads what it would read first, and writes nothing anywhere.

    Ray is not started; a cluster is asked where one is named.

    Raises:
        TrtfleetError: Whatever would make the calibration fail and can be seen without writing.
    """
    plan = make_calibrate_plan(spec)
    notes = Notes()
    with look_only(spec.address, len(gpus())) as session:
        room = room_of(spec, session, notes)
        inquiry = Inquiry(backend=spec.backend, has_gpu=room.resources.gpus > 0, counts=True)
        machines = expected_machines(session, room, inquiry)
        actors = actors_of(room, session)
    existing = Output.latest(plan.work)
    if existing is not None:
        existing.require(plan.fingerprint)
    unit_batches = (
        unit_batches_of(plan, room.actors) if existing is None else int(existing.job.resolved["unit_batches"])
    )
    units = plan_units(plan.dataset.files, plan.rows, batch_size=plan.batch_size, unit_batches=unit_batches)
    committed = {} if existing is None else existing.committed()
    pieces = Pieces(
        what="unit",
        count=len(units),
        done=len(committed),
        rows_done=sum(record.rows for record in committed.values()),
        largest_rows=max(unit.rows for unit in units),
        largest_bytes=max(map(_size_bytes, units)),
    )
    if len(plan.rows) < spec.samples:
        notes.say(f"there are fewer rows than --samples {spec.samples:,}: all {len(plan.rows):,} are taken")
    if (kept := _kept(plan)) is not None:
        notes.say(f"{kept} was made of rows fed in the same way; the new table is used in its place")
    tensors = counted(len(plan.observed.tensors), "tensor")
    return DryRun(
        job="calibrate",
        model=spec.model,
        precision="fp32",
        files=len(plan.dataset.files),
        rows=len(plan.rows),
        size_bytes=sum(map(_size_bytes, units)),
        inputs=columns_of(plan.fitted, plan.dataset.schema),
        pieces=pieces,
        actors=actors,
        machines=machines.kinds,
        batch=f"{plan.batch_size:,}",
        batch_size=plan.batch_size,
        memory=_memory(plan, machines, pieces),
        target=_target(plan, existing),
        notes=(f"{tensors} are observed, thresholds by {spec.method}", *machines.notes, *notes.said),
    )


def _kept(plan: CalibratePlan) -> str | None:
    """The table that would be used so far, where there is one."""
    # A calibration does not mind what else is kept, damaged tables least of all.
    with contextlib.suppress(CalibrationError):
        found = plan.store.find(plan.model.digest, plan.feed)
        return None if found is None else found[0]
    return None


def _size_bytes(unit: Unit) -> int:
    """What is read for a unit: of each row group, from its first sampled row to its last."""
    return sum(sampled.shard.size_bytes for sampled in unit.files)


def _target(plan: CalibratePlan, existing: Output | None) -> Target:
    spec = plan.spec
    also = [(spec.table, "the table"), (spec.report_path, "the report")]
    state: State = "new" if existing is None else "resumed"
    return Target(
        url=f"a table in {plan.store.url}",
        state=state,
        also=tuple(f"{path}: {what}" for path, what in also if path is not None),
    )


def _memory(plan: CalibratePlan, machines: Machines, pieces: Pieces) -> ExpectedMemory:
    """A batch and its activations at once, beside what is read ahead for the units that an actor holds."""
    network = plan.observed.network
    kept_bytes, unknown = activation_bytes(plan.observed)
    on_device = any(kind.device != CPU for kind in machines.kinds)
    batch_bytes = plan.batch_size * row_bytes(network.inputs)
    activations = plan.batch_size * kept_bytes
    words = [f"{counted(unknown, 'activation')} of unknown size"] if unknown else []
    if not all(spec.is_static for spec in network.inputs):
        words.append("rows of varying size")
    return ExpectedMemory(
        model_bytes=2 * len(network.model_bytes),
        read_bytes=read_ahead(plan.dataset, UNITS_IN_FLIGHT, FeedTask.prefetch_bytes, pieces.largest_bytes),
        batch_bytes=UNITS_IN_FLIGHT * batch_bytes,
        activation_bytes=0 if on_device else activations,
        device_bytes=len(network.model_bytes) + batch_bytes + activations if on_device else 0,
        unknown=tuple(words),
    )
