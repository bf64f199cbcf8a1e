"""Dry runs: they say what a run then does, and leave everything as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trtfleet
from trtfleet.datasets.storage import Storage
from trtfleet.errors import (
    BackendError,
    CalibrationError,
    EmptyDatasetError,
    FingerprintError,
    MismatchError,
    OutputError,
)
from trtfleet.jobs.calibrate import run_calibrate
from trtfleet.jobs.calibrate_spec import CalibrateSpec
from trtfleet.jobs.dry_run import DryRun
from trtfleet.jobs.progress import Silent, Snapshot
from trtfleet.jobs.score import run_score
from trtfleet.jobs.spec import ScoreSpec
from trtfleet.trt_actors.expectation import Expectation

pytestmark = pytest.mark.usefixtures("ray_session")

_COMMAND = """
import sys
from trtfleet.jobs.cli import main

def watch(event, arguments):
    if event == "subprocess.Popen":
        raise RuntimeError(f"starts {arguments[1]}")

sys.addaudithook(watch)
main()
"""

Shape = dict[str, tuple[int, bytes]]


class StopsAfter(Silent):
    """Interrupts a job, as Ctrl-C does, once some shards or units are finished."""

    def __init__(self, pieces: int) -> None:
        self._pieces = pieces

    def update(self, snapshot: Snapshot) -> None:
        if snapshot.shards_done >= self._pieces:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The engine cache, which is not there yet."""
    monkeypatch.setenv("TRTFLEET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _wait_until_quiet(folder: Path) -> None:
    """Returns once nothing has come into a folder for a second."""
    before: set[Path] = set()
    while (found := set(folder.rglob("*"))) != before:
        before = found
        time.sleep(1.0)


@pytest.fixture
def untouched(tmp_path: Path) -> Iterator[None]:
    """Makes sure that the test changes no file and no folder, by name, time and content."""

    def shape() -> Shape:
        return {
            str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
            for path in (tmp_path, *tmp_path.rglob("*"))
        }

    before = shape()
    yield
    assert shape() == before


@pytest.fixture
def job(
    tmp_path: Path, linear_model: Callable[..., Path], vectors: Callable[..., Path]
) -> Callable[..., dict[str, Any]]:
    """The options of a job with 10 shards of 100 rows."""
    model, data = linear_model(), vectors(rows=1000)

    def options(**changed: Any) -> dict[str, Any]:
        values = {
            "model": model,
            "data": data,
            "out": tmp_path / "out",
            "keep": "id",
            "batch_size": 32,
            "actors": 2,
            "shard_bytes": 2400,
        }
        return {name: value for name, value in {**values, **changed}.items() if value is not None}

    return options


Job = Callable[..., dict[str, Any]]


def dry(options: dict[str, Any]) -> DryRun:
    return trtfleet.score(**options, dry_run=True)


class TestScore:
    @pytest.fixture
    def stopped(self, job: Job) -> dict[str, Any]:
        """A job of which some shards are committed."""
        options = job()
        with pytest.raises(KeyboardInterrupt):
            run_score(ScoreSpec.of(options), StopsAfter(3))
        # Actors may still commit what they were at.
        _wait_until_quiet(Path(options["out"]))
        return options

    @pytest.fixture
    def finished(self, job: Job) -> dict[str, Any]:
        options = job()
        trtfleet.score(**options)
        return options

    def test_a_new_job(self, job: Job, tmp_path: Path, untouched: None) -> None:
        found = dry(job())
        assert (found.job, found.files, found.rows) == ("score", 1, 1000)
        assert found.inputs == {"x": ("x (fixed_size_list<element: float>[4])",)}
        assert found.keep == ("id",)
        assert (found.pieces.count, found.pieces.largest_rows, found.pieces.done) == (10, 100, 0)
        assert (found.actors.count, found.actors.cpus, found.actors.gpus) == (2, 1.0, 0.0)
        assert (found.batch, found.batch_size) == ("32 (given)", 32)
        assert (found.target.url, found.target.state) == (str(tmp_path / "out"), "new")
        (machine,) = found.machines
        assert (machine.device, machine.backend) == ("CPU", "onnxruntime-cpu")

    def test_the_run_is_as_it_was_told(self, job: Job) -> None:
        told = dry(job())
        summary = trtfleet.score(**job())
        status = trtfleet.status(job()["out"])
        assert (told.rows, told.pieces.count) == (summary.rows, status.shards_total)
        assert told.target.files == summary.files
        assert told.machines[0].backend == summary.backend

    def test_what_is_committed_would_be_resumed(self, stopped: dict[str, Any], untouched: None) -> None:
        done = trtfleet.status(stopped["out"]).shards_done
        # Another number of actors would cut a new job in another way, but not this one.
        found = dry({**stopped, "actors": 4, "shard_bytes": 2400})
        assert found.target.state == "resumed"
        assert (found.pieces.count, found.pieces.done) == (10, done)
        assert found.pieces.rows_done == 100 * done
        assert any(f"{done} with {100 * done} rows are committed" in line for line in found.lines())

    def test_a_finished_job_has_nothing_to_do(self, finished: dict[str, Any], untouched: None) -> None:
        found = dry(finished)
        assert (found.target.state, found.pieces.done) == ("finished", 10)
        assert found.lines()[-1].endswith("finished, nothing to do")

    def test_another_job_is_refused_as_the_run_would_be(
        self, finished: dict[str, Any], untouched: None
    ) -> None:
        with pytest.raises(FingerprintError, match="holds another job: batch_size was 32, now 64"):
            dry({**finished, "batch_size": 64})

    def test_an_output_that_would_be_replaced(self, finished: dict[str, Any], untouched: None) -> None:
        found = dry({**finished, "batch_size": 64, "overwrite": True})
        assert (found.target.state, found.pieces.done) == ("replaced", 0)

    def test_a_batch_size_that_would_be_measured(self, job: Job, untouched: None) -> None:
        found = dry(job(batch_size=None))
        assert (found.batch, found.batch_size) == ("auto: the first actor measures", None)
        assert found.memory.is_limit

    def test_a_batch_size_that_the_job_began_with(self, job: Job) -> None:
        options = job(batch_size=None)
        with pytest.raises(KeyboardInterrupt):
            run_score(ScoreSpec.of(options), StopsAfter(1))
        found = dry(options)
        assert found.batch_size is not None
        assert found.batch == f"{found.batch_size:,} (as the job began)"

    def test_a_model_with_a_batch_size_of_its_own(self, job: Job, linear_model: Callable[..., Path]) -> None:
        found = dry(job(model=linear_model(batch=8, name="fixed.onnx"), batch_size=None))
        assert (found.batch, found.batch_size) == ("8 (the model's own)", 8)

    def test_memory_is_the_sum_of_its_parts(self, job: Job) -> None:
        found = dry(job())
        memory = found.memory
        # Four batches of 32 rows with four inputs and two outputs of four bytes.
        assert memory.batch_bytes == 4 * 32 * (4 + 2) * 4
        # Two shards in flight, which are smaller than what may be read ahead.
        assert memory.read_bytes == 2 * found.pieces.largest_bytes
        assert memory.host_bytes == sum(
            (memory.process_bytes, memory.model_bytes, memory.read_bytes, memory.batch_bytes)
        )
        assert memory.device_bytes == 0

    def test_what_would_fail_fails_alike(self, job: Job, tmp_path: Path, untouched: None) -> None:
        with pytest.raises(BackendError, match="backend tensorrt is not available"):
            dry(job(backend="tensorrt"))
        with pytest.raises(MismatchError, match="--keep names column 'name'"):
            dry(job(keep="name"))
        with pytest.raises(EmptyDatasetError):
            dry(job(filter="id < 0"))
        with pytest.raises(OutputError, match=r"cannot write to .*/linear.onnx/out: "):
            dry(job(out=tmp_path / "linear.onnx" / "out"))

    def test_on_s3_nothing_is_written_either(self, job: Job, bucket: str, untouched: None) -> None:
        found = dry(job(out=f"{bucket}/out", cache=f"{bucket}/cache"))
        assert found.target.url == f"{bucket}/out"
        assert any("whether" in note and "can be written was not tried" in note for note in found.notes)
        assert Storage(bucket).list() == []

    def test_what_a_hook_behind_the_network_makes_is_not_known(self, job: Job) -> None:
        hook = "trtfleet.tests.jobs.test_dry_run:double"
        found = dry(job(postprocess=hook))
        assert (found.target.files, found.target.size_bytes) == (None, None)


def double(outputs: dict[str, Any], kept: Any) -> dict[str, Any]:
    """A hook behind the network: nobody knows beforehand what it makes."""
    return {name: values * 2 for name, values in outputs.items()}


class TestInt8:
    @pytest.fixture
    def options(self, digits: tuple[Path, Path], tmp_path: Path) -> dict[str, Any]:
        model, data = digits
        return {
            "model": model,
            "data": data,
            "out": tmp_path / "out",
            "actors": 1,
            "batch_size": 64,
            "precision": "int8",
        }

    def test_without_a_table_it_is_refused_as_the_run_would_be(
        self, options: dict[str, Any], untouched: None
    ) -> None:
        with pytest.raises(CalibrationError, match="has no calibration table"):
            dry(options)

    def test_a_calibration_that_would_come_first(self, options: dict[str, Any], untouched: None) -> None:
        found = dry({**options, "use_calib_mode": True})
        assert found.first is not None
        assert (found.first.job, found.first.rows, found.precision) == ("calibrate", 500, "int8")
        assert found.lines()[0].startswith("calibrate ")
        assert "and then:" in found.lines()
        assert found.as_json()["first"]["job"] == "calibrate"

    def test_with_its_table(self, options: dict[str, Any], request: pytest.FixtureRequest) -> None:
        trtfleet.calibrate(options["model"], options["data"], samples=100, actors=1)
        request.getfixturevalue("untouched")
        found = dry(options)
        assert found.first is None
        assert found.notes[0].startswith("int8 ranges by entropy from 100 rows: ")
        assert found.notes[1].startswith("int8 is compared with fp32 on 256 rows first")


class TestCalibrate:
    @pytest.fixture
    def options(self, digits: tuple[Path, Path], tmp_path: Path) -> dict[str, Any]:
        model, data = digits
        table = tmp_path / "table.json"
        return {"model": model, "data": data, "table": table, "samples": 200, "actors": 2, "batch_size": 10}

    def test_a_new_one(self, options: dict[str, Any], cache: Path, untouched: None) -> None:
        found = trtfleet.calibrate(**options, dry_run=True)
        assert (found.rows, found.batch_size, found.actors.count) == (200, 10, 2)
        assert (found.pieces.what, found.pieces.count) == ("unit", 10)
        assert found.target.url == f"a table in {cache}"
        assert [also.partition(": ")[2] for also in found.target.also] == ["the table", "the report"]
        # Per row the pixels as float32, and the convolutions' and the classes' tensors.
        assert found.memory.activation_bytes >= 10 * 4 * 64

    def test_it_is_as_it_was_told_and_would_be_resumed(
        self, options: dict[str, Any], request: pytest.FixtureRequest
    ) -> None:
        told = trtfleet.calibrate(**options, dry_run=True)
        spec = CalibrateSpec.of(options)
        with pytest.raises(KeyboardInterrupt):
            run_calibrate(spec, StopsAfter(2))
        resumed = trtfleet.calibrate(**options, dry_run=True)
        assert (resumed.target.state, resumed.pieces.count) == ("resumed", told.pieces.count)
        assert resumed.pieces.done >= 2
        summary = run_calibrate(spec)
        assert (summary.units, summary.units_before) == (told.pieces.count, resumed.pieces.done)
        assert (summary.rows, summary.backend) == (told.rows, told.machines[0].backend)
        assert not any("fed in the same way" in note for note in resumed.notes)
        again = trtfleet.calibrate(**options, dry_run=True)
        assert any(note.startswith(f"{summary.stored} was made of rows") for note in again.notes)


class TestLines:
    """What no machine here has, told."""

    MACHINE = Expectation(
        device="NVIDIA H100 (9.0)",
        backend="tensorrt",
        flavour="tensorrt 10.16.0.1",
        engine="to build",
        engine_key="0123456789abcdef",
        engine_bytes=5 << 20,
        memory_bytes=64 << 30,
        free_bytes=32 << 30,
    )

    def lines(self, job: Job, **changed: Any) -> list[str]:
        return replace(dry(job()), machines=(replace(self.MACHINE, **changed),)).lines()

    @pytest.mark.parametrize(
        ("state", "words"),
        [
            ("to build", "0123456789ab is not in the cache: one actor builds it first"),
            ("cached", "0123456789ab is in the cache, 5.0 MiB"),
            ("not kept", "every actor builds its own, the cache is off"),
            ("unknown", "unknown: the cache cannot be read"),
        ],
    )
    def test_the_engine(self, state: str, words: str, job: Job) -> None:
        lines = self.lines(job, engine=state, note="the cache cannot be read")
        assert f"engine     {words}" in lines
        assert "backend    fp32 with tensorrt 10.16.0.1 on NVIDIA H100 (9.0)" in lines

    def test_an_engine_of_a_network_that_is_not_known_yet(self, job: Job) -> None:
        lines = self.lines(job, engine_key="")
        assert "engine     not in the cache: one actor builds it first" in lines

    def test_memory_that_is_not_there_is_a_warning(self, job: Job) -> None:
        assert not any(line.startswith("warning") for line in self.lines(job))
        (warning,) = (line for line in self.lines(job, free_bytes=1 << 20) if line.startswith("warning"))
        assert warning.startswith("warning    2 actors on a machine need about 400.0 MiB")
        assert warning.endswith("1.0 MiB are free there")

    def test_memory_of_a_gpu(self, job: Job) -> None:
        found = dry(job())
        told = replace(found, memory=replace(found.memory, device_bytes=3 << 30))
        assert "GPU memory about 3.0 GiB an actor" in told.lines()


class TestCommand:
    def run(self, environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", _COMMAND, *map(str, arguments), "--dry-run"],
            env={**environment, "TRTFLEET_CACHE": os.environ["TRTFLEET_CACHE"]},
            capture_output=True,
            text=True,
            timeout=100,
        )

    def test_no_ray_is_started(
        self, without_ray: dict[str, str], digits: tuple[Path, Path], tmp_path: Path, untouched: None
    ) -> None:
        model, data = digits
        done = self.run(without_ray, "score", model, data, tmp_path / "out", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        found = json.loads(done.stdout)
        assert (found["dry_run"], found["rows"]) == (True, 1797)
        assert found["actors"]["starts_ray"] is True
        assert found["memory"]["host_bytes"] > found["memory"]["process_bytes"]
        done = self.run(without_ray, "calibrate", model, data)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"calibrate {model}: nothing was run or written")
        assert "on this machine, Ray would be started for it" in done.stdout

    def test_errors_have_their_exit_codes(
        self, without_ray: dict[str, str], digits: tuple[Path, Path], tmp_path: Path, untouched: None
    ) -> None:
        model, data = digits
        done = self.run(without_ray, "score", model, data, tmp_path / "out", "--backend", "tensorrt")
        assert done.returncode == BackendError.exit_code
        assert done.stderr.startswith("error: backend tensorrt is not available: the cluster has no GPU")
