"""Six actors on three nodes with two classes of GPUs: one build a class, one copy a node."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from trtfleet.trt_actors.cache.store import EngineCache

pytestmark = pytest.mark.ray

NODES = {"n1": "l4", "n2": "l4", "n3": "h200"}
GPUS = 2

DRIVER = """
import json, os, sys
import ray
from ray.cluster_utils import Cluster

url, folder = sys.argv[1:]
nodes = json.loads(os.environ["NODES"])


class Obtainer:
    def __init__(self, node, kind):
        self.node, self.kind = node, kind

    def tell(self, text):
        handle = os.open(os.path.join(folder, "told"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, f"{self.kind} {text}\\n".encode())
        os.close(handle)

    def ready(self):
        return ray.get_runtime_context().get_node_id(), ray.get_gpu_ids()

    def build(self):
        from trtfleet.trt_actors.building.builder import build_plan
        from trtfleet.trt_actors.building.flavour import find_flavour
        from trtfleet.trt_actors.building.options import BuildOptions
        from trtfleet.trt_actors.cache.obtain import Built

        self.tell("builds")
        with open(os.path.join(folder, "model.onnx"), "rb") as file:
            built = build_plan(find_flavour("tensorrt-rtx"), file.read(), BuildOptions(), [])
        return Built(files={"a.plan": built.plan, "layout.json": json.dumps([self.kind]).encode()})

    def obtain(self):
        from trtfleet.trt_actors.cache.identity import Identity
        from trtfleet.trt_actors.cache.obtain import obtain
        from trtfleet.trt_actors.cache.store import EngineCache

        identity = Identity(
            model="m", flavour="tensorrt-rtx", version="1", compute_capability="any", gpu=self.kind
        )
        staging = os.path.join(folder, self.node)
        staged = obtain(EngineCache(url), identity, self.build, staging=staging)
        layout = json.loads(staged.read("layout.json"))
        return {
            "node": self.node, "kind": self.kind, "how": staged.how, "layout": layout,
            "key": staged.entry.key, "plan_bytes": len(staged.read("a.plan")),
            "is_staged": staged.path("a.plan").startswith(staging + os.sep),
        }


cluster = Cluster()
# Nobody reads logs through Ray here, and no node is to be added.
without = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
for node in nodes:
    cluster.add_node(num_cpus=2, num_gpus=GPUS, resources={node: GPUS}, **without)
cluster.wait_for_nodes()
ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
try:
    actor = ray.remote(num_gpus=1, num_cpus=0)(Obtainer)
    actors = [
        actor.options(resources={node: 1}).remote(node, kind)
        for node, kind in nodes.items() for _ in range(GPUS)
    ]
    places = ray.get([a.ready.remote() for a in actors])
    results = ray.get([a.obtain.remote() for a in actors])
finally:
    ray.shutdown()
    cluster.shutdown()
print("RESULT", json.dumps({"places": places, "results": results}))
"""


@pytest.fixture
def run(
    without_ray: dict[str, str], alive: Callable[[int], list[Any]], tmp_path: Path
) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Runs the driver with a Ray of its own on a cache, and cleans up after it."""
    # Ray's sockets live below this folder, and their names must be short.
    short = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2}
    environment = {**without_ray, **token, "RAY_TMPDIR": short, "NODES": json.dumps(NODES)}
    started: list[subprocess.Popen[str]] = []

    def run(url: str) -> dict[str, Any]:
        command = [sys.executable, "-c", DRIVER.replace("GPUS", str(GPUS)), url, str(tmp_path)]
        driver = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(driver)
        stdout, stderr = driver.communicate(timeout=180)
        assert driver.returncode == 0, stderr
        (line,) = (line for line in stdout.splitlines() if line.startswith("RESULT "))
        found = json.loads(line.removeprefix("RESULT "))
        assert isinstance(found, dict)
        return found

    yield run
    for driver in started:
        for process in alive(driver.pid):
            process.kill()
        driver.wait()
    shutil.rmtree(short, ignore_errors=True)


def test_one_build_a_class_and_one_copy_a_node(
    run: Callable[[str], dict[str, Any]], bucket: str, tmp_path: Path, linear_model: Callable[..., Path]
) -> None:
    linear_model(batch=8, name="model.onnx")
    found = run(bucket)
    results = found["results"]
    # The actors were where they were meant to be, each with a GPU of its own.
    assert len({node for node, _ in found["places"]}) == len(NODES)
    assert len({(node, *gpus) for node, gpus in found["places"]}) == len(results) == len(NODES) * GPUS
    # One build a class.
    assert sorted((tmp_path / "told").read_text().splitlines()) == ["h200 builds", "l4 builds"]
    assert sorted(result["kind"] for result in results if result["how"] == "built") == ["h200", "l4"]
    # All have verified plans of their own class, staged on their own node.
    entries = {entry.identity.gpu: entry for entry in EngineCache(bucket).entries()}
    assert set(entries) == set(NODES.values())
    for result in results:
        entry = entries[result["kind"]]
        assert result["layout"] == [result["kind"]]
        assert result["key"] == entry.key
        assert result["plan_bytes"] == entry.file("a.plan").size_bytes > 100
        assert result["is_staged"]
    for node, kind in NODES.items():
        copies = {path.name for path in (tmp_path / node).iterdir() if path.suffix != ".lock"}
        assert copies == {stored.sha256 for stored in entries[kind].files.values()}
