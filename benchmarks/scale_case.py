"""One simulated job, measured in the process that calls."""

from __future__ import annotations

import dataclasses
import time
from itertools import islice
from pathlib import Path
from typing import Any

import trtfleet.jobs.score  # noqa: F401 (a driver has all of it in memory)
from scale_dataset import dataset_of
from scale_driver import Driver
from scale_world import Rates, World, record_of
from trtfleet.datasets.records import CommitRecord

__all__ = ["Case", "measure_case", "peak_mib"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One simulated job.

    Attributes:
        shards: Shards of the dataset.
        actors: Actors at once.
        resumed: Share of the shards that an earlier run committed, 0 or 1 / n.
    """

    shards: int
    actors: int
    resumed: float = 0.0


def measure_case(case: Case, seed: int, rates: Rates | None = None) -> dict[str, Any]:
    """Runs one job from its footers to its last commit; says what it cost and what happened.

    Raises:
        RuntimeError: The planner cut another number of shards, the job failed, or rows were lost or doubled.
    """
    imports_mib = peak_mib()
    files = dataset_of(case.shards)
    earlier = [_committed_before(case, files)]
    done = case.shards - len(earlier[0])
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    # Whoever reads the records may let go of them: nobody else holds them.
    driver = Driver(files, case.actors, earlier.pop)
    if len(driver.shards) != case.shards:
        raise RuntimeError(f"the planner cut {len(driver.shards):,} shards instead of {case.shards:,}")
    world = World(driver, rates or Rates(), seed)
    world.run()
    cpu_s, wall_s = time.process_time() - start_cpu_s, time.perf_counter() - start_s
    until_scored_mib = peak_mib()
    scheduler = driver.scheduler
    if not scheduler.finished:
        raise RuntimeError(f"{world.end} after {scheduler.shards_done:,} shards")
    rows = sum(record.rows for record in driver.account.commits())
    if not rows == scheduler.rows_done == scheduler.rows_total:
        raise RuntimeError(
            f"{rows:,} rows in {scheduler.rows_total:,} planned, {scheduler.rows_done:,} counted"
        )
    return {
        **dataclasses.asdict(case),
        "files": len(files),
        "row_groups": sum(len(groups) for _, groups in files),
        "planning_s": driver.planned_s,
        "first_dispatch_s": world.spent_at_first_dispatch_s,
        "driver_us": driver.spent_s / done * 1e6,
        "process_cpu_us": cpu_s / done * 1e6,
        "wall_s": wall_s,
        "peak_mib": until_scored_mib,
        "imports_mib": imports_mib,
        "virtual_s": world.now_s,
        "events": world.events,
        "happened": dict(world.counts),
    }


def peak_mib() -> float:
    """The most memory this process has had resident; unlike that of `getrusage`, never its parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM: this needs Linux")


def _committed_before(case: Case, files: Any) -> dict[str, CommitRecord]:
    """What `Output.committed` would have read: every n-th shard, under strings of its own."""
    if not case.resumed:
        return {}
    shards = islice(Driver(files, case.actors).shards, 0, None, round(1 / case.resumed))
    records = (CommitRecord.decode(record_of(shard, "90b1e6aa-1", 0.0).encode(), "") for shard in shards)
    return {record.shard: record for record in records}
