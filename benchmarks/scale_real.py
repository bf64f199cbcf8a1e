"""What a driver does besides deciding, measured with the real thing: calls, footers, commit records."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scale_dataset import dataset_of
from scale_driver import Driver
from scale_world import record_of
from trtfleet.datasets.discovery import discover
from trtfleet.datasets.footers import inspect
from trtfleet.datasets.output import Output
from trtfleet.datasets.records import JobRecord
from trtfleet.datasets.storage import Storage
from trtfleet.trt_actors.pipeline_stats import PipelineStats
from trtfleet.trt_actors.stages import StageStats
from trtfleet.trt_actors.task import ActorInfo, Receipt

__all__ = ["measure_calls", "measure_footers", "measure_records"]

_COLUMNS = 12
_ROW_GROUPS = 10


def measure_calls(shards: int) -> dict[str, float]:
    """The whole of `ActorPool` on a real Ray, with two actors that answer at once.

    Ray's own threads in the driver count: what a shard costs is the process's CPU time.
    """
    import ray
    from trtfleet.cluster.pool import ActorPool, Work
    from trtfleet.cluster.session import Resources, connect

    @ray.remote(max_restarts=0, max_task_retries=0)
    class Answers:
        """Commits nothing, and says that it did."""

        def start(self, job: JobRecord) -> ActorInfo:
            return ActorInfo(backend="none", not_taken="", batch_size=1, node="here", pid=1, start_s=0.0)

        def score(self, shard: Any, attempt: str) -> Receipt:
            return Receipt(
                record=record_of(shard, attempt, 0.0),
                won=True,
                seconds=1.0,
                stats=PipelineStats(),
                stages=StageStats(),
            )

    driver = Driver(dataset_of(shards), 2)
    work = Work(
        actor=Answers,
        task=JobRecord(fingerprint={}, resolved={}, shards=shards, rows=0),
        resources=Resources(cpus=0.5, gpus=0),
        threads=4,
        payload=lambda shard, attempt: (driver.account.shards.named(shard), f"5f3a90c1-{attempt}"),
        count=lambda receipt: (receipt.record.rows, receipt.record.bad_rows),
    )
    clock: list[tuple[float, float]] = []

    def on_started(name: str, info: ActorInfo) -> None:
        driver.account.actor_started(name, info)
        clock.append((time.perf_counter(), time.process_time()))

    with connect():
        pool = ActorPool(
            driver.scheduler,
            work,
            on_started=on_started,
            on_done=driver.account.shard_done,
            on_progress=driver.account.progress,
        )
        try:
            pool.run()
            wall_s, cpu_s = time.perf_counter() - clock[0][0], time.process_time() - clock[0][1]
        finally:
            pool.close()
    return {"count": shards, "cpu_us": cpu_s / shards * 1e6, "wall_us": wall_s / shards * 1e6}


def measure_footers(files: int) -> dict[str, float]:
    """`inspect` over real Parquet files on the local disk."""
    with tempfile.TemporaryDirectory() as folder:
        rows = 1000 * _ROW_GROUPS
        table = pa.table({f"column_{i:02d}": np.arange(rows, dtype=np.float32) for i in range(_COLUMNS)})
        first = Path(folder, "part-00000.parquet")
        pq.write_table(table, first, row_group_size=1000)
        for number in range(1, files):
            Path(folder, f"part-{number:05d}.parquet").write_bytes(first.read_bytes())
        found = discover([folder])
        return _timed(files, lambda: inspect(found, table.column_names[:2], None))


def measure_records(records: int) -> dict[str, float]:
    """`Output.committed` over real commit records on the local disk, as a resumed job lists them."""
    shards = Driver(dataset_of(records), 2).shards
    with tempfile.TemporaryDirectory() as folder:
        job = JobRecord(fingerprint={}, resolved={}, shards=records, rows=0)
        output = Output.create(Storage(folder), job)
        for shard in shards:
            output.storage.put(
                output.path("commits", f"{shard.id}.json"), record_of(shard, "5f3a90c1-1", 0.0).encode()
            )
        return _timed(records, output.committed)


def _timed(count: int, work: Callable[[], Any]) -> dict[str, float]:
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    work()
    wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    return {"count": count, "cpu_us": cpu_s / count * 1e6, "wall_us": wall_s / count * 1e6}
