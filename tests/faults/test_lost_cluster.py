"""Clusters that lose a node while a job runs, asked to go or not, and clusters whose head node is lost."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from trtfleet.tests.faults.nodes import CPUS, Nodes

pytestmark = pytest.mark.ray

Check = Callable[[Path], None]

_HOOK = """
import time


def slow(batch):
    time.sleep(0.4)
    return batch
"""
_OPTIONS = ("--preprocess", "slow_hook:slow")
# Ray waits so long for its head node before it ends the driver; by default it is 60.
_RAY_WAITS_S = 25


class Head:
    """A head node of its own, which comes back at the same port and knows nothing of what was before."""

    def __init__(self, environment: dict[str, str], alive: Callable[[int], list[psutil.Process]]) -> None:
        # Ray's sockets live below this folder, and their names must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self._alive = alive
        self._ports = (_free_port(), _free_port())
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0

    @property
    def environment(self) -> dict[str, str]:
        """Of drivers."""
        return {**self._environment, "RAY_gcs_rpc_server_reconnect_timeout_s": str(_RAY_WAITS_S)}

    def start(self) -> None:
        """Starts it; it is there when this returns."""
        port, client_port = self._ports
        self._starts += 1
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
        command += [f"--port={port}", f"--ray-client-server-port={client_port}", "--num-cpus=4"]
        command += ["--object-store-memory=80000000", f"--temp-dir={self._folder / str(self._starts)}"]
        command += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        command += ["--include-dashboard=false", "--include-log-monitor=false", "--disable-usage-stats"]
        log = self._folder / f"{self._starts}.log"
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                command, env=self._environment, stdout=sink, stderr=sink, start_new_session=True
            )
        deadline_s = time.monotonic() + 60
        while not (found := re.search(r"--address='([\w.:\[\]]+)'", log.read_text())):
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.1)
        self._environment = {**self._environment, "RAY_ADDRESS": found[1]}

    def lose(self) -> None:
        """Ends all its processes at once, actors included."""
        if self._process is not None:
            for process in self._alive(self._process.pid):
                process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Ends it and removes what it has written."""
        self.lose()
        shutil.rmtree(self._folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture
def head(ray_head: Any, alive: Any) -> Iterator[Head]:
    """A head node that lives as long as the test, apart from the one that all tests share."""
    kept = {name: value for name, value in ray_head.environment.items() if name != "RAY_ADDRESS"}
    head = Head(kept, alive)
    head.start()
    yield head
    head.close()


@pytest.fixture
def job(job: Any) -> Any:
    """The job, with this hook."""
    (job.folder / "slow_hook.py").write_text(_HOOK)
    return job


@pytest.mark.parametrize(
    "comes_back",
    [pytest.param(True, id="restarted"), pytest.param(False, id="gone", marks=pytest.mark.slow)],
)
def test_a_head_node_that_is_lost_ends_the_job_with_words(
    job: Any, check: Check, head: Head, tmp_path: Path, figures: Any, comes_back: bool
) -> None:
    out = tmp_path / "out"
    driver = job.start(out, *_OPTIONS, environment=head.environment)
    job.wait_for(lambda: job.commits(out) >= 3)
    head.lose()
    if comes_back:
        head.start()
    # Ray itself would have ended it with a message of its own and exit code 1.
    stdout, stderr = driver.communicate(timeout=60)
    assert (driver.returncode, stdout) == (9, ""), stderr
    (error,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert "was restarted" in error if comes_back else "has not answered for" in error
    assert "the same command goes on" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    assert "StackTrace" not in stderr
    committed = job.commits(out)
    assert 3 <= committed < job.shards
    assert not job.finals(out)
    if not comes_back:
        head.start()
    summary = job.score(out, *_OPTIONS, environment=head.environment)
    assert summary["rows_scored"] == (job.shards - committed) * (job.rows // job.shards)
    check(out)
    fault = f"the head node {'restarted' if comes_back else 'lost'}"
    figures("processes", fault=fault, runs=1, resumed=1, lost=0, duplicated=0)


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param(signal.SIGTERM, id="asked to go"),
        # Half of it is in test_elastic.py.
        pytest.param(signal.SIGKILL, id="power cut", marks=pytest.mark.slow),
    ],
)
def test_one_of_three_nodes_goes_while_it_works(
    job: Any, check: Check, ray_head: Any, alive: Any, tmp_path: Path, figures: Any, ending: signal.Signals
) -> None:
    nodes = Nodes(ray_head, alive, tmp_path)
    out = tmp_path / "out"
    try:
        first, _ = nodes.start(0.0), nodes.start(0.0)
        driver = job.start(out, *_OPTIONS, "--actors", "auto", "--cpus-per-actor", str(CPUS))
        job.wait_for(lambda: job.commits(out) >= 4 and len(nodes.actors()) == 2)
        assert any(actor.pid in {one.pid for one in alive(first.pid)} for actor in nodes.actors())
        if ending == signal.SIGTERM:
            # As `ray stop` does it.
            for process in alive(first.pid):
                process.terminate()
        else:
            nodes.lose(first)
        summary = job.succeeded(driver)
    finally:
        nodes.close()
    check(out)
    assert summary["failures"] >= 1
    fault = "a node asked to go" if ending == signal.SIGTERM else "a node lost"
    figures("processes", fault=fault, runs=1, resumed=0, lost=0, duplicated=0)
