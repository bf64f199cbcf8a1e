"""``trtfleet cluster`` on a real cluster of several nodes, and how it tells what no machine here has."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trtfleet import __version__
from trtfleet.cluster.nodes import Node
from trtfleet.errors import UsageError
from trtfleet.jobs import cluster_survey
from trtfleet.jobs.cluster_survey import survey
from trtfleet.jobs.cluster_view import ClusterView, NodeView
from trtfleet.jobs.columns_text import in_columns
from trtfleet.jobs.node_report import NodeReport
from trtfleet.trt_actors.cache.batch_sizes import BatchSize, keep_batch_size
from trtfleet.trt_actors.cache.identity import Identity
from trtfleet.trt_actors.cache.store import EngineCache
from trtfleet.trt_actors.cache.warmth import CacheIndex, Warmth, gpu_class
from trtfleet.trt_actors.machine import Machine, look
from trtfleet.trt_actors.runtime.libcuda import GpuInfo

H100 = GpuInfo(
    index=0,
    name="NVIDIA H100",
    compute_capability=(9, 0),
    memory_bytes=80 << 30,
    cuda="13.0",
    driver="580.159",
)
L4 = replace(H100, name="NVIDIA L4", compute_capability=(8, 9), memory_bytes=24 << 30)
FLAVOUR = "tensorrt 10.16.0.1"

_DRIVER = """
import json, os, signal, sys
import ray
from ray.cluster_utils import Cluster
from trtfleet.jobs.cluster_survey import survey

stub, cache = sys.argv[1:]
cluster = Cluster()
# Nobody reads logs through Ray here, and no node is to be added.
cluster.add_node(num_cpus=2, include_dashboard=False, include_log_monitor=False, no_monitor=True)
gpus = cluster.add_node(num_cpus=1, num_gpus=2, resources={"accelerator_type:H100": 1})
other = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": stub})
cluster.wait_for_nodes()
ids = {"gpus": gpus.node_id, "other": other.node_id}
frozen = [p.process.pid for kind in gpus.all_processes.values() for p in kind]
try:
    first = survey(cluster.address, cache=cache, timeout_s=150).as_json()
    cluster.remove_node(other)
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    second = survey(cluster.address, cache=cache, timeout_s=3)
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    assert not ray.is_initialized()
finally:
    cluster.shutdown()
print("RESULT", json.dumps({"ids": ids, "first": first, "second": second.as_json(), "lines": second.lines()}))
"""


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What was told of three nodes: two GPUs that only Ray believes in, and a node without trtfleet."""
    from trtfleet.tests.conftest import _alive, _without_ray

    place = tmp_path_factory.mktemp("several")
    stub = place / "old" / "trtfleet"
    stub.mkdir(parents=True)
    missing = "No module named 'trtfleet'"
    (stub / "__init__.py").write_text(f'raise ModuleNotFoundError("{missing}", name="trtfleet")\n')
    # Ray's sockets live below this folder, and their names must be short.
    short = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2}
    driver = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, str(stub.parent), str(place / "cache")],
        cwd=place,
        env={**_without_ray(), **token, "RAY_TMPDIR": short},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = driver.communicate(timeout=220)
        assert driver.returncode == 0, stderr
        (line,) = (line for line in stdout.splitlines() if line.startswith("RESULT "))
        assert not (place / "cache").exists()
        yield json.loads(line.removeprefix("RESULT "))
    finally:
        for process in _alive(driver.pid):
            process.kill()
        driver.wait()
        shutil.rmtree(short, ignore_errors=True)


def by_id(view: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {node["id"]: node for node in view["nodes"]}


@pytest.mark.ray
class TestSeveralNodes:
    def test_a_node_tells_what_a_process_on_it_sees(self, several: dict[str, Any]) -> None:
        first = several["first"]
        assert (first["is_embedded"], len(first["nodes"])) == (False, 3)
        node = by_id(first)[several["ids"]["gpus"]]
        assert (node["cpus"], node["gpus"], node["accelerator_type"]) == (1.0, 2.0, "H100")
        machine = node["report"]["machine"]
        assert machine["trtfleet"] == __version__
        assert machine["backends"]["onnxruntime-cpu"] == ""
        assert 0 < machine["free_bytes"] <= machine["memory_bytes"]
        assert node["differs"] == []

    def test_a_node_without_trtfleet_is_told_and_the_others_answer(self, several: dict[str, Any]) -> None:
        nodes = by_id(several["first"])
        other = nodes.pop(several["ids"]["other"])
        assert other["report"] is None
        assert other["failure"] == "trtfleet is not installed there"
        assert all(node["failure"] == "" for node in nodes.values())

    def test_a_frozen_node_is_a_line_and_not_a_hang(self, several: dict[str, Any]) -> None:
        frozen = by_id(several["second"])[several["ids"]["gpus"]]
        assert frozen["failure"] == "no answer within 3 s"
        assert any("no answer within 3 s" in line for line in several["lines"])

    def test_a_node_that_is_gone_comes_last(self, several: dict[str, Any]) -> None:
        last = several["second"]["nodes"][-1]
        assert (last["id"], last["is_alive"]) == (several["ids"]["other"], False)
        assert last["failure"] == "the node is gone"
        assert several["lines"][0].endswith(": 2 nodes, 3 CPUs, 2 GPUs; 1 did not answer; 1 node left before")


def identity(**changed: Any) -> Identity:
    values: dict[str, Any] = {
        "model": "a" * 64,
        "flavour": "tensorrt",
        "version": "10.16.0.1",
        "compute_capability": "9.0",
        "gpu": "NVIDIA H100",
    }
    return Identity(**{**values, **changed})


@pytest.fixture
def cache(place: str) -> EngineCache:
    """Three engines and a batch size for an H100, one engine for an L4, one for every GPU."""
    store = EngineCache(place)
    store.publish(identity(), {"plan": b"12345"})
    store.publish(identity(network="b" * 64), {"plan": b"1234567"})
    store.publish(identity(version="10.12.0.36"), {"plan": b"old"})
    store.publish(identity(gpu="NVIDIA L4", compute_capability="8.9"), {"plan": b"1"})
    store.publish(identity(flavour="tensorrt-rtx", compute_capability="any", gpu="any"), {"plan": b"12"})
    keep_batch_size(store.objects, BatchSize(identity=identity(flavour="onnxruntime-cuda"), rows=64))
    return store


class TestWarmth:
    def test_what_a_kind_of_gpu_finds(self, cache: EngineCache) -> None:
        index = CacheIndex.read(cache.url)
        assert index.warmth(H100, FLAVOUR) == Warmth(ready=2, ready_bytes=12, others=2, batch_sizes=1)
        assert index.warmth(L4, FLAVOUR) == Warmth(ready=1, ready_bytes=1, others=1)
        assert index.warmth(H100, "") == Warmth(others=4, batch_sizes=1)

    def test_portable_engines_are_there_for_every_gpu(self, cache: EngineCache) -> None:
        rtx = "tensorrt-rtx 10.16.0.1"
        index = CacheIndex.read(cache.url)
        assert (index.warmth(H100, rtx).ready, index.warmth(L4, rtx).ready) == (1, 1)

    def test_a_cache_that_is_not_there_is_empty_and_stays_away(self, tmp_path: Path) -> None:
        index = CacheIndex.read(str(tmp_path / "none"))
        assert (index.engines, index.batch_sizes) == ((), ())
        assert not (tmp_path / "none").exists()


class TestMachine:
    def test_plain_values_and_back(self) -> None:
        machine = replace(look(), gpus=(H100, L4))
        assert Machine.from_json(json.loads(json.dumps(machine.as_json()))) == machine

    def test_another_version_may_know_less_and_more(self) -> None:
        machine = Machine.from_json({"host": "a", "python": "3.14.0", "colour": "grey"})
        assert (machine.host, machine.python, machine.gpus, machine.takes) == ("a", "3.14.0", (), "")

    def test_a_gpu_in_other_words_is_refused(self) -> None:
        with pytest.raises(ValueError, match="a GPU is described by other words"):
            Machine.from_json({"gpus": [{"title": "H100"}]})


def node_view(address: str, *gpus: GpuInfo, **changed: Any) -> NodeView:
    machine = Machine(
        host=address,
        python="3.11.9",
        trtfleet=__version__,
        packages={"ray": "2.60.0", "onnxruntime-gpu": "1.31.1"},
        gpus=gpus,
        flavour=FLAVOUR,
        backends={"tensorrt": "", "onnxruntime-cuda": "", "onnxruntime-cpu": ""},
        takes="tensorrt",
        memory_bytes=256 << 30,
        free_bytes=200 << 30,
    )
    report = NodeReport(machine=machine, warmth={gpu_class(gpu): Warmth(ready=3) for gpu in gpus})
    node = Node(
        id=address * 4,
        address=address,
        cpus=16.0,
        gpus=float(len(gpus)),
        memory_bytes=1 << 37,
        accelerator_type="H100" if gpus else "",
        is_alive=True,
    )
    return replace(NodeView(node=node, report=report), **changed)


def view_of(*nodes: NodeView) -> ClusterView:
    return ClusterView(
        address="10.0.0.1:6379",
        is_embedded=False,
        nodes=nodes,
        classes=cluster_survey._classes(nodes),
        cache="s3://bucket/engines",
        cache_failure="",
        is_cache_shared=True,
    )


class TestLines:
    def test_nodes_and_kinds_of_gpus_are_tables(self) -> None:
        lines = view_of(node_view("10.0.0.1", H100, H100), node_view("10.0.0.2", H100, L4)).lines()
        assert lines[0] == "Ray at 10.0.0.1:6379: 2 nodes, 32 CPUs, 4 GPUs"
        (mixed,) = (line for line in lines if line.startswith("10.0.0.2 "))
        assert "1 NVIDIA H100 (9.0), 1 NVIDIA L4 (8.9)" in mixed
        assert "200.0 GiB of 256.0 GiB" in mixed
        assert mixed.split()[-3:] == ["1.31.1,", "CUDA", "tensorrt"]
        (h100,) = (line for line in lines if line.startswith("NVIDIA H100 (9.0)"))
        assert h100.split()[3:6] == ["H100", "3", "2"]
        assert lines[-1] == "engine cache s3://bucket/engines"

    def test_the_cache_is_told_without_gpus_too(self) -> None:
        view = view_of(node_view("10.0.0.1"))
        assert view.lines()[-2:] == ["no GPU was seen", "engine cache s3://bucket/engines"]
        broken = replace(view, cache_failure="no such bucket")
        assert broken.lines()[-1] == "the cache cannot be read: no such bucket"

    def test_the_cache_with_the_least_counts(self) -> None:
        cold = node_view("10.0.0.2", H100)
        assert cold.report is not None
        cold = replace(cold, report=replace(cold.report, warmth={}))
        (kind,) = view_of(node_view("10.0.0.1", H100), cold).classes
        assert (kind.nodes, kind.gpus, kind.warmth.ready) == (2, 2, 0)

    def test_what_ray_and_a_process_disagree_on_is_said(self) -> None:
        blind = node_view("10.0.0.2")
        assert blind.report is not None
        machine = replace(blind.report.machine, no_gpu="no NVIDIA driver")
        blind = replace(
            blind, node=replace(blind.node, gpus=4.0), report=replace(blind.report, machine=machine)
        )
        lines = view_of(node_view("10.0.0.1", H100), blind).lines()
        said = "Ray gives away 4 GPUs there, a process sees none: no NVIDIA driver"
        assert any(line.endswith(said) for line in lines)

    def test_differences_from_the_driver_are_said(self) -> None:
        here = Machine(python="3.11.9", trtfleet="0.1.0", packages={"ray": "2.60.0", "onnxruntime": "1.32.0"})
        there = replace(here, trtfleet="0.2.0", packages={"ray": "2.60.0", "onnxruntime-gpu": "1.31.1"})
        assert cluster_survey._differences(there, here) == (
            "trtfleet 0.2.0 there, 0.1.0 here",
            "ONNX Runtime 1.31.1 there, 1.32.0 here",
        )
        assert cluster_survey._differences(here, here) == ()

    def test_columns_stand_below_each_other_and_empty_ones_are_left_out(self) -> None:
        rows = [["a", "b", "c"], ["one", "", "2"], ["three"]]
        assert in_columns(rows) == ["a      c", "one    2", "three"]
        assert in_columns([]) == []


@pytest.mark.usefixtures("ray_session")
class TestCommand:
    def test_json(self, command: Callable[..., Any], tmp_path: Path) -> None:
        ran = command("cluster", "--json", "--cache", tmp_path / "cache")
        assert ran.code == 0
        found = json.loads(ran.stdout)
        (node,) = found["nodes"]
        assert node["failure"] == ""
        assert node["report"]["machine"]["takes"] in node["report"]["machine"]["backends"]
        assert (found["cache"], found["is_cache_shared"]) == (str(tmp_path / "cache"), False)
        assert list(tmp_path.iterdir()) == []

    def test_words(self, command: Callable[..., Any], tmp_path: Path) -> None:
        ran = command("cluster", "--cache", tmp_path)
        assert ran.code == 0
        assert ran.stdout.startswith("Ray at ")
        assert "auto takes" in ran.stdout

    def test_a_shared_cache_is_read_once_and_for_all(
        self, s3_environment: dict[str, str], bucket: str
    ) -> None:
        found = survey(cache=f"{bucket}/none")
        assert (found.is_cache_shared, found.cache_failure) == (True, "")
        (view,) = found.nodes
        assert view.report is not None
        assert view.report.cache == f"{bucket}/none"

    def test_no_time_to_answer_is_refused(self) -> None:
        with pytest.raises(UsageError, match="timeout must be above 0 s, got 0"):
            survey(timeout_s=0)
