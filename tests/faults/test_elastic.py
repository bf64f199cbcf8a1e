"""Nodes that are lost while a job runs, and nodes that join it: several nodes on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from trtfleet.tests.faults.nodes import CPUS, Nodes

pytestmark = pytest.mark.ray

Check = Callable[[Path], None]

OPTIONS = ("--actors", "auto", "--cpus-per-actor", str(CPUS))
_HOOK = '''
import os, pathlib, time

HERE = pathlib.Path(__file__).parent


def by_node(batch):
    """Takes as long as its node says; behind a gate, until so many processes of some node are there."""
    (HERE / f"seen-{os.environ['HOOK_NODE']}-{os.getpid()}").touch()
    time.sleep(float(os.environ["HOOK_SECONDS"]))
    gate, deadline_s = HERE / "gate", time.monotonic() + 60
    while gate.exists() and time.monotonic() < deadline_s:
        node, count = gate.read_text().split()
        if len(list(HERE.glob(f"seen-{node}-*"))) >= int(count):
            break
        time.sleep(0.05)
    return batch
'''


@pytest.fixture
def nodes(ray_head: Any, alive: Any, job: Any) -> Iterator[Nodes]:
    """Starts nodes that live as long as the test."""
    (job.folder / "nodes_hook.py").write_text(_HOOK)
    nodes = Nodes(ray_head, alive, job.folder)
    yield nodes
    nodes.close()


def test_a_job_waits_for_its_first_node_if_it_is_told_to_and_grows_with_it(
    job: Any, check: Check, figures: Any, nodes: Nodes, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--preprocess", "nodes_hook:by_node", *OPTIONS)
    refused = job.start(out, *options)
    _, stderr = refused.communicate(timeout=60)
    assert refused.returncode == 9
    assert "an actor wants 5 CPUs, the cluster has 1 node with 4 CPUs" in stderr
    (job.folder / "gate").write_text("early 2")
    driver = job.start(out, *options, "--wait-for-nodes", "100")
    nodes.start(0.0, actors=2)
    summary = job.succeeded(driver)
    check(out)
    # It asked for one, and found that there was room for two.
    assert (summary["actors"], summary["failures"]) == (2, 0)
    fault = "there is no node yet"
    figures("processes", fault=fault, runs=1, resumed=0, lost=0, duplicated=0)


def test_half_of_the_nodes_are_lost_and_another_one_joins(
    job: Any, check: Check, figures: Any, nodes: Nodes, tmp_path: Path
) -> None:
    slow, fast = nodes.start(1.0), nodes.start(0.2)
    out = tmp_path / "out"
    driver = job.start(out, "--preprocess", "nodes_hook:by_node", *OPTIONS)
    job.wait_for(lambda: job.commits(out) >= 3)
    (job.folder / "gate").write_text("late 1")
    nodes.lose(fast)
    assert job.commits(out) < job.shards / 2
    nodes.start(0.2, "late")
    summary = job.succeeded(driver)
    check(out)
    assert slow.poll() is None
    # Two at first, of which one lost its node, and its successor found the new one.
    assert (summary["actors"], summary["failures"]) == (3, 1)
    (run,) = out.glob("_trtfleet/g0001/runs/*.json")
    reasons = [failure["reason"] for failure in json.loads(run.read_text())["failures"]]
    # A successor that was given the lost node before Ray knew of the loss went with it, and was replaced too.
    assert reasons
    assert all("its node" in reason for reason in reasons)
    fault = "one of two nodes is lost, another joins"
    figures("processes", fault=fault, runs=1, resumed=0, lost=0, duplicated=0)
