"""A job that real processes run, and that tests kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper

ROWS = 1200
GROUP_ROWS = 50
SHARDS = ROWS // GROUP_ROWS

_DRIVER = "from trtfleet.jobs.cli import main; main()"
_HOOKS = '''
import os, pathlib, signal, time

HERE = pathlib.Path(__file__).parent


def first_time(name):
    """Whether no process asked before."""
    try:
        os.close(os.open(HERE / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def slow(batch):
    time.sleep(0.1)
    return batch


def die_thrice(batch):
    for row in (120, 560, 1010):
        if row in batch["id"].to_pylist() and first_time(f"died-{row}"):
            os.kill(os.getpid(), signal.SIGKILL)
    return batch


def die_on_a_row(batch):
    if 700 in batch["id"].to_pylist() and not (HERE / "mended").exists():
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    return batch


def tell_and_wait(batch):
    if 0 in batch["id"].to_pylist() and first_time("told"):
        (HERE / "pid.tmp").write_text(str(os.getpid()))
        (HERE / "pid.tmp").rename(HERE / "pid")
        time.sleep(1)
    return batch
'''


@dataclass
class Job:
    """A scoring job in a folder of its own; every driver is a process that the fixture cleans up.

    Attributes:
        folder: Holds the model, the data and ``hooks.py``; drivers work there.
        environment: Of the drivers.
        rows: Of the data.
        shards: That the data is cut into.
    """

    folder: Path
    environment: dict[str, str]
    rows: int = ROWS
    shards: int = SHARDS
    drivers: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(
        self,
        out: Path,
        *options: str,
        environment: dict[str, str] | None = None,
        driver: str = _DRIVER,
        new_session: bool = False,
    ) -> subprocess.Popen[str]:
        """Starts ``trtfleet score`` into a folder."""
        command = [sys.executable, "-c", driver, "score", "linear.onnx", "vectors.parquet", str(out)]
        command += ["--keep", "id", "--batch-size", str(GROUP_ROWS), "--shard-bytes", "1200"]
        command += ["--actors", "2", "--json", *options]
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment or self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=new_session,
        )
        self.drivers.append(process)
        return process

    def score(self, out: Path, *options: str, **how: Any) -> dict[str, Any]:
        """Runs it to its end, which must be a good one; returns the summary."""
        return self.succeeded(self.start(out, *options, **how))

    @staticmethod
    def succeeded(driver: subprocess.Popen[str]) -> dict[str, Any]:
        """Waits for a driver that must succeed; returns its summary."""
        stdout, stderr = driver.communicate(timeout=90)
        assert driver.returncode == 0, stderr
        summary = json.loads(stdout)
        assert isinstance(summary, dict)
        return summary

    @staticmethod
    def commits(out: Path) -> int:
        """How many shards of an output are committed."""
        return len(list(out.glob("_trtfleet/g*/commits/*.json")))

    @staticmethod
    def finals(out: Path) -> dict[str, bytes]:
        """Every file that a plain reader sees. (``_SUCCESS`` is none, and holds times.)"""
        return {path.name: path.read_bytes() for path in out.glob("*.parquet")}

    @staticmethod
    def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
        """Polls until a condition holds, and returns what it gave."""
        deadline_s = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline_s, f"it did not happen in {seconds} s"
            time.sleep(0.01)
        return found

    def close(self) -> None:
        """Ends every driver that is left."""
        for driver in self.drivers:
            if driver.poll() is None:
                driver.kill()
            driver.communicate()


def write_job(folder: Path) -> None:
    """Writes the model, the data and the hooks; always the same bytes."""
    weights = np.arange(8, dtype=np.float32).reshape(4, 2)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "linear.onnx")
    x = np.random.default_rng(7).random((ROWS, 4), dtype=np.float32)
    columns = {"id": np.arange(ROWS), "x": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 4)}
    pq.write_table(pa.table(columns), folder / "vectors.parquet", row_group_size=GROUP_ROWS)
    (folder / "hooks.py").write_text(_HOOKS)


@pytest.fixture
def job(tmp_path: Path, ray_head: Any) -> Iterator[Job]:
    """The job, on the cluster that all tests share."""
    write_job(tmp_path)
    job = Job(tmp_path, ray_head.environment)
    yield job
    job.close()


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, ray_head: Any) -> dict[str, bytes]:
    """The final files of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("reference")
    write_job(folder)
    job = Job(folder, ray_head.environment)
    try:
        summary = job.score(folder / "out")
    finally:
        job.close()
    assert (summary["rows"], summary["shards"], summary["failures"]) == (ROWS, SHARDS, 0)
    return job.finals(folder / "out")


@pytest.fixture
def check(job: Job, reference: dict[str, bytes]) -> Callable[[Path], None]:
    """Checks that an output is complete: each row once, in order, and the bytes of an undisturbed run."""

    def check(out: Path) -> None:
        x = pq.read_table(job.folder / "vectors.parquet")["x"].combine_chunks().flatten().to_numpy()
        table = pq.read_table(out)
        assert table["id"].to_pylist() == list(range(ROWS))
        y = np.array(table["y"].to_pylist(), np.float32)
        weights = np.arange(8, dtype=np.float32).reshape(4, 2)
        np.testing.assert_allclose(y, x.reshape(-1, 4) @ weights, rtol=1e-5)
        assert job.finals(out) == reference
        assert json.loads((out / "_SUCCESS").read_text())["rows"] == ROWS
        assert job.commits(out) == SHARDS
        assert {path.name for path in out.iterdir()} == {"_SUCCESS", "_trtfleet", *reference}
        assert not list(out.glob("_trtfleet/*/parts/*"))

    return check


@pytest.fixture
def figures() -> Callable[..., None]:
    """Records what a test counted, where ``scripts/reliability`` collects it."""

    def record(kind: str, **counted: Any) -> None:
        path = os.environ.get("TRTFLEET_FIGURES")
        if path:
            # One write a line: several processes may record at once.
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            os.write(handle, (json.dumps({"kind": kind, **counted}) + "\n").encode())
            os.close(handle)

    return record
