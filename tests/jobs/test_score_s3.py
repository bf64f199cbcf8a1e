"""A job from S3 to S3: scored, interrupted, resumed, repeated."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trtfleet.datasets.output import HIDDEN
from trtfleet.datasets.storage import Storage
from trtfleet.jobs import progress
from trtfleet.tests.jobs.conftest import Ran

ROWS = 1200
FEATURES = 4


class Interrupting(progress.Silent):
    """Presses Ctrl-C once some shards are committed."""

    def update(self, snapshot: progress.Snapshot) -> None:
        if snapshot.shards_done >= 3:
            raise KeyboardInterrupt


def table_of(start: int, rows: int) -> pa.Table:
    ids = np.arange(start, start + rows)
    values = pa.array(np.random.default_rng(start).random(rows * FEATURES, np.float32))
    return pa.table({"id": ids, "x": pa.FixedSizeListArray.from_arrays(values, FEATURES)})


def files_of(url: str) -> dict[str, bytes]:
    storage = Storage(url)
    names = [entry.path for entry in storage.list() if not entry.path.startswith((HIDDEN, "_"))]
    return {name: storage.get(name) or b"" for name in names}


@pytest.mark.usefixtures("ray_session")
def test_from_s3_to_s3(
    bucket: str,
    linear_model: Callable[..., Path],
    command: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, data, out = linear_model(FEATURES, 2), f"{bucket}/my data/ä", f"{bucket}/out#1"
    tables = {k: table_of(k * ROWS // 2, ROWS // 2) for k in (0, 1)}
    for k, table in tables.items():
        sink = io.BytesIO()
        pq.write_table(table, sink, row_group_size=100)
        Storage(data).put(f"k={k}/a.parquet", sink.getvalue())

    def run(*arguments: str | Path) -> tuple[int, Any, str]:
        ran = command(*arguments)
        assert "Traceback" not in ran.stderr
        return ran.code, json.loads(ran.stdout) if ran.stdout else None, ran.stderr

    def score(source: str, target: str, *more: str) -> tuple[int, Any, str]:
        options = ["--keep", "id", "--keep", "k", "--filter", "id >= 100", "--shard-bytes", "1000"]
        options += ["--batch-size", "32", "--actors", "2", "--json"]
        return run("score", model, source, target, *options, *more)

    with monkeypatch.context() as patch:
        patch.setattr(progress, "reporter_for", Interrupting)
        assert score(data, out)[0] == 130
    _, status, _ = run("status", out, "--json")
    assert status["state"] == "stopped"
    assert 3 <= status["shards_done"] < status["shards_total"]

    rows = ROWS - 100
    code, resumed, _ = score(data, out)
    assert (code, resumed["rows"]) == (0, rows)
    code, repeated, _ = score(data, out)
    assert (code, repeated["already_finished"]) == (0, True)
    _, finished, _ = run("status", out, "--json")
    assert (finished["state"], finished["rows"]) == ("finished", rows)
    code, _, said = score(data, out, "--emit", "softmax")
    assert code == 8
    assert "emit" in said

    files = files_of(out)
    assert files
    assert score(data, f"{out}-2")[0] == 0
    assert files == files_of(f"{out}-2"), "byte by byte as without the interruption"
    scored = pa.concat_tables(pq.read_table(io.BytesIO(files[name])) for name in sorted(files))
    whole = pa.concat_tables(tables.values()).slice(100)
    assert scored["id"].equals(whole["id"])
    assert scored["k"].to_pylist() == [0] * 500 + [1] * 600
    weights = np.arange(FEATURES * 2, dtype=np.float32).reshape(FEATURES, 2) / 8
    inputs = whole["x"].combine_chunks().flatten().to_numpy().reshape(-1, FEATURES)
    answers = scored["y"].combine_chunks().flatten().to_numpy().reshape(-1, 2)
    np.testing.assert_allclose(answers, inputs @ weights, rtol=1e-5)

    for source, target, expected in (("s3://not-there/x", f"{out}-3", 4), (data, "s3://not-there/x", 7)):
        code, _, said = score(source, target)
        assert code == expected
        assert "hint: create the bucket first" in said
