"""A job from S3 to S3: scored, interrupted, resumed, repeated; in a process whose Ray knows where S3 is."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trtfleet.datasets.output import HIDDEN
from trtfleet.datasets.storage import Storage

ROWS = 1200
FEATURES = 4

DRIVER = '''
"""Runs the command line several times on one Ray, which takes over this process's environment."""
import contextlib, io, json, os, sys
import ray
from trtfleet.jobs import cli, progress

class Interrupting(progress.Silent):
    """Presses Ctrl-C once some shards are committed."""
    def update(self, snapshot):
        if snapshot.shards_done >= 3:
            raise KeyboardInterrupt

def run(*arguments):
    stdout, stderr = io.StringIO(), io.StringIO()
    sys.argv = ["trtfleet", *arguments]
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
    text = stdout.getvalue()
    return {"code": code, "stderr": stderr.getvalue(), "json": json.loads(text) if text else None}

model, data, out = sys.argv[1:]
options = ["--keep", "id", "--keep", "k", "--filter", "id >= 100", "--shard-bytes", "1000",
           "--batch-size", "32", "--actors", "2", "--json"]
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
results = {}
reporter_for = progress.reporter_for
progress.reporter_for = Interrupting
results["interrupted"] = run("score", model, data, out, *options)
results["status"] = run("status", out, "--json")
progress.reporter_for = reporter_for
results["resumed"] = run("score", model, data, out, *options)
results["repeated"] = run("score", model, data, out, *options)
results["finished"] = run("status", out, "--json")
results["other"] = run("score", model, data, out, *options, "--emit", "softmax")
results["whole"] = run("score", model, data, out + "-2", *options)
results["no bucket"] = run("score", model, "s3://not-there/x", out + "-3", *options)
results["no output bucket"] = run("score", model, data, "s3://not-there/x", *options)
ray.shutdown()
print(json.dumps(results))
'''


def table_of(start: int, rows: int) -> pa.Table:
    ids = np.arange(start, start + rows)
    values = pa.array(np.random.default_rng(start).random(rows * FEATURES, np.float32))
    return pa.table({"id": ids, "x": pa.FixedSizeListArray.from_arrays(values, FEATURES)})


def files_of(url: str) -> dict[str, bytes]:
    storage = Storage(url)
    names = [entry.path for entry in storage.list() if not entry.path.startswith((HIDDEN, "_"))]
    return {name: storage.get(name) or b"" for name in names}


@pytest.mark.ray
def test_from_s3_to_s3(bucket: str, tmp_path: Path, linear_model: Callable[..., Path]) -> None:
    data, out = f"{bucket}/my data/ä", f"{bucket}/out#1"
    tables = {k: table_of(k * ROWS // 2, ROWS // 2) for k in (0, 1)}
    for k, table in tables.items():
        sink = io.BytesIO()
        pq.write_table(table, sink, row_group_size=100)
        Storage(data).put(f"k={k}/a.parquet", sink.getvalue())
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.run(
        [sys.executable, str(script), str(linear_model(FEATURES, 2)), data, out],
        env={**kept, "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=180,
        cwd=tmp_path,
    )
    assert process.returncode == 0, process.stderr
    results: dict[str, dict[str, Any]] = json.loads(process.stdout.splitlines()[-1])
    assert "Traceback" not in "".join(result["stderr"] for result in results.values())

    assert results["interrupted"]["code"] == 130
    status = results["status"]["json"]
    assert status["state"] == "stopped"
    assert 3 <= status["shards_done"] < status["shards_total"]

    rows = ROWS - 100
    assert results["resumed"]["code"] == 0
    assert results["resumed"]["json"]["rows"] == rows
    assert results["repeated"]["code"] == 0
    assert results["repeated"]["json"]["already_finished"] is True
    assert results["finished"]["json"]["state"] == "finished"
    assert results["finished"]["json"]["rows"] == rows
    assert results["other"]["code"] == 8
    assert "emit" in results["other"]["stderr"]

    files = files_of(out)
    assert files
    assert results["whole"]["code"] == 0
    assert files == files_of(f"{out}-2"), "byte by byte as without the interruption"
    scored = pa.concat_tables(pq.read_table(io.BytesIO(files[name])) for name in sorted(files))
    whole = pa.concat_tables(tables.values()).slice(100)
    assert scored["id"].equals(whole["id"])
    assert scored["k"].to_pylist() == [0] * 500 + [1] * 600
    weights = np.arange(FEATURES * 2, dtype=np.float32).reshape(FEATURES, 2) / 8
    inputs = whole["x"].combine_chunks().flatten().to_numpy().reshape(-1, FEATURES)
    answers = scored["y"].combine_chunks().flatten().to_numpy().reshape(-1, 2)
    np.testing.assert_allclose(answers, inputs @ weights, rtol=1e-5)

    for name, code in (("no bucket", 4), ("no output bucket", 7)):
        assert results[name]["code"] == code
        assert "hint: create the bucket first" in results[name]["stderr"]
