"""``trtfleet submit`` against a real head node that asks for a token."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
import pyarrow.parquet as pq
import pytest
from trtfleet.errors import ClusterError, UsageError
from trtfleet.jobs import submitted
from trtfleet.jobs.submit import SubmitSpec
from trtfleet.jobs.submit_places import Places, check_places, warn_of_local_files

TOKEN = "fedcba9876543210" * 2
ROWS = 200
_TRTFLEET = [sys.executable, "-c", "from trtfleet.jobs.cli import main; main()"]
_RAY = [sys.executable, "-m", "ray.scripts.scripts"]
_HOOKS = """
import pathlib, time
import trtfleet

def tell(batch):
    folder = pathlib.Path({folder!r})
    (folder / "package").write_text(trtfleet.__file__)
    (folder / "cwd").write_text(str(pathlib.Path.cwd()))
    return batch

batches = []

def slow(batch):
    # Two batches of every process; the others when they are let go.
    batches.append(batch.num_rows)
    while len(batches) > 2 and not pathlib.Path({folder!r}, "go").exists():
        time.sleep(0.05)
    return batch
"""


@dataclass(frozen=True)
class Cluster:
    """A head node with its dashboard, and how to reach it."""

    url: str
    environment: dict[str, str]

    def start(self, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
        """Starts ``trtfleet submit``."""
        return subprocess.Popen(
            [*_TRTFLEET, "submit", *map(str, arguments)],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def submit(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs ``trtfleet submit`` to its end."""
        with self.start(*arguments, **environment) as process:
            try:
                stdout, stderr = process.communicate(timeout=90)
            finally:
                process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    ports = [free.getsockname()[1] for free in sockets]
    for free in sockets:
        free.close()
    return ports


def _belongs(process: psutil.Process, session: int, home: Path) -> bool:
    # Ray puts drivers in sessions of their own, but they know the home folder.
    try:
        return os.getsid(process.pid) == session or process.environ().get("HOME") == str(home)
    except (psutil.Error, ProcessLookupError):
        return False


def _runs(process: psutil.Process) -> bool:
    # What nobody waits for stays a zombie where the first process does not do so.
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One head node of four logical CPUs; everything it started is gone afterwards."""
    # Ray's sockets live below this folder, and their names must be short.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    environment = {
        **kept,
        "PATH": path,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "HOME": str(folder),
    }
    dashboard, client = _free_ports(2)
    command = [*_RAY, "start", "--head", "--block", "--port=0", "--num-cpus=4", "--disable-usage-stats"]
    command += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    command += ["--object-store-memory=100000000", f"--temp-dir={folder / 'r'}"]
    command += ["--dashboard-agent-listen-port=0", "--include-log-monitor=false", "--no-monitor"]
    log = folder / "head.log"
    with log.open("wb") as sink:
        head = subprocess.Popen(
            command, env=environment, stdout=sink, stderr=sink, start_new_session=True, cwd=folder
        )
    try:
        _wait_for(lambda: "--block" in log.read_text() or head.poll() is not None, 60)
        assert head.poll() is None, log.read_text()
        url = f"http://127.0.0.1:{dashboard}"
        yield Cluster(url, {**environment, "RAY_ADDRESS": url, "RAY_USAGE_STATS_ENABLED": "0"})
    finally:
        ended = [process for process in psutil.process_iter() if _belongs(process, head.pid, folder)]
        for process in ended:
            process.kill()
        head.wait()
        _wait_for(lambda: not any(_runs(process) for process in ended))
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def job(
    tmp_path: Path, linear_model: Callable[..., Path], vectors: Callable[..., Path]
) -> Callable[..., list[str]]:
    """A folder to ship with a model, data and hooks; the arguments for a job of these."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    linear_model(name="shipped/linear.onnx")
    vectors(rows=ROWS, row_group_rows=20, name="data/v.parquet")
    (folder / "hooks.py").write_text(textwrap.dedent(_HOOKS.format(folder=str(tmp_path))))

    def arguments(*options: str, ships: bool = True) -> list[str]:
        where = Path() if ships else folder
        command = [
            "score",
            str(where / "linear.onnx"),
            str(tmp_path / "data" / "v.parquet"),
            str(tmp_path / "out"),
        ]
        command += ["--keep", "id", "--actors", "1", "--batch-size", "20", "--shard-bytes", "480", *options]
        return [*(["--working-dir", str(folder)] if ships else []), "--", *command]

    return arguments


def _wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline_s = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"it did not happen in {seconds} s"
        time.sleep(0.05)
    return found


def _read_until(stream: IO[str], words: str) -> str:
    """Reads lines until one has the words."""
    read = ""
    while words not in read:
        line = stream.readline()
        assert line, read
        read += line
    return read


def _commits(out: Path) -> int:
    return len(list(out.glob("_trtfleet/g*/commits/*.json")))


def _driver(id_: str) -> psutil.Process | None:
    """The process that a job runs on the head."""
    for process in psutil.process_iter():
        try:
            if "trtfleet.jobs.submitted" in process.cmdline() and id_ in process.environ().get(
                "RAY_JOB_CONFIG_JSON_ENV_VAR", ""
            ):
                return process
        except psutil.Error:
            continue
    return None


def _ids(out: Path) -> list[int]:
    found = pq.read_table(out)["id"].to_pylist()
    assert isinstance(found, list)
    return found


@pytest.mark.ray
class TestOnACluster:
    def test_ships_runs_and_gives_the_result(
        self, cluster: Cluster, job: Callable[..., list[str]], tmp_path: Path
    ) -> None:
        arguments = job("--preprocess", "hooks:tell", "--columns", "x", "--json")
        ran = cluster.submit(*arguments)
        assert ran.returncode == 0, ran.stderr
        assert json.loads(ran.stdout)["rows"] == ROWS
        assert "Running entrypoint" in ran.stderr
        assert f"1 files, {ROWS} rows" in ran.stderr
        assert _ids(tmp_path / "out") == list(range(ROWS))
        assert "py_modules_files" in (tmp_path / "package").read_text()
        assert "working_dir_files" in (tmp_path / "cwd").read_text()

        again = cluster.submit("--resume", *arguments)
        assert again.returncode == 0, again.stderr
        assert "has succeeded" in again.stderr
        assert again.stdout == ran.stdout

        nameless = cluster.submit("--resume")
        assert nameless.returncode == 2
        assert f"had the working folder {tmp_path / 'shipped'}" in nameless.stderr

    def test_the_exit_code_is_the_jobs(self, cluster: Cluster, job: Callable[..., list[str]]) -> None:
        ran = cluster.submit(*job("--input", "x=nothing"))
        assert ran.returncode == 6
        assert "column nothing, which the data lacks" in ran.stderr
        assert "ended with exit code 6" in ran.stderr
        assert ran.stdout == ""

    def test_a_job_that_is_stopped_and_then_lost_goes_on(
        self, cluster: Cluster, job: Callable[..., list[str]], tmp_path: Path
    ) -> None:
        arguments, out = job("--preprocess", "hooks:slow", "--columns", "x", "--json"), tmp_path / "out"
        with cluster.start(*arguments) as process:
            assert process.stderr
            said = _read_until(process.stderr, "backend onnxruntime-cpu")
            _wait_for(lambda: _commits(out))
            process.send_signal(signal.SIGINT)
            said += _read_until(process.stderr, "Ctrl-C again within 10 seconds stops it")
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=60)
        assert process.returncode == 130, stderr
        assert "stopping job" in stderr
        assert not (out / "_SUCCESS").exists()

        begun = cluster.submit("--resume", "--no-wait", *arguments)
        name, _, attempt = begun.stdout.strip().rpartition("-")
        assert (begun.returncode, attempt) == (0, "2"), begun.stderr
        assert f"job {name}-1 ended as STOPPED; starting {name}-2" in begun.stderr
        twice = cluster.submit(*arguments)
        assert twice.returncode == 9
        assert f"job {name}-2 runs this command already" in twice.stderr

        with cluster.start("--resume", *arguments) as process:
            assert process.stderr
            said = _read_until(process.stderr, "backend onnxruntime-cpu")
            assert f"following job {name}-2" in said
            _wait_for(lambda: _driver(f"{name}-2")).kill()
            _, stderr = process.communicate(timeout=60)
        assert process.returncode == 137
        assert "ended with exit code 137" in stderr

        committed = [json.loads(path.read_text())["rows"] for path in out.glob("_trtfleet/g*/commits/*.json")]
        (tmp_path / "go").touch()
        resumed = cluster.submit("--resume", *arguments)
        assert resumed.returncode == 0, resumed.stderr
        assert f"job {name}-2 ended as FAILED; starting {name}-3" in resumed.stderr
        assert _ids(out) == list(range(ROWS))
        assert 0 < json.loads(resumed.stdout)["rows_scored"] <= ROWS - sum(committed) < ROWS

    def test_ray_job_submit_works_as_well(
        self, cluster: Cluster, job: Callable[..., list[str]], tmp_path: Path
    ) -> None:
        command = [*_RAY, "job", "submit", "--address", cluster.url, "--", "trtfleet", *job(ships=False)[1:]]
        ran = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=90)
        assert ran.returncode == 0, ran.stderr
        assert _ids(tmp_path / "out") == list(range(ROWS))

    @pytest.mark.parametrize(
        "wrong", [{"RAY_AUTH_TOKEN": "f" * 32}, {"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": ""}]
    )
    def test_without_the_token(
        self,
        cluster: Cluster,
        job: Callable[..., list[str]],
        wrong: dict[str, str],
        tmp_path: Path,
    ) -> None:
        # Without a home folder of its own, the client would find the token that Ray keeps there.
        ran = cluster.submit(*job(), **wrong, HOME=str(tmp_path))
        assert ran.returncode == 9
        assert "the token is missing or wrong" in ran.stderr
        assert "RAY_AUTH_TOKEN" in ran.stderr
        assert TOKEN not in ran.stderr


class TestPlaces:
    def test_relative_paths_need_a_folder_to_ship(self) -> None:
        with pytest.raises(UsageError, match=r"m\.onnx is a relative path") as caught:
            check_places(Places(reads=("m.onnx",)), None)
        assert "--working-dir" in caught.value.hint

    def test_relative_paths_are_looked_for_there(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "a.parquet").touch()
        check_places(Places(reads=("data/*.parquet", "data", "/elsewhere")), str(tmp_path))
        with pytest.raises(UsageError, match=r"more/\*.parquet is not in"):
            check_places(Places(reads=("more/*.parquet",)), str(tmp_path))

    def test_data_is_not_shipped(self, tmp_path: Path) -> None:
        check_places(Places(data=("/mnt/data/*.parquet", "s3://b/data")), None)
        (tmp_path / "a.parquet").touch()
        with pytest.raises(UsageError, match="data is not shipped") as caught:
            check_places(Places(data=("a.parquet",)), str(tmp_path))
        assert "s3://" in caught.value.hint

    def test_an_output_must_outlive_the_job(self, tmp_path: Path) -> None:
        check_places(Places(writes=("/mnt/out", "s3://b/out")), None)
        with pytest.raises(UsageError, match="in a folder of the job that goes when it ends"):
            check_places(Places(writes=("out",)), str(tmp_path))

    def test_local_files_are_noted(self, tmp_path: Path) -> None:
        (tmp_path / "m.onnx").touch()
        said: list[str] = []
        warn_of_local_files(Places(reads=(f"{tmp_path}/m.onnx", "/no/such"), data=("s3://b/d",)), said.append)
        assert len(said) == 1
        assert f"{tmp_path}/m.onnx are the nodes' own files" in said[0]
        warn_of_local_files(Places(reads=("m.onnx",), writes=("s3://b/out",)), said.append)
        assert len(said) == 1


class TestCommandLine:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ([], "there is no command to submit"),
            (["cache", "list"], "'cache' cannot be submitted"),
            (["--", "score", "m.onnx", "d", "/out", "--no-such-option"], "No such option"),
            (["score", "m.onnx", "d", "/out", "--address", "h:1"], "own --address is not allowed"),
            (["score", "m.onnx", "/d", "/out"], "m.onnx is a relative path"),
            (["score", "/m.onnx", "/d", "/out", "--emit", "best"], "emit 'best' is not known"),
            (["score", "/m.onnx", "/d", "d", "/out"], "d is a relative path, and data is not shipped"),
            (["score", "--spec", "job.yaml"], "job.yaml is a relative path"),
            (["score", "/m.onnx", "/d", "/out", "--trace", "t.json"], "t.json is a relative path"),
            (["calibrate", "/m.onnx", "/d", "-o", "t.json"], "t.json is a relative path"),
            (["sweep", "/m.onnx", "-o", "out"], "out is a relative path"),
            (["--working-dir", "/no/such/folder", "--", "score", "/m", "/d", "/o"], "is no folder"),
        ],
    )
    def test_what_is_wrong_is_said_before_anything_is_sent(
        self, command: Callable[..., Any], arguments: list[str], says: str
    ) -> None:
        ran = command("submit", "--address", "http://127.0.0.1:1", *arguments)
        assert (ran.code, ran.stdout) == (2, "")
        assert says in ran.stderr

    def test_where_no_cluster_is(self, command: Callable[..., Any]) -> None:
        ran = command("submit", "--address", "http://127.0.0.1:1", "score", "/m.onnx", "/d", "/out")
        assert ran.code == 9
        assert "nothing answers at http://127.0.0.1:1" in ran.stderr

    def test_the_id_follows_from_the_command(self) -> None:
        ids = {
            SubmitSpec(command=("score", *rest), wait=wait).name
            for rest in ("ab", "ac")
            for wait in (True, False)
        }
        assert len(ids) == 2
        assert all(re.fullmatch("trtfleet-score-[0-9a-f]{12}", id_) for id_ in ids)


class TestOnTheHead:
    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "trtfleet.jobs.submitted", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=os.sep)

    def test_another_version_than_was_submitted(self) -> None:
        ran = self._run("0.0.1", "score", "--help")
        assert ran.returncode == 9
        assert "error: version 0.0.1 of trtfleet was submitted" in ran.stderr

    def test_results_are_marked_in_the_log(self) -> None:
        import trtfleet

        ran = self._run(trtfleet.__version__, "score", "--help")
        assert ran.returncode == 0, ran.stderr
        lines = ran.stdout.splitlines()
        assert lines[0] == f"{submitted.RESULT_MARK}Usage: trtfleet score [OPTIONS] [MODEL] [DATA]... [OUT]"
        assert all(line.startswith(submitted.RESULT_MARK) for line in lines)

    def test_what_the_package_needs(self) -> None:
        submitted.check_needs(["pyarrow>=20", "ray[default]>=2.60", "", "numpy"])
        with pytest.raises(ClusterError) as caught:
            submitted.check_needs(["pyarrow>=20", "no-such-thing[x]>=1", "numpy>=99"])
        assert "no-such-thing>=1 (there: none)" in caught.value.fact
        assert re.search(r"numpy>=99 \(there: \d", caught.value.fact)
        assert "pyarrow" not in caught.value.fact
