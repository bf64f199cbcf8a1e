"""Fixtures that several folders of tests share."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper

REPOSITORY = Path(__file__).resolve().parent.parent

# Files that take longest, about in order: several processes begin with them, so that none is left
# with one when the others have nothing to do any more.
LONG_FILES = (
    "models/test_partitions.py",
    "jobs/test_submit.py",
    "faults/test_kill_resume.py",
    "benchmarks/test_score_gpu.py",
    "faults/test_many_drivers.py",
    "jobs/test_score.py",
    "benchmarks/test_calibrate_vs_peers.py",
    "jobs/test_calibrate.py",
    "benchmarks/test_score_vs_peers.py",
    "jobs/test_sweep_processes.py",
    "faults/test_elastic.py",
    "models/test_int8.py",
    "faults/test_actor_deaths.py",
    "faults/test_crash_points.py",
    "faults/test_hooks_gone_wrong.py",
    "faults/test_soak.py",
    "jobs/test_score_s3.py",
    "security/test_secrets.py",
    "jobs/test_cluster.py",
    "jobs/test_example_mobilenet.py",
    "trt_actors/cache/test_obtain_ray.py",
)

# How long an example takes says more about the machine's other work than about the code.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option for what is left out otherwise."""
    parser.addoption("--slow", action="store_true", help="also run the tests that are marked as slow")


def pytest_configure(config: pytest.Config) -> None:
    """Has Ray's token made before there are workers, which would each make one and not know the other's."""
    token = Path.home() / ".ray" / "auth_token"
    if config.getoption("numprocesses", None) and not token.exists():
        command = [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips slow tests unless they are asked for; several processes get the long files first."""
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow, runs with --slow"))
    if hasattr(config, "workerinput"):
        places = {REPOSITORY / "tests" / name: place for place, name in enumerate(LONG_FILES)}
        items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def ray_session(s3_environment: dict[str, str]) -> Iterator[None]:
    """One Ray cluster in this process for all tests that score; ``connect`` finds and keeps it.

    Its actors know where the S3 server is: they get the environment in which Ray is started.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(
        "local",
        num_cpus=4,
        object_store_memory=100_000_000,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _system_config={"metrics_report_interval_ms": 1000},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_environment() -> Iterator[dict[str, str]]:
    """An S3 server in this process; the variables that point to it, set for the session."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in variables.items():
            patch.setenv(name, value)
        yield variables
    server.stop()


@pytest.fixture
def bucket(s3_environment: dict[str, str]) -> str:
    """The ``s3://`` URL of a new, empty bucket."""
    import boto3

    name = f"bucket-{secrets.token_hex(6)}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest) -> str:
    """An empty place for objects, once a folder and once a bucket; its path or URL."""
    if request.param == "s3":
        return str(request.getfixturevalue("bucket"))
    folder = request.getfixturevalue("tmp_path") / "place"
    folder.mkdir()
    return str(folder)


def _without_ray() -> dict[str, str]:
    """This process's environment without anything that tells Ray what to do."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "RAY_USAGE_STATS_ENABLED": "0"}


def _alive(session: int) -> list[psutil.Process]:
    """The living processes of one session of the operating system."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


@dataclass(frozen=True)
class RayHead:
    """A Ray cluster in processes of its own, with token authentication.

    Attributes:
        address: Of its head node.
        token: What it asks for.
    """

    address: str
    token: str

    @property
    def environment(self) -> dict[str, str]:
        """For processes that are to use the cluster."""
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        return {**_without_ray(), **auth, "RAY_ADDRESS": self.address}


@pytest.fixture
def without_ray() -> dict[str, str]:
    """The environment of a process that is told nothing about Ray."""
    return _without_ray()


@pytest.fixture
def alive() -> Callable[[int], list[psutil.Process]]:
    """Finds the living processes of a session of the operating system."""
    return _alive


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    """One running cluster of four logical CPUs, started as ``ray start --head`` does."""
    token = "0123456789abcdef" * 2
    # Ray's sockets live below this folder, and their names must be short.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    log = folder / "head.log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        client_port = free.getsockname()[1]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0"]
    command += ["--num-cpus=4", "--object-store-memory=100000000", f"--temp-dir={folder / 'r'}"]
    # Any free ports: another worker's cluster would start looking at the same one.
    command += ["--min-worker-port=0", "--max-worker-port=0"]
    command += [f"--ray-client-server-port={client_port}", "--dashboard-agent-listen-port=0"]
    command += ["--include-dashboard=false", "--include-log-monitor=false", "--disable-usage-stats"]
    command += ["--no-monitor"]
    environment = {**_without_ray(), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    with log.open("wb") as sink:
        head = subprocess.Popen(
            command, env=environment, stdout=sink, stderr=sink, start_new_session=True, cwd=folder
        )
    try:
        deadline_s = time.monotonic() + 60
        while not (found := re.search(r"--address='([\w.:\[\]]+)'", log.read_text())):
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.1)
        yield RayHead(found[1], token)
    finally:
        for process in _alive(head.pid):
            process.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def digits() -> tuple[Path, Path]:
    """The demo's model and dataset."""
    folder = REPOSITORY / "jobs" / "demo_data"
    return folder / "digits.onnx", folder / "digits.parquet"


@pytest.fixture
def linear_model(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model ``y = x @ W`` with x: float32[N, features], y: float32[N, outputs] and W known."""

    def write(features: int = 4, outputs: int = 2, batch: int | str = "N", name: str = "linear.onnx") -> Path:
        weights = np.arange(features * outputs, dtype=np.float32).reshape(features, outputs) / 8
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
            "linear",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, features])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, outputs])],
            [numpy_helper.from_array(weights, "w")],
        )
        opset = [helper.make_opsetid("", 17)]
        path = tmp_path / name
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
        return path

    return write


@pytest.fixture
def vectors(tmp_path: Path) -> Callable[..., Path]:
    """Writes a Parquet file with ``id`` int64 and ``x`` fixed_size_list<float32>[features], seeded."""

    def write(
        rows: int = 1000, features: int = 4, row_group_rows: int = 100, name: str = "vectors.parquet"
    ) -> Path:
        values = np.random.default_rng(rows).random((rows, features), dtype=np.float32)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), features)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"id": np.arange(rows), "x": lists}), path, row_group_size=row_group_rows)
        return path

    return write
