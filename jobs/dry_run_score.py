"""The dry run of a scoring job."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from ..cluster.planning import look_only
from ..datasets.merge import plan_merge
from ..datasets.output import Output
from ..datasets.records import CommitRecord
from ..datasets.shards import Shard, plan_shards
from ..errors import OutputError
from ..trt_actors.device_name import CPU
from ..trt_actors.expectation import Inquiry
from ..trt_actors.runtime.libcuda import gpus
from ..trt_actors.task import FeedTask
from ..trt_actors.tuning import agreed_batch_size, most_measured
from .advice import advise
from .calibrate_spec import CalibrateSpec
from .dry_run import DryRun, Pieces, State, Target
from .dry_run_actors import Notes, actors_of, columns_of
from .dry_run_calibrate import dry_run_calibrate
from .expected_machines import Machines, expected_machines
from .expected_memory import ExpectedMemory, read_ahead, row_bytes
from .parity_gate import SAMPLED_ROWS
from .plan import Plan, make_plan
from .room import Room, room_of
from .score_output import begun, most_shard_bytes, resolve
from .spec import ScoreSpec
from .task import SHARDS_IN_FLIGHT, engine_settings

__all__ = ["dry_run_score"]

_SHORT_BYTES = 16


class _NoTable(Exception):  # noqa: N818
    """There is no calibration table, and the job would make one."""

    def __init__(self, calibration: CalibrateSpec) -> None:
        super().__init__(calibration)
        self.calibration = calibration


def dry_run_score(spec: ScoreSpec) -> DryRun:
    """Finds out what a scoring job would do. Reads what it would read first, and writes nothing anywhere.

    Ray is not started; a cluster is asked where one is named.

    Raises:
        TrtfleetError: Whatever would make the job fail and can be seen without writing.
    """
    plan, first = _plan(spec)
    _check_place(plan)
    notes = Notes()
    existing = begun(plan) if first is None else None
    with look_only(spec.address, len(gpus())) as session:
        room = room_of(spec, session, notes)
        is_known = first is None
        machines = expected_machines(
            session,
            room,
            Inquiry(
                backend=spec.backend,
                has_gpu=room.resources.gpus > 0,
                settings=engine_settings(plan),
                network=plan.fitted.network.digest if is_known else "",
                is_external=plan.fitted.network.external_folder is not None,
            ),
        )
        actors = actors_of(room, session)
    resolved = resolve(plan, existing, room.actors, most_shard_bytes(room.resources.gpus))
    shards = plan_shards(plan.dataset.files, int(resolved["shard_bytes"]))
    committed = {} if existing is None else existing.committed()
    pieces = Pieces(
        what="shard",
        count=len(shards),
        done=len(committed),
        rows_done=sum(record.rows for record in committed.values()),
        largest_rows=max(shard.rows for shard in shards),
        largest_bytes=max(shard.size_bytes for shard in shards),
    )
    batch, batch_size = _batch(plan, existing, machines)
    return DryRun(
        job="score",
        model=spec.model,
        precision=spec.precision,
        files=len(plan.dataset.files),
        rows=plan.dataset.rows,
        size_bytes=plan.dataset.size_bytes,
        inputs=columns_of(plan.fitted, plan.schema),
        keep=spec.keep,
        pieces=pieces,
        actors=actors,
        machines=machines.kinds,
        batch=batch,
        batch_size=batch_size,
        memory=_memory(plan, room, machines, batch_size, pieces),
        target=_target(plan, _state(plan, existing, first), shards, committed),
        first=first,
        notes=(
            *machines.notes,
            *notes.said,
            *_notes(plan, first),
            *advise(plan.dataset, plan.fitted.bindings or ()),
        ),
    )


def _plan(spec: ScoreSpec) -> tuple[Plan, DryRun | None]:
    """The plan, and the calibration that would come first."""

    def calibrate(calibration: CalibrateSpec) -> None:
        raise _NoTable(calibration)

    try:
        return make_plan(spec, calibrate, tries_output=False), None
    except _NoTable as missing:
        first = dry_run_calibrate(missing.calibration)
    # The network to come has quantizers besides; what is there of the output cannot be its yet.
    single = replace(spec, precision="fp32", table=None, exclude=(), use_calib_mode=False, overwrite=True)
    plan = make_plan(single, tries_output=False)
    return replace(plan, spec=spec), first


def _check_place(plan: Plan) -> None:
    """Refuses an output on this machine that may not be written to, as far as that shows."""
    if not plan.storage.is_local:
        return
    place = plan.storage.root
    while not os.path.exists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place) or not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(
            f"cannot write to {plan.storage.url}: {place} does not allow it",
            "check the permissions of that path",
        )


def _batch(plan: Plan, existing: Output | None, machines: Machines) -> tuple[str, int | None]:
    spec = plan.spec
    if spec.batch_size is not None:
        return f"{spec.batch_size:,} (given)", spec.batch_size
    if plan.model.batch is not None:
        return f"{plan.model.batch:,} (the model's own)", plan.model.batch
    words, sizes = [], []
    for kind in machines.kinds:
        where = f" on {kind.device}" if len(machines.kinds) > 1 else ""
        agreed = None if existing is None else agreed_batch_size(existing, kind.device)
        if agreed is not None:
            words.append(f"{agreed:,}{where} (as the job began)")
        elif kind.batch_size is not None:
            words.append(f"auto: {kind.batch_size:,}{where} (remembered)")
        else:
            words.append(f"auto: the first actor{where} measures")
        sizes.append(agreed or kind.batch_size)
    return "; ".join(words) or "auto", max(filter(None, sizes)) if sizes and all(sizes) else None


def _memory(
    plan: Plan, room: Room, machines: Machines, batch_size: int | None, pieces: Pieces
) -> ExpectedMemory:
    network, options = plan.fitted.network, plan.spec.build_options
    on_device = any(kind.device != CPU for kind in machines.kinds)
    by_tensorrt = any(kind.backend == "tensorrt" for kind in machines.kinds)
    is_static = all(spec.is_static for spec in network.inputs)
    limit = most_measured(
        row_bytes(network.inputs) if is_static else 0,
        on_device=on_device,
        most=options.max_batch_size if by_tensorrt else None,
    )
    read_bytes = read_ahead(plan.dataset, SHARDS_IN_FLIGHT, FeedTask.prefetch_bytes, pieces.largest_bytes)
    return ExpectedMemory.of_scoring(
        network,
        read_bytes=read_bytes,
        rows=batch_size or min(limit, plan.dataset.rows),
        is_limit=batch_size is None,
        on_device=on_device,
        workspace_bytes=(options.workspace_size or 0) if by_tensorrt else 0,
    )


def _state(plan: Plan, existing: Output | None, first: DryRun | None) -> State:
    if plan.existing is None:
        return "new"
    if existing is None:
        return "unclear" if first is not None and not plan.spec.overwrite else "replaced"
    return "resumed" if existing.success() is None else "finished"


def _target(plan: Plan, state: State, shards: Sequence[Shard], committed: dict[str, CommitRecord]) -> Target:
    also = () if plan.spec.trace is None else (f"{plan.spec.trace}: a trace of one actor",)
    outputs = plan.fitted.network.outputs
    if plan.spec.postprocess is not None or not all(spec.is_static for spec in outputs):
        return Target(url=plan.storage.url, state=state, also=also)
    kept = sum(_stored_bytes(plan, name) for name in plan.spec.keep)
    bytes_a_row = row_bytes(outputs) + kept
    parts = [committed.get(shard.id) or _guess(shard, bytes_a_row) for shard in shards]
    return Target(
        url=plan.storage.url,
        state=state,
        files=len(plan_merge(parts)),
        size_bytes=sum(part.part_bytes for part in parts),
        also=also,
    )


def _stored_bytes(plan: Plan, column: str) -> int:
    """Bytes of a row of a kept column where its type tells; texts and lists are taken for short ones."""
    kind = plan.schema.field(column).type
    try:
        return -(-int(kind.bit_width) // 8)
    except ValueError:
        return _SHORT_BYTES


def _guess(shard: Shard, bytes_a_row: int) -> CommitRecord:
    return CommitRecord(
        shard=shard.id,
        attempt="",
        rows=shard.rows,
        bad_rows=0,
        part="",
        part_bytes=shard.rows * bytes_a_row,
        sha256=None,
        quarantine=None,
    )


def _notes(plan: Plan, first: DryRun | None) -> list[str]:
    spec, said = plan.spec, []
    if plan.quantized is not None:
        said += [plan.quantized.found.sentence, *plan.quantized.found.notes]
    if (plan.quantized is not None or first is not None) and spec.on_drop != "ignore":
        said.append(
            f"int8 is compared with fp32 on {min(SAMPLED_ROWS, plan.dataset.rows):,} rows first, unless an "
            f"earlier run did; beyond --max-drop {spec.max_drop:g}: {spec.on_drop}"
        )
    if first is not None:
        said.append("the network is that in fp32 here: its quantizers come from the table")
    if spec.filter is not None:
        said.append(f"rows are counted before --filter {spec.filter!r} looks into row groups")
    if not plan.storage.is_local:
        said.append(f"whether {plan.storage.url} can be written was not tried")
    return said
