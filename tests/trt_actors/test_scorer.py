"""One actor's work without Ray: from a shard to its commit."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper
from trtfleet.datasets.records import CommitRecord
from trtfleet.datasets.storage import Storage
from trtfleet.errors import DatasetError, HookError, OutputError
from trtfleet.trt_actors.scorer import Scorer

Planned = Callable[..., Any]
Hook = Callable[[str], str]

_WEIGHTS = np.arange(8, dtype=np.float32).reshape(4, 2) / 8


@pytest.fixture
def job(planned: Planned, linear_model: Callable[..., Path], vectors: Callable[..., Path]) -> Planned:
    """Plans the linear model over 1,000 rows in 10 row groups."""

    def plan(**options: Any) -> Any:
        return planned(linear_model(), vectors(), **{"keep": "id", "batch_size": 64, **options})

    return plan


@pytest.fixture
def picking_model(tmp_path: Path) -> Path:
    """A model that fails on rows whose ``i`` is not in 0..4: y = [10, 20, 30, 40, 50][i]."""
    table = numpy_helper.from_array(np.arange(10, 60, 10, dtype=np.float32), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        "picking",
        [helper.make_tensor_value_info("i", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
        [table],
    )
    path = tmp_path / "picking.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def rows_of(shard: Any) -> list[int]:
    return [s.first_row + i for s in shard.segments for i in range(s.rows)]


def expected(data: Path) -> np.ndarray:
    x = pq.read_table(data)["x"].combine_chunks().flatten().to_numpy().reshape(-1, 4)
    return np.asarray(x @ _WEIGHTS)


def test_a_shard_becomes_a_part_and_a_commit(job: Planned, vectors: Callable[..., Path]) -> None:
    planned = job(shard_bytes=7200)
    assert len(planned.shards) > 1
    with Scorer(planned.task) as scorer:
        assert scorer.info.batch_size == 64
        assert scorer.info.backend == "onnxruntime-cpu"
        receipts = [scorer.score(shard, "a-1") for shard in planned.shards]
    y = expected(vectors())
    for shard, receipt in zip(planned.shards, receipts, strict=True):
        assert receipt.won
        record = receipt.record
        assert (record.shard, record.attempt, record.rows, record.bad_rows) == (
            shard.id,
            "a-1",
            shard.rows,
            0,
        )
        part = planned.part(record)
        assert part.schema.names == ["id", "y"]
        assert part["id"].to_pylist() == rows_of(shard)
        found = np.array(part["y"].to_pylist(), np.float32)
        np.testing.assert_allclose(found, y[rows_of(shard)], rtol=1e-5)
    assert planned.output.committed() == {r.record.shard: r.record for r in receipts}
    assert receipts[-1].stats.rows == 1000


def test_shards_in_flight_at_once_do_not_mix(job: Planned, vectors: Callable[..., Path]) -> None:
    planned = job(shard_bytes=2400, batch_size=33)
    with Scorer(planned.task) as scorer, ThreadPoolExecutor(4) as threads:
        receipts = list(threads.map(lambda shard: scorer.score(shard, "a"), planned.shards))
    y = expected(vectors())
    for shard, receipt in zip(planned.shards, receipts, strict=True):
        part = planned.part(receipt.record)
        assert part["id"].to_pylist() == rows_of(shard)
        np.testing.assert_allclose(np.array(part["y"].to_pylist(), np.float32), y[rows_of(shard)], rtol=1e-5)


def test_the_same_rows_make_the_same_bytes_in_every_attempt(job: Planned) -> None:
    planned = job()
    (shard,) = planned.shards
    with Scorer(planned.task) as scorer:
        first = scorer.score(shard, "a").record
        commit = Path(planned.output.storage.root, planned.output.path("commits", f"{shard.id}.json"))
        commit.unlink()
        second = scorer.score(shard, "b").record
    assert first.part != second.part
    assert (first.sha256, first.part_bytes) == (second.sha256, second.part_bytes)


def test_a_duplicate_loses_and_changes_nothing(job: Planned, hook: Hook) -> None:
    name = hook("def pre(batch):\n    return batch\n")
    planned = job(preprocess=f"{name}:pre")
    (shard,) = planned.shards
    with Scorer(planned.task) as slow, Scorer(planned.task) as fast:
        may_go_on, arrived = threading.Event(), threading.Event()

        def pausing(batch: pa.RecordBatch) -> pa.RecordBatch:
            if threading.current_thread().name.startswith("slow"):
                arrived.set()
                assert may_go_on.wait(30)
            return batch

        for scorer in (slow, fast):
            scorer._feed._preprocess = pausing
        with ThreadPoolExecutor(1, "slow") as thread:
            late = thread.submit(slow.score, shard, "slow")
            assert arrived.wait(30)
            winner = fast.score(shard, "fast")
            before = {p: p.read_bytes() for p in Path(planned.output.storage.root).rglob("*.*")}
            may_go_on.set()
            loser = late.result(30)
    assert winner.won
    assert not loser.won
    assert loser.record == winner.record
    assert {p: p.read_bytes() for p in Path(planned.output.storage.root).rglob("*.*")} == before
    assert planned.files("parts") == [f"{shard.id}-fast.parquet"]


def test_rows_that_break_the_engine_are_found_and_the_rest_is_scored(
    planned: Planned, picking_model: Path, tmp_path: Path
) -> None:
    values = np.arange(500) % 5
    values[[3, 140, 141, 499]] = [77, -99, 5, 1000]
    pq.write_table(pa.table({"id": np.arange(500), "i": values}), tmp_path / "data.parquet")
    job = planned(picking_model, tmp_path / "data.parquet", keep="id", batch_size=100)
    (shard,) = job.shards
    with Scorer(job.task) as scorer:
        record = scorer.score(shard, "a").record
    assert (record.rows, record.bad_rows) == (496, 4)
    part = job.part(record)
    good = [row for row in range(500) if row not in (3, 140, 141, 499)]
    assert part["id"].to_pylist() == good
    assert part["y"].to_pylist() == [10.0 * (values[row] + 1) for row in good]
    bad = job.quarantine(record)
    assert [row["row"] for row in bad] == [3, 140, 141, 499]
    assert all(row["file"] == str(tmp_path / "data.parquet") for row in bad)
    assert all(row["reason"].startswith("engine: ") for row in bad)
    assert job.files("parts") == [f"{shard.id}-a.parquet"]


def test_a_losing_duplicate_takes_its_quarantine_along(
    planned: Planned, picking_model: Path, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"i": [1, 99, 2]}), tmp_path / "data.parquet")
    job = planned(picking_model, tmp_path / "data.parquet", batch_size=2)
    (shard,) = job.shards
    with Scorer(job.task) as scorer:
        assert scorer.score(shard, "a").won
        assert not scorer.score(shard, "b").won
    assert job.files("quarantine") == [f"{shard.id}-a.parquet"]
    assert job.files("parts") == [f"{shard.id}-a.parquet"]


def test_a_shard_of_bad_rows_only_has_no_part(planned: Planned, picking_model: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"i": [70, 80, 90]}), tmp_path / "data.parquet")
    job = planned(picking_model, tmp_path / "data.parquet", batch_size=2)
    with Scorer(job.task) as scorer:
        record = scorer.score(job.shards[0], "a").record
    assert (record.rows, record.bad_rows, record.part, record.sha256) == (0, 3, None, None)
    assert job.files("parts") == []


def test_nulls_are_bad_rows_with_their_column(planned: Planned, picking_model: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"i": pa.array([0, None, 2], pa.int64())}), tmp_path / "data.parquet")
    job = planned(picking_model, tmp_path / "data.parquet", batch_size=8)
    with Scorer(job.task) as scorer:
        record = scorer.score(job.shards[0], "a").record
    assert job.part(record)["y"].to_pylist() == [10.0, 30.0]
    assert [(row["row"], row["column"]) for row in job.quarantine(record)] == [(1, "i")]


def test_hooks_change_what_goes_in_and_what_comes_out(job: Planned, hook: Hook, vectors: Any) -> None:
    name = hook(
        "def pre(batch):\n"
        "    x = batch['x'].flatten().to_numpy().reshape(-1, 4)\n"
        "    return {'x': x * 2}\n"
        "def post(outputs, rows):\n"
        "    y = outputs['y']\n"
        "    return {'total': y.sum(axis=1), 'twice': np.array(rows['id']) * 2}\n"
    )
    planned = job(preprocess=f"{name}:pre", postprocess=f"{name}:post")
    with Scorer(planned.task) as scorer:
        part = planned.part(scorer.score(planned.shards[0], "a").record)
    assert part.schema.names == ["id", "total", "twice"]
    assert part["twice"].to_pylist() == [2 * row for row in range(1000)]
    total = part["total"].to_numpy()
    np.testing.assert_allclose(total, 2 * expected(vectors()).sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize("role", ["pre", "post"])
def test_rows_that_make_a_hook_raise_are_bad(job: Planned, hook: Hook, role: str) -> None:
    name = hook(
        "def check(ids):\n"
        "    bad = set(ids.to_pylist()) & {5, 700}\n"
        "    if bad:\n"
        "        raise KeyError(f'row {min(bad)}\\nand more')\n"
        "def pre(batch):\n"
        "    check(batch['id'])\n"
        "    return batch\n"
        "def post(outputs, rows):\n"
        "    check(rows['id'])\n"
        "    return outputs\n"
    )
    option = {"preprocess": f"{name}:pre"} if role == "pre" else {"postprocess": f"{name}:post"}
    planned = job(**option)
    with Scorer(planned.task) as scorer:
        record = scorer.score(planned.shards[0], "a").record
    assert (record.rows, record.bad_rows) == (998, 2)
    bad = planned.quarantine(record)
    assert [row["row"] for row in bad] == [5, 700]
    assert all(f"{role}process: KeyError" in row["reason"] for row in bad)
    assert all("\n" not in row["reason"] for row in bad)
    assert planned.part(record)["id"].to_pylist() == [row for row in range(1000) if row not in (5, 700)]


def test_a_hook_that_drops_rows_ends_the_shard_and_leaves_nothing(job: Planned, hook: Hook) -> None:
    name = hook("def pre(batch):\n    return batch.slice(1)\n")
    planned = job(preprocess=f"{name}:pre")
    with Scorer(planned.task) as scorer, pytest.raises(HookError, match="63 rows"):
        scorer.score(planned.shards[0], "a")
    assert planned.files("parts") == planned.files("commits") == planned.files("quarantine") == []


def test_a_truncated_file_ends_the_shard_leaves_nothing_and_blocks_nobody(job: Planned) -> None:
    planned = job(shard_bytes=2400)
    data = Path(planned.shards[0].file.url)
    with Scorer(planned.task) as scorer:
        assert scorer.score(planned.shards[0], "a").won
        whole = data.read_bytes()
        data.write_bytes(whole[: len(whole) // 2])
        with Scorer(planned.task) as fresh, pytest.raises(DatasetError, match="changed under the job"):
            fresh.score(planned.shards[-1], "b")
    assert planned.files("commits") == [f"{planned.shards[0].id}.json"]
    assert planned.files("parts") == [f"{planned.shards[0].id}-a.parquet"]


def test_an_error_after_the_commit_was_sent_does_not_take_the_part_away(
    job: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = job()
    (shard,) = planned.shards
    original = Storage.put_new

    def answer_is_lost(self: Storage, path: str, data: bytes) -> bool:
        made = original(self, path, data)
        if "commits/" in path:
            raise OSError("connection reset")
        return made

    with Scorer(planned.task) as scorer:
        monkeypatch.setattr(Storage, "put_new", answer_is_lost)
        with pytest.raises(OutputError, match="connection reset"):
            scorer.score(shard, "a")
        monkeypatch.undo()
        again = scorer.score(shard, "b")
    assert not again.won
    assert again.record.attempt == "a"
    assert planned.part(again.record).num_rows == 1000


def test_a_write_that_fails_leaves_no_commit_and_the_next_attempt_works(
    job: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = job()
    (shard,) = planned.shards

    def full(self: Storage, path: str) -> Any:
        raise OSError("No space left on device")

    with Scorer(planned.task) as scorer:
        with monkeypatch.context() as patch:
            patch.setattr(Storage, "open_output", full)
            with pytest.raises(OutputError, match="No space left") as caught:
                scorer.score(shard, "a")
        assert "free some space" in caught.value.hint
        assert planned.files("parts") == planned.files("commits") == []
        assert scorer.score(shard, "b").won


def test_closing_ends_every_thread(job: Planned) -> None:
    before = set(threading.enumerate())
    planned = job()
    with Scorer(planned.task) as scorer:
        scorer.score(planned.shards[0], "a")
        assert set(threading.enumerate()) - before
    assert not [t for t in set(threading.enumerate()) - before if not t.name.startswith("records")]


def test_no_ray_is_involved() -> None:
    code = "import sys, trtfleet.trt_actors.scorer; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_receipts_travel_between_processes(job: Planned) -> None:
    planned = job()
    with Scorer(planned.task) as scorer:
        receipt = scorer.score(planned.shards[0], "a")
    assert pickle.loads(pickle.dumps(receipt)) == receipt
    assert isinstance(receipt.record, CommitRecord)
    assert pickle.loads(pickle.dumps(planned.task)).network == planned.task.network
