"""Two commands that write to the same output at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trtfleet.datasets.output import Output
from trtfleet.datasets.records import JobRecord
from trtfleet.datasets.storage import Storage


@pytest.mark.ray
@pytest.mark.parametrize("head_start_shards", [0, 8])
def test_both_succeed_and_no_row_comes_twice(
    job: Any, check: Callable[[Path], None], tmp_path: Path, head_start_shards: int
) -> None:
    out = tmp_path / "out"
    first = job.start(out, "--preprocess", "hooks:slow")
    if head_start_shards:
        job.wait_for(lambda: job.commits(out) >= head_start_shards)
    second = job.start(out, "--preprocess", "hooks:slow")
    summaries = [job.succeeded(driver) for driver in (first, second)]
    assert [summary["rows"] for summary in summaries] == [job.rows, job.rows]
    check(out)
    # Only records of runs and of the job itself are left, and no run left parts of its own behind.
    left = {path.relative_to(out / "_trtfleet" / "g0001").parts[0] for path in out.rglob("g0001/**/*.*")}
    assert left == {"job.json", "success.json", "report.html", "commits", "runs"}


def test_a_driver_adopts_what_another_finished_while_it_planned(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "out")
    record = JobRecord(fingerprint={"model": "a"}, resolved={"shard_bytes": 7}, shards=1, rows=1)
    Output.create(storage, record)
    # Both planned when nothing was there; by now the final files of the first are.
    (tmp_path / "out" / "part-00000.parquet").write_bytes(b"final")
    adopted = Output.create(storage, record)
    assert (adopted.generation, adopted.job) == ("g0001", record)
