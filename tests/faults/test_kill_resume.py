"""Drivers killed with SIGKILL, and the same command again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from trtfleet.tests.faults.nodes import is_actor

pytestmark = pytest.mark.ray

Check = Callable[[Path], None]

_DIES_IN_STORAGE = """
import os, signal
from trtfleet.datasets.storage import Storage
from trtfleet.jobs.cli import main

method, part = {method!r}, {part!r}
original = getattr(Storage, method)

def watched(self, first, *rest, **named):
    if part in str(first):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, first, *rest, **named)

setattr(Storage, method, watched)
main()
"""

# Calls on the output in the order in which a driver makes them once every shard is committed.
_MERGE_STEPS = [
    ("open_output", "merged/"),
    ("publish", "merged/"),
    ("put_new", "success.json"),
    ("put", "_SUCCESS"),
    ("delete", "/parts/"),
]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_driver_killed_while_scoring(
    job: Any, check: Check, figures: Any, tmp_path: Path, share: float
) -> None:
    out = tmp_path / "out"
    driver = job.start(out, "--preprocess", "hooks:slow")
    job.wait_for(lambda: job.commits(out) > share * job.shards)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    committed = job.commits(out)
    assert committed < job.shards
    assert not job.finals(out)
    assert not (out / "_SUCCESS").exists()
    summary = job.score(out, "--preprocess", "hooks:slow")
    check(out)
    # The dead driver's actors may have committed a little more before Ray ended them, never less.
    assert summary["rows_scored"] <= job.rows - committed * 50
    assert summary["rows"] == job.rows
    fault = "the command is killed while it scores"
    figures("processes", fault=fault, runs=1, resumed=1, lost=0, duplicated=0)


def test_a_driver_killed_at_every_step_of_the_merge(
    job: Any, check: Check, figures: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for method, part in _MERGE_STEPS:
        driver = job.start(out, driver=_DIES_IN_STORAGE.format(method=method, part=part))
        _, stderr = driver.communicate(timeout=60)
        assert driver.returncode == -signal.SIGKILL, (method, stderr)
        assert job.commits(out) == job.shards, method
        assert not (out / "_SUCCESS").exists() or job.finals(out), method
    summary = job.score(out)
    assert (summary["rows"], summary["rows_scored"]) == (job.rows, 0)
    check(out)
    fault, runs = "the command is killed while it merges", len(_MERGE_STEPS)
    figures("processes", fault=fault, runs=runs, resumed=runs, lost=0, duplicated=0)


@pytest.mark.parametrize("with_ray", [False, True], ids=["driver", "driver-and-ray"])
def test_an_embedded_cluster_is_killed(
    job: Any,
    check: Check,
    figures: Any,
    tmp_path: Path,
    without_ray: dict[str, str],
    with_ray: bool,
    alive: Any,
) -> None:
    out = tmp_path / "out"
    options = ("--preprocess", "hooks:slow")
    driver = job.start(out, *options, environment=without_ray, new_session=True)
    try:
        job.wait_for(lambda: job.commits(out) > 2)
        everything: list[psutil.Process] = alive(driver.pid)
        assert sum(map(is_actor, everything)) == 2
        for process in everything if with_ray else everything[:0]:
            process.kill()
        driver.kill()
        driver.wait()
        # Nobody is left to stop the actors, so they must end by themselves.
        job.wait_for(lambda: not any(map(is_actor, alive(driver.pid))), 40)
    finally:
        for process in alive(driver.pid):
            os.kill(process.pid, signal.SIGKILL)
    assert not (out / "_SUCCESS").exists()
    job.score(out, *options)
    check(out)
    fault = f"the command {'and its Ray are' if with_ray else 'alone is'} killed, on one machine"
    figures("processes", fault=fault, runs=1, resumed=1, lost=0, duplicated=0)
