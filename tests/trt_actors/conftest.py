"""Scoring without Ray: jobs planned as a driver plans them, for one Scorer in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from trtfleet.datasets.output import Output
from trtfleet.datasets.records import CommitRecord, JobRecord
from trtfleet.datasets.shards import Shard, plan_shards
from trtfleet.jobs.plan import make_plan
from trtfleet.jobs.spec import ScoreSpec
from trtfleet.jobs.task import score_task
from trtfleet.trt_actors.task import ScoreTask


@dataclass(frozen=True)
class PlannedJob:
    """What a Scorer needs, and where its results go."""

    task: ScoreTask
    shards: list[Shard]
    output: Output

    def part(self, record: CommitRecord) -> Any:
        """The rows of a committed part."""
        assert record.part is not None
        return pq.read_table(self.output.storage.describe(record.part))

    def quarantine(self, record: CommitRecord) -> list[dict[str, Any]]:
        """The bad rows of a commit."""
        assert record.quarantine is not None
        found = pq.read_table(self.output.storage.describe(record.quarantine)).to_pylist()
        assert isinstance(found, list)
        return found

    def files(self, kind: str) -> list[str]:
        """The names of what lies in ``parts``, ``commits`` or ``quarantine``."""
        folder = Path(self.output.storage.root, self.output.path(kind, ""))
        return sorted(path.name for path in folder.glob("*"))


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PlannedJob]:
    """Plans a job into ``tmp_path/out``; hooks are found in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)

    def plan(model: Path, data: Path, *, shard_bytes: int = 1 << 30, **options: Any) -> PlannedJob:
        spec = ScoreSpec.of({"model": model, "data": data, "out": tmp_path / "out", **options})
        made = make_plan(spec)
        shards = plan_shards(made.dataset.files, shard_bytes)
        record = JobRecord(
            fingerprint=made.fingerprint,
            resolved={"shard_bytes": shard_bytes},
            shards=len(shards),
            rows=made.dataset.rows,
        )
        output = Output.create(made.storage, record)
        # The command runs in tmp_path, where hooks lie.
        task = score_task(made, output)
        return PlannedJob(task, shards, output)

    return plan


@pytest.fixture
def hook(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[str], str]]:
    """Writes a module with the functions ``pre`` and ``post``, and returns its name."""
    written: list[str] = []

    def write(source: str) -> str:
        name = f"hook_{abs(hash(request.node.nodeid))}_{len(written)}"
        (tmp_path / f"{name}.py").write_text("import numpy as np\nimport pyarrow as pa\n" + source)
        written.append(name)
        return name

    before = list(sys.path)
    yield write
    sys.path[:] = before
    for name in written:
        sys.modules.pop(name, None)
