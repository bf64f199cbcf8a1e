"""A disk that is full: below the output, below a cache, below the folder for temporary files."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trtfleet.errors import CacheError, OutputError, TrtfleetError
from trtfleet.tests.faults.crashing_store import Step, Steps, watched
from trtfleet.tests.faults.nodes import CPUS, Nodes
from trtfleet.tests.faults.protocols import PROTOCOLS, Protocol, miscounted, write_assets
from trtfleet.trt_actors.cache.store import EngineCache

ALL = os.environ.get("TRTFLEET_ALL_CRASH_POINTS") == "1"
_PAGE_BYTES = 4096
_POINTS = 12

Check = Callable[[Path], None]


class Disk:
    """A small file system, which is filled and emptied.

    Args:
        folder: Where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / ".ballast"

    def fill(self, leave_pages: int = 0) -> None:
        """Leaves room for so many pages only; a file or folder takes one at least."""
        with contextlib.suppress(OSError), self._ballast.open("ab", buffering=0) as ballast:
            while (left := os.statvfs(self.folder).f_bavail - leave_pages) > 0:
                ballast.write(bytes(min(left, 64) * _PAGE_BYTES))

    def empty(self) -> None:
        """Frees what was filled."""
        self._ballast.unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        reason = f"no file system can be mounted here: {mounted.stderr.strip()}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    yield Disk(folder)
    # Lazily: what was started here may look into it for a moment yet.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _points(steps: int) -> range:
    """The steps before which the disk is filled, all or some from the first to the last."""
    return range(0, steps, 1 if ALL else max(1, steps // _POINTS))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_full_from_any_step_on(name: str, disk: Disk, tmp_path: Path, figures: Any) -> None:
    assets = tmp_path / "assets"
    assets.mkdir()
    write_assets(assets)
    protocol = PROTOCOLS[name](assets)
    expected, steps = disk.folder / "expected", Steps(str(disk.folder / "expected"))
    protocol.prepare(_new(expected))
    with watched(steps):
        protocol.run(str(expected))
    units, failed, lost, twice = protocol.units(str(expected)), 0, 0, 0
    for point in _points(len(steps.done)):
        place = disk.folder / f"run-{point}"
        protocol.prepare(_new(place))
        error = _failure(protocol, place, disk, point)
        if error is not None:
            failed += 1
            assert isinstance(error, OutputError | CacheError), error
            assert "No space left on device" in error.fact
            assert str(place) in error.fact
            assert error.hint == "free some space there"
        protocol.check(str(place))
        disk.empty()
        protocol.run(str(place))
        assert protocol.result(str(place)) == protocol.result(str(expected)), point
        assert protocol.hidden(str(place)) == protocol.hidden(str(expected)), point
        wrong = miscounted(units, protocol.units(str(place)))
        lost, twice = lost + wrong["lost"], twice + wrong["duplicated"]
        subprocess.run(["rm", "-r", str(place)], check=True)
    assert (lost, twice) == (0, 0)
    # From some step near the end on, nothing more is written.
    assert failed >= len(_points(len(steps.done))) / 3
    figures(
        "processes",
        fault=f"a full disk below {name}",
        runs=len(_points(len(steps.done))),
        resumed=failed,
        lost=lost,
        duplicated=twice,
    )


def _new(folder: Path) -> str:
    folder.mkdir()
    return str(folder)


def _failure(protocol: Protocol, place: Path, disk: Disk, point: int) -> TrtfleetError | None:
    """Runs a protocol that finds the disk full from one step on; its error, if it ends with one."""

    def before(step: Step) -> None:
        if step.number == point:
            disk.fill()

    try:
        with watched(Steps(str(place), before)):
            protocol.run(str(place))
    except TrtfleetError as error:
        return error
    return None


def _told(stderr: str, place: Path) -> str:
    """The one error line of a command that found a disk full."""
    assert "Traceback" not in stderr
    (error,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert "No space left on device" in error
    assert str(place) in error
    assert stderr.splitlines()[-1] == "hint: free some space there"
    return error


@pytest.mark.ray
@pytest.mark.parametrize(
    ("pages", "where"),
    [(30, "parts or commits"), (52, "cannot write .*/merged/")],
    ids=["some", "merge"],
)
def test_a_job_whose_output_does_not_fit(
    job: Any, check: Check, disk: Disk, figures: Any, pages: int, where: str
) -> None:
    out = disk.folder / "out"
    disk.fill(pages)
    driver = job.start(out)
    stdout, stderr = driver.communicate(timeout=90)
    assert (driver.returncode, stdout) == (7, "")
    error = _told(stderr, out)
    committed = job.commits(out)
    if where == "parts or commits":
        assert 0 < committed < job.shards
    else:
        assert committed == job.shards
        assert re.search(where, error)
    assert not job.finals(out)
    disk.empty()
    assert job.commits(out) == committed
    job.score(out)
    check(out)
    figures("processes", fault="a full disk below OUT", runs=1, resumed=1, lost=0, duplicated=0)


@pytest.mark.ray
def test_a_full_folder_for_temporary_files_is_not_needed(
    job: Any, check: Check, disk: Disk, ray_head: Any, alive: Any, tmp_path: Path, figures: Any
) -> None:
    elsewhere = {**ray_head.environment, "TMPDIR": str(disk.folder)}
    nodes = Nodes(SimpleNamespace(address=ray_head.address, environment=elsewhere), alive, tmp_path)
    disk.fill()
    try:
        nodes.start(0.0)
        job.score(out := tmp_path / "out", "--cpus-per-actor", str(CPUS), environment=elsewhere)
    finally:
        nodes.close()
    check(out)
    figures("processes", fault="a full disk below TMPDIR", runs=1, resumed=0, lost=0, duplicated=0)


def test_an_engine_that_does_not_fit_into_the_cache(disk: Disk, tmp_path: Path, figures: Any) -> None:
    write_assets(tmp_path)
    cache = disk.folder / "cache"
    build = [sys.executable, "-c", "from trtfleet.jobs.cli import main; main()", "build", "net.onnx"]
    build += ["--cache", str(cache)]
    disk.fill(3)
    refused = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, timeout=90)
    assert (refused.returncode, refused.stdout) == (15, "")
    _told(refused.stderr, cache)
    assert not EngineCache(cache).entries()
    disk.empty()
    built = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, timeout=90)
    assert built.returncode == 0, built.stderr
    (entry,) = EngineCache(cache).entries()
    assert EngineCache(cache).verify(entry) == []
    figures("processes", fault="a full disk below the cache", runs=1, resumed=1, lost=0, duplicated=0)
