"""The benchmark's peers write the same rows, and it notices when one does not."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trtfleet.jobs.network import fit
from trtfleet.jobs.spec import ScoreSpec
from trtfleet.trt_actors.model import load_model

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MODULES = ("models", "workloads", "verify", "peers", "report", "score_vs_peers")
ROWS = 5_000


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The benchmark's modules, which find each other by the script's folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name, None)


def write(folder: Path, ids: np.ndarray, logits: np.ndarray) -> Path:
    lists = pa.FixedSizeListArray.from_arrays(pa.array(logits.astype(np.float32).reshape(-1)), 2)
    folder.mkdir()
    pq.write_table(pa.table({"id": ids, "logits": lists}), folder / "part.parquet")
    return folder


def test_all_peers_write_the_same_rows(tmp_path: Path) -> None:
    script = [sys.executable, str(BENCHMARKS / "score_vs_peers.py")]
    sizes = ["--rows-scale", "0.0025", "--rounds", "1", "--only", "digits", "--only", "overhead"]
    sizes += ["--settle-s", "0"]
    places = ["--work", str(tmp_path / "work"), "--json", str(tmp_path / "found.json")]
    done = subprocess.run(
        [*script, *sizes, *places], capture_output=True, text=True, timeout=200, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    peers = found["workloads"]["digits"]["peers"]
    assert {peer["kind"] for peer in peers} == {"trtfleet", "ray data", "plain loop"}
    assert [peer["error"] for peer in peers] == [""] * len(peers)
    assert {peer["rows"] for peer in peers} == {ROWS}
    checksums = [peer["checksum"] for peer in peers]
    assert checksums == pytest.approx([checksums[0]] * len(peers), rel=1e-4)
    assert all(peer["median_s"] > 0 and peer["ratio"] > 0 for peer in peers)
    assert found["overhead"]["error"] == ""
    assert found["overhead"]["shards"] == 2
    assert "ms_a_shard" in found["overhead"]
    assert found["machine"]["cores"] >= 1
    assert not list((tmp_path / "work").glob("out-*"))
    for peer in peers:
        assert f"| digits, {ROWS:,} rows | {peer['name']} |" in done.stdout
    assert "not the full size" in done.stdout


def test_peers_get_the_network_that_trtfleet_makes(tmp_path: Path, load: dict[str, ModuleType]) -> None:
    workloads = load["workloads"]
    for name in ("digits", "small_resnet"):
        workload = workloads.WORKLOADS[name]
        case = workloads.make_case(workload, tmp_path, 1e-9, (1,))
        assert pq.read_table(list(case.files)).num_rows == case.rows
        spec = ScoreSpec(
            model=str(case.model), data=("unused",), out="unused", keep=("id",), normalize=workload.normalize
        )
        fitted = fit(spec, load_model(case.model), pq.read_schema(case.files[0]))
        assert fitted.network.model_bytes == case.prepared.read_bytes()
        onnx.checker.check_model(str(case.prepared))


def test_other_rows_and_other_logits_are_noticed(tmp_path: Path, load: dict[str, ModuleType]) -> None:
    ids, logits = np.arange(6), np.arange(12).reshape(6, 2) / 8
    reference = load["verify"].Reference(6)
    assert reference.check(write(tmp_path / "first", ids, logits)) == (6, logits.sum(), 0.0)
    turned = write(tmp_path / "turned", ids[::-1], logits[::-1])
    assert reference.check(turned) == (6, logits.sum(), 0.0)
    with pytest.raises(ValueError, match="wrote 5 rows instead of 6"):
        reference.check(write(tmp_path / "fewer", ids[:5], logits[:5]))
    with pytest.raises(ValueError, match="twice"):
        reference.check(write(tmp_path / "twice", np.array([0, 1, 2, 3, 4, 4]), logits))
    with pytest.raises(ValueError, match="logits differ by"):
        reference.check(write(tmp_path / "swapped", ids, logits[::-1]))
    with pytest.raises(ValueError, match="not finite"):
        reference.check(write(tmp_path / "nan", ids, logits * np.nan))


def test_a_peer_that_fails_is_a_row_of_the_table(tmp_path: Path, load: dict[str, ModuleType]) -> None:
    bench, peers, report = load["score_vs_peers"], load["peers"], load["report"]
    workload = load["workloads"].WORKLOADS["digits"]
    case = load["workloads"].make_case(workload, tmp_path, 1e-5, (1,))

    def fail(case: object, out: Path) -> None:
        out.mkdir()
        raise RuntimeError("no such luck")

    reference = load["verify"].Reference(case.rows)
    plain = next(peer for peer in peers.all_peers() if peer.kind == peers.PLAIN)
    broken = peers.Peer(kind=peers.TRTFLEET, name="broken", run=fail)
    found = []
    for peer in (broken, plain):
        times = bench.Times()
        bench._take_turn(peer, case, times, reference, tmp_path, Namespace(settle_s=0, limit_s=60))
        found.append((peer, vars(times)))
    assert found[0][1]["error"] == "RuntimeError: no such luck"
    assert found[1][1]["rows"] == case.rows
    folded = report.fold_workload(case, found, is_full_size=True)
    lines = report.lines_of({"machine": report.machine(), "workloads": {"digits": folded}})
    assert any("| broken | failed: RuntimeError: no such luck |" in line for line in lines)
    assert [goal["is_met"] for goal in folded["goals"]] == [None, None]
    assert not list(tmp_path.glob("out-*"))


def test_a_peer_that_hangs_is_stopped(load: dict[str, ModuleType]) -> None:
    bench = load["score_vs_peers"]
    with pytest.raises(TimeoutError, match=r"not finished after 0\.2 s"):
        bench._timed(lambda: bench.time.sleep(30), Namespace(settle_s=0, limit_s=0.2))
