"""Jobs whose actors, nodes and drivers are killed, frozen and doubled; ``scripts/soak`` does it longer."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trtfleet.tests.faults.nodes import Nodes
from trtfleet.tests.faults.soak import Soak
from trtfleet.tests.faults.soak_data import MODELS, Data
from trtfleet.tests.faults.soak_faults import Pace

MINUTES = float(os.environ.get("TRTFLEET_SOAK_MINUTES", "0"))
SEED = int(os.environ.get("TRTFLEET_SOAK_SEED", "1"))
SHORT = Pace(
    seconds=0.0,
    actors=2,
    shards=80,
    shard_rows=400,
    hook_s=0.3,
    gap_s=(0.2, 0.8),
    frozen_s=(1.0, 3.0),
    faults=("kill", "crash", "freeze", "lose node", "kill driver", "second driver"),
)


def _write_output(out: Path, table: pa.Table, quarantined: list[tuple[str, int]]) -> None:
    """What a finished job with four shards leaves, as far as the judge looks."""
    home = out / "_trtfleet" / "g0001"
    for name in ("commits", "quarantine"):
        (home / name).mkdir(parents=True)
    for number in range(4):
        (home / "commits" / f"{number}.json").touch()
    bad = {"file": [file for file, _ in quarantined], "row": [row for _, row in quarantined]}
    pq.write_table(pa.table(bad), home / "quarantine" / "1-a-1.parquet")
    pq.write_table(table, out / "part-00000.parquet")
    digest = hashlib.sha256((out / "part-00000.parquet").read_bytes()).hexdigest()
    parts = [{"name": "part-00000.parquet", "sha256": digest}]
    success = {"rows": 2999, "bad_rows": 1, "generation": "g0001", "parts": parts}
    (out / "_SUCCESS").write_text(json.dumps(success))


@pytest.mark.parametrize(
    ("spoil", "lost", "duplicated"),
    [("nothing", 0, 0), ("lose", 1, 0), ("double", 0, 1), ("change", 1, 0), ("unquarantine", 1, 0)],
)
def test_the_judge_sees_what_is_lost_and_what_comes_twice(
    tmp_path: Path, spoil: str, lost: int, duplicated: int
) -> None:
    data = Data(tmp_path, shards=4, shard_rows=750, hook_s=0.0)
    table = pq.read_table(tmp_path / "data").filter(pa.compute.field("x").is_valid())
    answers = np.array(table["x"].to_pylist(), np.float32) @ MODELS["one.onnx"]
    if spoil == "change":
        answers[7] += 1
    table = pa.table({"id": table["id"], "y": list(answers)})
    if spoil == "lose":
        table = table.slice(1)
    if spoil == "double":
        table = pa.concat_tables([table, table.slice(5, 1)])
    quarantined = [] if spoil == "unquarantine" else [("file:///rows-3.parquet", 252)]
    _write_output(tmp_path / "out", table, quarantined)
    seen, hidden = data.judge(tmp_path / "out", "one.onnx"), data.judge_hidden(tmp_path / "out")
    assert (seen.lost + hidden.lost, seen.duplicated + hidden.duplicated) == (lost, duplicated)
    assert bool(seen.wrong) == (spoil in ("lose", "double"))
    assert hidden.wrong == []


@pytest.mark.ray
@pytest.mark.timeout(MINUTES * 60 + 1200 if MINUTES else 400)
def test_every_row_comes_out_once_whatever_is_killed(
    ray_head: Any, alive: Any, tmp_path: Path, figures: Any
) -> None:
    pace = Pace(seconds=MINUTES * 60) if MINUTES else SHORT
    nodes = Nodes(ray_head, alive, tmp_path)
    print(f"\nseed {SEED}")
    try:
        found = Soak(tmp_path, nodes, ray_head.environment, pace, SEED, print).run()
    finally:
        nodes.close()
    print(json.dumps(asdict(found)))
    counted = asdict(found)
    del counted["wrong"]
    figures("soak", **counted)
    assert found.is_good, found
    assert min(found.killed, found.crashed, found.frozen, found.nodes_lost) > 0
    assert min(found.drivers_killed, found.drivers_together, found.jobs) > 0
