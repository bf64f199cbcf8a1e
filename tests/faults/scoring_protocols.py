"""Scoring jobs without Ray: attempts, commits, merge, publication."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow.parquet as pq
from trtfleet.datasets.merge import MergeGroup, merge_group, plan_merge
from trtfleet.datasets.naming import FINAL, final_name
from trtfleet.datasets.output import HIDDEN, SUCCESS, Output
from trtfleet.datasets.records import CommitRecord, SuccessRecord
from trtfleet.datasets.storage import Storage
from trtfleet.jobs import score_output
from trtfleet.jobs.plan import make_plan
from trtfleet.jobs.score_output import finish_job, open_job
from trtfleet.jobs.spec import ScoreSpec
from trtfleet.jobs.task import score_task
from trtfleet.tests.faults.protocol import BAD_ROWS, GROUP_ROWS, ROWS, SHARDS, Protocol, digests, replaced
from trtfleet.trt_actors.scorer import Scorer

__all__ = ["Overwrite", "Score", "check_success", "check_view", "contents", "visible"]


class _Merging(threading.local):
    """How large the final files of the run in this thread are."""

    file_bytes = 0


_merging = _Merging()


def _plan_merge(commits: Iterable[CommitRecord]) -> list[MergeGroup]:
    """Merges the few rows here as many rows are merged."""
    return plan_merge(commits, _merging.file_bytes, few_parts=0)


class _ActorsHere:
    """Actors that may merge, all of them this process."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self._work = work

    def map(self, method: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        assert method == "merge"
        return [self._work(*call) for call in calls]


def visible(storage: Storage) -> dict[str, str]:
    """The digest of every file that a plain reader sees."""
    names = [entry.path for entry in storage.list() if not entry.path.startswith((HIDDEN, "_"))]
    return digests(storage, names)


def contents(storage: Storage) -> list[str]:
    """The digests of the visible files, in order: what they hold, of whatever generation."""
    return [digest for _, digest in sorted(visible(storage).items())]


def check_success(storage: Storage) -> bool:
    """Where ``_SUCCESS`` is, the visible files must be those that it names; whether it is."""
    data = storage.get(SUCCESS)
    if data is None:
        return False
    record = SuccessRecord.decode(data, SUCCESS)
    assert visible(storage) == {part["name"]: part["sha256"] for part in record.parts}
    names = [final_name(number, record.generation) for number in range(len(record.parts))]
    assert sorted(part["name"] for part in record.parts) == names
    assert (record.rows, record.bad_rows) == (ROWS - BAD_ROWS, BAD_ROWS)
    return True


def check_view(storage: Storage) -> None:
    """What is visible at any time must be of one generation, all of it where ``_SUCCESS`` is."""
    check_success(storage)
    found = [FINAL.fullmatch(name) for name in visible(storage)]
    assert len({match and match[1] for match in found}) <= 1, found


def check_commits(storage: Storage) -> None:
    """What commit records name must be there, whole, until it is merged."""
    output = Output.latest(storage)
    if output is None or output.success() is not None:
        return
    for record in output.committed().values():
        assert record.part is not None
        data = storage.get(record.part)
        assert data is not None
        assert hashlib.sha256(data).hexdigest() == record.sha256
        assert record.quarantine is None or storage.head(record.quarantine) is not None


class Score(Protocol):
    """A scoring job into an empty place: attempts, commits, merge, ``_SUCCESS``."""

    name = "commit and merge"
    emit = "raw"
    overwrite = False
    file_bytes = 1000
    """Each part is a file."""

    def run(self, place: str, builds: Callable[[], object] = lambda: None) -> None:
        self._score(place, self.emit, overwrite=self.overwrite)

    def _score(self, place: str, emit: str, *, overwrite: bool) -> None:
        spec = ScoreSpec(
            model=str(self.assets / "net.onnx"),
            data=(str(self.assets / "x.parquet"),),
            out=place,
            keep=("id",),
            emit=emit,
            batch_size=16,
            shard_bytes=GROUP_ROWS * 24,
            max_bad_rows=None,
            backend="onnxruntime-cpu",
            overwrite=overwrite,
        )
        plan = make_plan(spec)
        existing = None if overwrite else plan.existing
        finished = existing.success() if existing else None
        if existing and finished:
            existing.finish(finished)
            return
        job = open_job(plan, 1, 1 << 30)
        commits = job.output.committed()
        missing = [shard for shard in job.shards if shard.id not in commits]
        if missing:
            with Scorer(score_task(plan, job.output)) as scorer:
                for number, shard in enumerate(missing):
                    commits[shard.id] = scorer.score(shard, f"{job.run}-{number}").record
        merge = partial(merge_group, job.output, compression=spec.compression)
        records = [commits[shard.id] for shard in job.shards]
        earlier, _merging.file_bytes = _merging.file_bytes, self.file_bytes
        try:
            with replaced(score_output, "plan_merge", _plan_merge):
                finish_job(job, records, _ActorsHere(merge), 1.0)  # type: ignore[arg-type]
        finally:
            _merging.file_bytes = earlier

    def check(self, place: str) -> None:
        storage = Storage(place)
        check_view(storage)
        check_commits(storage)

    def result(self, place: str) -> Mapping[str, Any]:
        storage = Storage(place)
        assert check_success(storage)
        return dict(enumerate(contents(storage)))

    def units(self, place: str) -> list[Any]:
        storage = Storage(place)
        return list(itertools.chain(*(_ids(storage, name) for name in sorted(visible(storage)))))

    def hidden(self, place: str) -> Mapping[str, Any]:
        storage = Storage(place)
        output = Output.latest(storage)
        assert output is not None
        commits = output.committed()
        assert len(commits) == SHARDS
        root = f"{HIDDEN}/{output.generation}/"
        left = [entry.path for entry in storage.list(HIDDEN)]
        # Each quarantine file that is there must be one that a commit names.
        named = {record.quarantine for record in commits.values()} - {None}
        kinds = sorted({path.removeprefix(root).split("/")[0] for path in left})
        return {"kinds": kinds, "quarantine": sorted(named) == [p for p in left if "/quarantine/" in p]}


def _ids(storage: Storage, name: str) -> list[int]:
    with storage.open_input(name) as source:
        found: list[int] = pq.read_table(source)["id"].to_pylist()
    return found


class Overwrite(Score):
    """A scoring job that replaces a finished one."""

    name = "commit and merge over an earlier result"
    emit = "softmax"
    overwrite = True
    file_bytes = 100_000
    """All parts go into one file, so that most of the earlier ones must go."""

    def prepare(self, place: str) -> None:
        Score(self.assets).run(place)
