"""What the summary says of batch sizes and of actors' notes."""

from __future__ import annotations

from pathlib import Path

import pytest
from trtfleet.cluster.metrics import JobMetrics
from trtfleet.datasets.discovery import SourceFile
from trtfleet.datasets.output import Output
from trtfleet.datasets.records import CommitRecord, JobRecord
from trtfleet.datasets.shards import Shard
from trtfleet.datasets.storage import Storage
from trtfleet.jobs.account import Account
from trtfleet.jobs.progress import Silent
from trtfleet.jobs.summary import Summary, sized
from trtfleet.trt_actors.pipeline_stats import PipelineStats
from trtfleet.trt_actors.stages import StageStats
from trtfleet.trt_actors.task import ActorInfo, Receipt


class Said(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def account(tmp_path: Path, said: Said) -> Account:
    record = JobRecord(fingerprint={}, resolved={}, shards=0, rows=0)
    output = Output.create(Storage(tmp_path / "out"), record)
    file = SourceFile(root="/data", path="x.parquet", size_bytes=1, version="1", format="parquet")
    shard = Shard(id="s", index=0, file=file, segments=(), size_bytes=1)
    return Account(output, [shard], {}, "run", said, JobMetrics("run"))


def started(origin: str, notes: tuple[str, ...] = ()) -> ActorInfo:
    return ActorInfo(
        backend="onnxruntime-cuda",
        not_taken="",
        batch_size=256,
        batch_origin=origin,
        notes=notes,
        node="node",
        pid=1,
        start_s=1.0,
    )


def receipt(*notes: str) -> Receipt:
    record = CommitRecord(
        shard="s", attempt="a", rows=1, bad_rows=0, part=None, part_bytes=0, sha256=None, quarantine=None
    )
    return Receipt(
        record=record, won=True, seconds=1.0, stats=PipelineStats(), stages=StageStats(), notes=notes
    )


@pytest.mark.parametrize(
    ("origin", "text"),
    [("measured", "256 (measured)"), ("remembered", "256 (remembered)"), ("given", "256"), ("", "256")],
)
def test_the_first_actor_says_where_the_batch_size_comes_from(
    account: Account, said: Said, origin: str, text: str
) -> None:
    account.actor_started("one", started(origin))
    assert said.lines == [f"backend onnxruntime-cuda, batch size {text}"]
    assert sized(256, origin) == text


def test_a_note_is_said_once_for_all_actors_and_not_again_as_it_goes_on(account: Account, said: Said) -> None:
    for name in ("one", "two"):
        account.actor_started(name, started("measured", ("the cache is not there",)))
        account.shard_done(name, "s", receipt("the cache is not there"))
        account.shard_done(name, "s", receipt("the cache is not there", "256 -> 128"))
    account.shard_done("one", "s", receipt("the cache is not there", "256 -> 128 -> 64"))
    assert said.lines[1:] == ["the cache is not there", "256 -> 128"]
    assert set(account.facts().notes) == {"the cache is not there", "256 -> 128", "256 -> 128 -> 64"}


def test_the_summary_has_origin_and_notes() -> None:
    summary = Summary(
        out="out",
        rows=1,
        bad_rows=0,
        rows_scored=1,
        batch_size=64,
        batch_origin="remembered",
        notes=("out of memory: batch size 64 -> 32",),
    )
    lines = summary.lines()
    assert any("batch size 64 (remembered)" in line for line in lines)
    assert lines[-1] == "out of memory: batch size 64 -> 32"
    assert summary.as_json()["batch_origin"] == "remembered"
