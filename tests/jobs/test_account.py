"""The books of a run: what earlier runs committed counts, what is not of the job is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from trtfleet.cluster.budgets import Limits
from trtfleet.cluster.events import Dispatch
from trtfleet.cluster.metrics import JobMetrics
from trtfleet.cluster.scheduler import Scheduler
from trtfleet.datasets.discovery import Format, SourceFile
from trtfleet.datasets.groups import Group
from trtfleet.datasets.output import Output
from trtfleet.datasets.records import CommitRecord, JobRecord
from trtfleet.datasets.shard_table import ShardTable
from trtfleet.datasets.shards import plan_shards
from trtfleet.datasets.storage import Storage
from trtfleet.errors import OutputError
from trtfleet.jobs.account import Account
from trtfleet.jobs.progress import Silent
from trtfleet.jobs.run_log import RunLog


@pytest.fixture
def output(tmp_path: Path) -> Output:
    record = JobRecord(fingerprint={}, resolved={}, shards=4, rows=40)
    return Output.create(Storage(tmp_path / "out"), record)


@pytest.fixture
def shards() -> ShardTable:
    file = SourceFile(root="/data", path="x.parquet", size_bytes=1, version="1", format=Format.PARQUET)
    return plan_shards([(file, [Group(rows=10, size_bytes=100)] * 4)], 100)


def commit(shard: str, bad_rows: int = 0) -> CommitRecord:
    quarantine = f"_trtfleet/g0001/quarantine/{shard}-a.parquet" if bad_rows else None
    return CommitRecord(
        shard=shard,
        attempt="a",
        rows=10 - bad_rows,
        bad_rows=bad_rows,
        part=f"_trtfleet/g0001/parts/{shard}-a.parquet",
        part_bytes=9,
        sha256="ab" * 32,
        quarantine=quarantine,
        committed_s=1.0,
    )


def account_of(output: Output, shards: ShardTable, *committed: CommitRecord) -> Account:
    return Account(output, shards, committed, "run", Silent(), JobMetrics("run"))


def test_what_earlier_runs_committed_is_in_the_books(output: Output, shards: ShardTable) -> None:
    first, third = commit(shards.ids[0]), commit(shards.ids[2], bad_rows=3)
    account = account_of(output, shards, third, first)
    assert account.shards_before == 2
    assert account.counts() == {shards.ids[0]: (10, 0), shards.ids[2]: (7, 3)}
    facts = account.facts()
    assert (facts.rows_planned, facts.rows_before, facts.rows, facts.shards_done) == (40, 17, 17, 2)
    assert facts.quarantines == (third.quarantine,)


def test_a_scheduler_made_of_the_books_hands_out_the_rest(output: Output, shards: ShardTable) -> None:
    account = account_of(output, shards, commit(shards.ids[1], bad_rows=2))
    scheduler = Scheduler(account.shards.weights, Limits(actors=1), account.counts(), shards.places)
    assert (scheduler.rows_total, scheduler.rows_done, scheduler.bad_rows) == (40, 8, 2)
    assert [account.shards.named(name).index for name in shards.ids] == [0, 1, 2, 3]
    assert not [action for action in scheduler.start(0.0) if isinstance(action, Dispatch)]
    assert scheduler.pending == 3


def test_every_shard_has_its_record_in_the_end(output: Output, shards: ShardTable) -> None:
    records = [commit(name) for name in shards.ids]
    assert account_of(output, shards, *reversed(records)).commits() == records


def test_a_commit_of_no_shard_of_the_job_is_refused(output: Output, shards: ShardTable) -> None:
    strange = replace(commit(shards.ids[0]), shard="f" * 20)
    with pytest.raises(OutputError, match=r"a commit of shard ffff.*which is not one of the 4 of this job"):
        account_of(output, shards, strange)


def test_the_run_log_is_due_until_it_is_written(output: Output, shards: ShardTable) -> None:
    log = RunLog(output, "run")
    assert log.is_due(0.0)
    log.write(None, "failed", "no node")
    assert not log.is_due(0.0)
    (run,) = output.runs()
    assert (run.run, run.state, run.error, run.shards_done) == ("run", "failed", "no node", 0)
    assert run.started_s == log.started_s
