"""What only S3 does: a process that ends with work under way neither hangs nor completes half an object."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from trtfleet.datasets.storage import Storage

PROGRAM = """
import os, signal, sys
import numpy as np, pyarrow as pa
from trtfleet.datasets.parts import PartWriter
from trtfleet.datasets.storage import Storage
storage, how = Storage(sys.argv[1]), sys.argv[2]
storage.put("begun", b"")
batch = pa.RecordBatch.from_pydict({"x": np.random.default_rng(0).random(1_000_000)})
with PartWriter(storage, "part.parquet", "none") as writer:
    writer.write(batch)
    if how == "error":
        raise ValueError("stop")
    if how == "exit":
        sys.exit(3)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    writer.close()
"""


@pytest.mark.parametrize(
    ("how", "code", "left"),
    [
        ("close", 0, ["begun", "part.parquet"]),
        ("error", 1, ["begun"]),
        ("exit", 3, ["begun"]),
        ("kill", -9, ["begun"]),
    ],
)
def test_a_process_that_ends_while_it_writes(
    bucket: str, tmp_path: Path, how: str, code: int, left: list[str]
) -> None:
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, bucket, how],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=dict(os.environ),
    )
    assert process.returncode == code, process.stderr
    assert [entry.path for entry in Storage(bucket).list()] == left
    assert "ignored" not in process.stderr
    assert ("ValueError: stop" in process.stderr) == (how == "error")


def test_a_folder_marker_is_no_file(bucket: str) -> None:
    """Consoles create empty objects that stand for folders."""
    import boto3
    from trtfleet.datasets.discovery import discover

    client, name = boto3.client("s3"), bucket.removeprefix("s3://")
    for key in ("data/", "data/k=1/", "data/k=1/a.parquet"):
        client.put_object(Bucket=name, Key=key, Body=b"PAR1" if key.endswith("t") else b"")
    assert [file.path for file in discover([f"{bucket}/data"])] == ["k=1/a.parquet"]
    assert [file.path for file in discover([f"{bucket}/data/"])] == ["k=1/a.parquet"]
    assert [file.path for file in discover([f"{bucket}/data/k=1"])] == ["a.parquet"]


def test_neighbours_of_a_prefix_are_not_in_it(bucket: str) -> None:
    for path in ("data/a", "data2/a", "dat/a", "other/data/a"):
        Storage(bucket).put(path, b"")
    assert [entry.path for entry in Storage(f"{bucket}/data").list()] == ["a"]
