"""Actors that die, are killed again and again, or freeze."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.ray

Check = Callable[[Path], None]


def _kept(out: Path) -> dict[Path, bytes]:
    """Every file of an output but the parts of attempts, and what no listing shows.

    A process that ends while it creates ``name`` leaves ``name#1``.
    """
    files = (path for path in out.rglob("*") if path.is_file() and path.parent.name != "parts")
    return {path: path.read_bytes() for path in files if "#" not in path.name}


def test_killed_actors_are_replaced(job: Any, check: Check, figures: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = job.score(out, "--preprocess", "hooks:die_thrice")
    check(out)
    assert summary["failures"] == 3
    # The replacement of the last one may come too late to be needed.
    assert summary["actors"] in (4, 5)
    assert summary["bad_rows"] == 0
    fault = "three actors are killed"
    figures("processes", fault=fault, runs=1, resumed=0, lost=0, duplicated=0)


def test_a_row_that_always_kills_ends_the_job(job: Any, check: Check, figures: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    start_s = time.monotonic()
    driver = job.start(out, "--preprocess", "hooks:die_on_a_row")
    stdout, stderr = driver.communicate(timeout=90)
    assert time.monotonic() - start_s < 60
    assert driver.returncode == 14
    assert stdout == ""
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "actors died" in errors[0]
    assert "hint: " in stderr
    assert "Traceback" not in stderr
    assert not (out / "_SUCCESS").exists()
    committed = job.commits(out)
    assert 0 < committed < job.shards

    (job.folder / "mended").touch()
    summary = job.score(out, "--preprocess", "hooks:die_on_a_row")
    assert summary["rows_scored"] == job.rows - committed * 50
    check(out)
    fault = "a row kills every actor, until the hook is mended"
    figures("processes", fault=fault, runs=1, resumed=1, lost=0, duplicated=0)


def test_a_frozen_actor_is_a_straggler(job: Any, check: Check, figures: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    driver = job.start(out, "--preprocess", "hooks:tell_and_wait")
    pid_file = job.folder / "pid"
    job.wait_for(pid_file.exists)
    frozen = psutil.Process(int(pid_file.read_text()))
    os.kill(frozen.pid, signal.SIGSTOP)
    try:
        summary = job.succeeded(driver)
        check(out)
        assert summary["rows"] == job.rows
        before = _kept(out)
        # Its twin committed long ago: whatever it still does must change no result.
        if frozen.is_running():
            os.kill(frozen.pid, signal.SIGCONT)
        job.wait_for(lambda: not frozen.is_running() or frozen.status() == psutil.STATUS_ZOMBIE, 20)
    finally:
        if frozen.is_running():
            frozen.kill()
    assert _kept(out) == before
    # It may have left a part that nothing refers to; the next command, which has nothing to do, sweeps it.
    assert job.score(out, "--preprocess", "hooks:tell_and_wait")["already_finished"]
    check(out)
    assert _kept(out) == before
    fault = "an actor is frozen, and wakes when all is done"
    figures("processes", fault=fault, runs=1, resumed=0, lost=0, duplicated=0)
