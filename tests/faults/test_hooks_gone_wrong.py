"""Hooks that hang, crash, exit, leak or lie, and an engine that crashes: in real actors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ray

Check = Callable[[Path], None]

_HOOKS = '''
import ctypes, os, pathlib, signal, threading, time

HERE = pathlib.Path(__file__).parent
KEPT, HANGS = [], []


def first_time(rows, row):
    """Whether these rows hold that one, and no process asked before."""
    if row not in rows["id"].to_pylist():
        return False
    try:
        os.close(os.open(HERE / f"met-{row}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def end(batch):
    if first_time(batch, 120):
        os._exit(0)
    if first_time(batch, 560):
        raise SystemExit(3)
    if first_time(batch, 1010):
        # As the engine's own code would: in the thread that runs it.
        (engine,) = [thread for thread in threading.enumerate() if thread.name == "engine"]
        signal.pthread_kill(engine.ident, signal.SIGSEGV)
        time.sleep(3600)
    return batch


def claim():
    """The next of three ways to hang, one a process; None when all were met."""
    for way in range(3) if not HANGS else ():
        try:
            os.close(os.open(HERE / f"way-{way}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        HANGS.append(way)
        return way


def hang_before(batch):
    way = claim()
    if way == 0:
        time.sleep(3600)
    if way == 1:
        # Never gives Python's lock back.
        ctypes.PyDLL(None).sleep(3600)
    return batch


def hang_behind(outputs, rows):
    if 2 in HANGS:
        time.sleep(3600)
    return outputs


def mended():
    return (HERE / "mended").exists()


def hang(batch):
    while 300 in batch["id"].to_pylist() and not mended():
        time.sleep(1)
    return batch


def leak(batch):
    KEPT.append(bytearray(b"x") * (40 << 20))
    time.sleep(0.2)
    return batch


def too_few(batch):
    return batch.slice(0, batch.num_rows - 1) if 300 in batch["id"].to_pylist() and not mended() else batch


def too_many(outputs, rows):
    return outputs if mended() else {name: [*values, values[0]] for name, values in outputs.items()}
'''


@pytest.fixture
def job(job: Any) -> Any:
    """The job, with these hooks."""
    (job.folder / "wrong.py").write_text(_HOOKS)
    return job


def _failures(out: Path) -> list[str]:
    (run,) = out.glob("_trtfleet/g0001/runs/*.json")
    return [failure["reason"] for failure in json.loads(run.read_text())["failures"]]


def test_a_process_that_ends_is_replaced(job: Any, check: Check, figures: Any, tmp_path: Path) -> None:
    summary = job.score(out := tmp_path / "out", "--preprocess", "wrong:end")
    check(out)
    assert (summary["failures"], summary["bad_rows"]) == (3, 0)
    for fault in ("os._exit in a hook", "sys.exit in a hook", "a segmentation fault in the engine's thread"):
        figures("processes", fault=fault, runs=1, resumed=0, lost=0, duplicated=0)


def test_a_call_that_does_not_return_costs_an_actor(
    job: Any, check: Check, figures: Any, tmp_path: Path
) -> None:
    # Each process hangs once, in another way; with one actor nobody else does its shards meanwhile.
    hooks = ("--preprocess", "wrong:hang_before", "--postprocess", "wrong:hang_behind")
    summary = job.score(out := tmp_path / "out", *hooks, "--batch-timeout", "1", "--actors", "1")
    check(out)
    assert (summary["failures"], summary["bad_rows"]) == (3, 0)
    reasons = _failures(out)
    assert "the preprocess hook wrong:hang_before took more than 1 s for one batch" in reasons
    assert "the postprocess hook wrong:hang_behind took more than 1 s for one batch" in reasons
    for fault in (
        "a preprocess hook does not return",
        "a postprocess hook does not return",
        "a hook never gives Python's lock back",
    ):
        figures("processes", fault=fault, runs=1, resumed=0, lost=0, duplicated=0)


def test_a_hook_that_never_returns_ends_the_job_with_its_name(job: Any, check: Check, tmp_path: Path) -> None:
    out = tmp_path / "out"
    driver = job.start(out, "--preprocess", "wrong:hang", "--batch-timeout", "0.5")
    stdout, stderr = driver.communicate(timeout=90)
    assert (driver.returncode, stdout) == (14, "")
    (error,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert "5 actors died with it, 4 allowed" in error
    assert "the preprocess hook wrong:hang took more than 0.5 s for one batch" in error
    assert "Traceback" not in stderr
    assert 0 < job.commits(out) < job.shards
    (job.folder / "mended").touch()
    job.score(out, "--preprocess", "wrong:hang")
    check(out)


def test_an_actor_that_grows_from_batch_to_batch_is_renewed(
    job: Any, check: Check, figures: Any, tmp_path: Path
) -> None:
    limit_bytes = 400 << 20
    leaking = ("--preprocess", "wrong:leak", "--memory-per-actor", str(limit_bytes), "--actors", "1")
    summary = job.score(out := tmp_path / "out", *leaking, "--batch-timeout", "2")
    check(out)
    # A gigabyte in all, of which each actor held a part.
    assert summary["failures"] >= 2
    assert all("bytes of memory, 419,430,400 allowed" in reason for reason in _failures(out))
    figures("processes", fault="an actor leaks up to its limit", runs=1, resumed=0, lost=0, duplicated=0)


@pytest.mark.parametrize(
    ("option", "hook", "words"),
    [
        ("--preprocess", "too_few", "the preprocess hook returned 49 rows in its batch, got 50"),
        ("--postprocess", "too_many", "the postprocess hook returned 51 rows in y, got 50"),
    ],
)
def test_a_hook_that_returns_another_number_of_rows_is_named(
    job: Any, check: Check, tmp_path: Path, option: str, hook: str, words: str
) -> None:
    out = tmp_path / "out"
    driver = job.start(out, option, f"wrong:{hook}")
    stdout, stderr = driver.communicate(timeout=90)
    assert (driver.returncode, stdout) == (12, "")
    assert words in stderr
    assert "hint: a hook keeps every row; use --filter to drop rows" in stderr
    assert not (out / "_SUCCESS").exists()
    (job.folder / "mended").touch()
    job.score(out, option, f"wrong:{hook}")
    check(out)
