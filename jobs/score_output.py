"""What a scoring job writes: which generation of the output, cut into which shards, and the final files."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..cluster.pool import ActorPool
from ..datasets.merge import StagedPart, merge_group, plan_merge
from ..datasets.output import Output
from ..datasets.records import CommitRecord, JobRecord, SuccessRecord
from ..datasets.shards import DEFAULT_SHARD_BYTES, Shard, plan_shards, suggest_shard_bytes
from ..datasets.swap import publish
from ..errors import EmptyDatasetError, OutputError
from .plan import Plan

__all__ = ["ScoreJob", "begun", "finish_job", "most_shard_bytes", "open_job", "resolve"]

_DEVICE_SHARD_BYTES = 512 << 20


@dataclass(frozen=True, kw_only=True)
class ScoreJob:
    """A plan on its way.

    Attributes:
        plan: What is to be done.
        shards: The dataset, cut.
        output: The generation it writes.
        run: This run's name.
    """

    plan: Plan
    shards: Sequence[Shard]
    output: Output
    run: str


def begun(plan: Plan) -> Output | None:
    """The unfinished generation of the very same job; None where a new one is to be written."""
    existing = plan.existing
    if existing is not None and plan.spec.overwrite:
        same = dict(existing.job.fingerprint) == dict(plan.fingerprint)
        if not same or existing.success() is not None:
            return None
    return existing


def most_shard_bytes(gpus: float) -> int:
    """The largest shard that is chosen for actors with or without a GPU, in uncompressed bytes."""
    # A device fills the last batch of a shard up: few batches a shard would waste much of its time.
    return _DEVICE_SHARD_BYTES if gpus else DEFAULT_SHARD_BYTES


def resolve(plan: Plan, existing: Output | None, actors: int, most_bytes: int) -> Mapping[str, Any]:
    """What open options become: as in an unfinished generation of the job, else what fits the data."""
    if existing is not None:
        return existing.job.resolved
    wanted = plan.spec.shard_bytes or suggest_shard_bytes(plan.dataset.size_bytes, actors, most_bytes)
    return {"shard_bytes": wanted}


def open_job(plan: Plan, actors: int, most_bytes: int) -> ScoreJob:
    """Cuts the dataset and opens the generation to write: the same job's unfinished one, or a new one."""
    existing = begun(plan)
    resolved = resolve(plan, existing, actors, most_bytes)
    shards = plan_shards(plan.dataset.files, int(resolved["shard_bytes"]))
    if existing is None:
        record = JobRecord(
            fingerprint=plan.fingerprint,
            resolved=resolved,
            shards=len(shards),
            rows=plan.dataset.rows,
            model=os.path.basename(plan.spec.model),
        )
        existing = Output.create(plan.storage, record, after=plan.existing)
        if existing.job.resolved != resolved:
            # Another driver created it a moment ago, with its own idea of a shard.
            shards = plan_shards(plan.dataset.files, int(existing.job.resolved["shard_bytes"]))
    return ScoreJob(plan=plan, shards=shards, output=existing, run=secrets.token_hex(4))


def finish_job(
    job: ScoreJob, commits: Sequence[CommitRecord], pool: ActorPool, seconds: float
) -> SuccessRecord:
    """Merges and publishes, unless another driver on the same output already did.

    Args:
        job: All of whose shards are committed.
        commits: Their records, in dataset order.
        pool: Actors that may merge.
        seconds: What the run has taken.

    Raises:
        EmptyDatasetError: There is no row.
        OutputError: The files cannot be written.
    """
    if not any(commit.rows or commit.bad_rows for commit in commits):
        raise EmptyDatasetError(
            f"no row passes --filter {job.plan.spec.filter!r}"
            if job.plan.spec.filter
            else "the dataset has no rows",
            "check the filter's values",
        )
    try:
        staged = _merge(job, commits, pool)
        return publish(job.output, staged, commits=commits, seconds=seconds)
    except OutputError:
        theirs = job.output.success()
        if theirs is None:
            raise
        return job.output.finish(theirs)


def _merge(job: ScoreJob, commits: Sequence[CommitRecord], pool: ActorPool) -> list[StagedPart]:
    """Makes the final files, on the actors or else here."""
    groups = plan_merge(commits)
    if len(groups) > 1:
        found: list[Any] = pool.map("merge", [(group, job.run) for group in groups])
        if all(isinstance(result, StagedPart) for result in found):
            return found
    codec = job.plan.spec.compression
    return [merge_group(job.output, group, job.run, codec) for group in groups]
