"""What each class of devices did for a job, as the summary tells it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from trtfleet.datasets.records import CommitRecord
from trtfleet.jobs.device_shares import DeviceShares
from trtfleet.jobs.summary import Summary
from trtfleet.trt_actors.pipeline_stats import PipelineStats
from trtfleet.trt_actors.stages import StageStats
from trtfleet.trt_actors.task import ActorInfo, Receipt

H100, L4 = "NVIDIA H100 (9.0)", "NVIDIA L4 (8.9)"


def info(device: str, batch_size: int, not_taken: str = "") -> ActorInfo:
    return ActorInfo(
        backend="tensorrt",
        not_taken=not_taken,
        batch_size=batch_size,
        batch_origin="measured",
        node="node",
        pid=1,
        start_s=1.0,
        device=device,
    )


def receipt(rows: int, *, won: bool = True) -> Receipt:
    record = CommitRecord(
        shard="s", attempt="a", rows=rows, bad_rows=0, part=None, part_bytes=0, sha256=None, quarantine=None
    )
    return Receipt(record=record, won=won, seconds=1.0, stats=PipelineStats(), stages=StageStats())


@pytest.fixture
def mixed() -> DeviceShares:
    shares = DeviceShares()
    assert shares.actor_started("a", info(H100, 256)) == ""
    assert shares.actor_started("b", info(H100, 256)) == ""
    told = shares.actor_started("c", info(L4, 64, "no graphs"))
    assert told == f"on {L4}: backend tensorrt, batch size 64 (measured) (no graphs)"
    assert shares.actor_started("d", info(L4, 64)) == ""
    return shares


def test_rows_count_for_the_class_that_committed_them(mixed: DeviceShares) -> None:
    mixed.shard_done("a", receipt(500))
    mixed.shard_done("b", receipt(300))
    mixed.shard_done("c", receipt(200))
    mixed.shard_done("d", receipt(300, won=False))
    first, second = mixed.shares()
    assert (first.device, first.actors, first.batch_size, first.rows) == (H100, 2, 256, 800)
    assert (second.device, second.actors, second.batch_size, second.rows) == (L4, 2, 64, 200)
    assert first.rows_per_s > 0


def test_the_summary_has_a_line_for_each_of_several_classes_and_none_for_a_single_one(
    mixed: DeviceShares,
) -> None:
    mixed.shard_done("a", receipt(800))
    mixed.shard_done("c", receipt(200))
    devices = tuple(replace(share, rows_per_s=share.rows / 10) for share in mixed.shares())
    summary = Summary(out="out", rows=1000, bad_rows=0, rows_scored=1000, devices=devices)
    assert f"{H100}: 80% of the rows, 80 rows/s on 2 actors, tensorrt, batch size 256" in summary.lines()
    assert f"{L4}: 20% of the rows, 20 rows/s on 2 actors, tensorrt, batch size 64" in summary.lines()
    assert summary.as_json()["devices"][1]["device"] == L4
    alone = replace(summary, devices=devices[:1])
    assert not any("of the rows" in line for line in alone.lines())


def test_a_class_that_did_nothing_is_told_nevertheless(mixed: DeviceShares) -> None:
    mixed.shard_done("a", receipt(10))
    assert [(share.device, share.rows, share.rows_per_s) for share in mixed.shares()][1] == (L4, 0, 0.0)
