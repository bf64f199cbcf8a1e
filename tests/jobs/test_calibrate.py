"""Calibrations as a user sees them, on a real Ray cluster."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trtfleet
from trtfleet.datasets.storage import Storage
from trtfleet.errors import (
    BadRowsError,
    CalibrationError,
    DatasetError,
    MismatchError,
    ModelError,
    OutputError,
    TrtfleetError,
    UsageError,
)
from trtfleet.jobs.calibrate import CalibrateSummary, run_calibrate
from trtfleet.jobs.calibrate_spec import CalibrateSpec
from trtfleet.jobs.progress import Silent, Snapshot
from trtfleet.tests.jobs.conftest import Ran
from trtfleet.tests.trt_actors.calibration.samples import (
    NORMALIZE,
    convolutional,
    linear,
    save,
    write_images,
    write_vectors,
)
from trtfleet.trt_actors.calibration.table import CalibrationTable
from trtfleet.trt_actors.calibration.table_store import TableStore
from trtfleet.trt_actors.model import load_model

HOOK = """
import os, pathlib, signal, time
import numpy as np

HERE = pathlib.Path(__file__).parent


def die_once(batch):
    try:
        os.close(os.open(HERE / "died", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        pass
    else:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(batch)


def meet(batch):
    # Waits until as many processes are at work as the test wants.
    (HERE / "pids" / str(os.getpid())).touch()
    deadline_s = time.monotonic() + 60
    while len(os.listdir(HERE / "pids")) < int((HERE / "wanted").read_text()):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    return plain(batch)


def plain(batch):
    images = np.stack(batch["x"].to_numpy_ndarray()).astype(np.float32)
    return {"x": ((images - 128) / 64).transpose(0, 3, 1, 2)}
"""


HOOKED: dict[str, Any] = {"normalize": None, "layout": None, "columns": "x"}


class StopsAfter(Silent):
    """Interrupts the job, as Ctrl-C does, once some units are finished."""

    def __init__(self, units: int) -> None:
        self._units = units

    def update(self, snapshot: Snapshot) -> None:
        if snapshot.shards_done >= self._units:
            raise KeyboardInterrupt


class Told(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class EndsMeanwhile(Told):
    """Removes what is known of units once some are, as another run of the same job does at its end."""

    def __init__(self, cache: Path) -> None:
        super().__init__()
        self._cache = cache
        self.removed: list[str] = []

    def update(self, snapshot: Snapshot) -> None:
        if not self.removed and snapshot.shards_done >= 2:
            storage = Storage(str(self._cache))
            self.removed = [entry.path for entry in storage.list() if "/_trtfleet/" in entry.path]
            storage.delete(self.removed)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``model.onnx``, 120 images in ``data`` and hooks; the engine cache is there too."""
    convolutional(tmp_path / "model.onnx")
    write_images(tmp_path / "data")
    (tmp_path / "calibrate_hooks.py").write_text(HOOK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRTFLEET_CACHE", str(tmp_path / "cache"))
    return tmp_path


def spec_of(place: Path, table: str, **options: Any) -> CalibrateSpec:
    values: dict[str, Any] = {
        "model": place / "model.onnx",
        "data": place / "data",
        "table": place / table,
        "samples": 110,
        "batch_size": 4,
        "actors": 2,
        "cpus_per_actor": 0.5,
        "normalize": NORMALIZE,
        "layout": "nhwc",
        **options,
    }
    return CalibrateSpec.of({name: value for name, value in values.items() if value is not None})


def calibrate(place: Path, table: str = "table.json", **options: Any) -> CalibrateSummary:
    return run_calibrate(spec_of(place, table, **options))


def table_of(path: Path) -> CalibrationTable:
    return CalibrationTable.decode(path.read_bytes(), path.name)


def kept(place: Path) -> list[str]:
    """What is in the cache, below the model's folder."""
    digest = load_model(place / "model.onnx").digest
    root = place / "cache" / "calibration" / digest
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@pytest.mark.usefixtures("ray_session")
class TestTable:
    def test_is_the_same_for_any_number_of_actors(self, place: Path) -> None:
        found = {}
        for actors in (1, 2, 3, 7):
            (place / "wanted").write_text(str(actors))
            shutil.rmtree(place / "pids", ignore_errors=True)
            (place / "pids").mkdir()
            hooked = {**HOOKED, "preprocess": "calibrate_hooks:meet"}
            summary = calibrate(place, f"{actors}.json", actors=actors, **hooked)
            assert (summary.actors, summary.rows, summary.bad_rows) == (actors, 110, 0)
            found[actors] = (place / f"{actors}.json").read_bytes()
        assert len(set(found.values())) == 1
        table = table_of(place / "7.json")
        assert sorted(table.tensors) == ["b", "d", "f", "x"]
        assert (table.samples, table.batch_size, table.method) == (110, 4, "entropy")
        assert table.tensors["x"].count == 110 * 3 * 8 * 8
        assert -2 <= table.tensors["x"].minimum < table.tensors["x"].maximum < 2
        # Equal tables are kept once, and nothing of the work is left.
        assert kept(place) == ["000001.json"]

    def test_is_the_same_when_an_actor_is_killed(self, place: Path) -> None:
        (place / "died").touch()
        whole = calibrate(place, "whole.json", preprocess="calibrate_hooks:die_once", **HOOKED)
        assert whole.failures == 0
        (place / "died").unlink()
        killed = calibrate(place, "killed.json", preprocess="calibrate_hooks:die_once", **HOOKED)
        assert (place / "died").exists()
        assert killed.failures >= 1
        assert (place / "killed.json").read_bytes() == (place / "whole.json").read_bytes()

    def test_is_the_same_when_the_driver_is_interrupted_and_goes_on(self, place: Path) -> None:
        calibrate(place, "whole.json", seed=1)
        other = str(place / "other")
        with pytest.raises(KeyboardInterrupt):
            run_calibrate(spec_of(place, "resumed.json", seed=1, cache=other), StopsAfter(3))
        assert not (place / "resumed.json").exists()
        summary = calibrate(place, "resumed.json", seed=1, cache=other, actors=3)
        assert 3 <= summary.units_before < summary.units
        assert (place / "resumed.json").read_bytes() == (place / "whole.json").read_bytes()
        assert not list((place / "other").rglob("work"))

    def test_is_found_by_the_model_and_what_is_fed_to_it(self, place: Path) -> None:
        summary = trtfleet.calibrate(
            place / "model.onnx",
            place / "data",
            samples=8,
            method="minmax",
            actors=1,
            normalize=NORMALIZE,
            layout="nhwc",
        )
        assert summary.table is None
        assert summary.report is None
        model = load_model(place / "model.onnx")
        ((url, table),) = TableStore().all(model.digest)
        assert (url, table.method) == (summary.stored, "minmax")
        assert TableStore().find(model.digest, table.feed) is not None
        assert TableStore().find(model.digest, {**table.feed, "normalize": "0:1"}) is None
        assert table.feed["normalize"] == NORMALIZE

    def test_is_kept_in_an_object_store(self, place: Path, bucket: str) -> None:
        calibrate(place, "here.json", samples=16)
        summary = calibrate(place, "there.json", samples=16, cache=f"{bucket}/cache")
        assert (place / "there.json").read_bytes() == (place / "here.json").read_bytes()
        left = [entry.path for entry in Storage(f"{bucket}/cache").list()]
        assert [f"{bucket}/cache/{path}" for path in left] == [summary.stored]

    def test_leaves_out_what_is_excluded(self, place: Path) -> None:
        calibrate(place, exclude=["Gemm"], samples=8)
        table = table_of(place / "table.json")
        assert sorted(table.tensors) == ["b", "d", "x"]
        assert table.excluded == ("Gemm",)

    def test_fewer_rows_than_samples_are_all_taken_and_that_is_said(self, place: Path) -> None:
        told = Told()
        summary = run_calibrate(spec_of(place, "table.json", samples=5000), told)
        assert summary.rows == 120
        assert "there are fewer rows than --samples 5,000: all 120 are taken" in told.lines

    def test_is_made_again_from_what_was_collected_when_it_could_not_be_written(self, place: Path) -> None:
        (place / "gone").mkdir()
        told = _RemovesFolder(place / "gone")
        with pytest.raises(OutputError, match="cannot be written"):
            run_calibrate(spec_of(place, "gone/table.json", samples=16), told)
        summary = calibrate(place, samples=16)
        assert (summary.actors, summary.units_before) == (0, summary.units)

    def test_is_the_same_when_another_run_ends_and_removes_what_both_knew(self, place: Path) -> None:
        calibrate(place, "whole.json")
        told = EndsMeanwhile(place / "other")
        run_calibrate(spec_of(place, "again.json", cache=str(place / "other")), told)
        assert told.removed
        assert [line for line in told.lines if "beginning again" in line]
        assert (place / "again.json").read_bytes() == (place / "whole.json").read_bytes()
        assert not list((place / "other").rglob("work"))


class _RemovesFolder(Silent):
    """Removes a folder once the work has begun."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def update(self, snapshot: Snapshot) -> None:
        if self._folder.exists():
            self._folder.rmdir()


@pytest.mark.usefixtures("ray_session")
class TestBadRows:
    @staticmethod
    def write(place: Path, bad: int) -> None:
        linear(place / "model.onnx")
        rows = [None if row < bad else [1.0, 2.0, 3.0, float(row)] for row in range(40)]
        (place / "vectors").mkdir()
        pq.write_table(
            pa.table({"x": pa.array(rows, pa.list_(pa.float32(), 4))}), place / "vectors" / "v.parquet"
        )

    def options(self, place: Path) -> dict[str, Any]:
        return {"data": place / "vectors", "normalize": None, "layout": None, "actors": 1}

    def test_are_counted_and_said(self, place: Path) -> None:
        self.write(place, bad=3)
        summary = calibrate(place, **self.options(place))
        assert (summary.rows, summary.bad_rows) == (37, 3)
        assert any("3 bad rows did not count; the first: row 0 of" in line for line in summary.lines())
        assert table_of(place / "table.json").samples == 37

    def test_more_than_half_are_an_error(self, place: Path) -> None:
        self.write(place, bad=21)
        with pytest.raises(
            BadRowsError, match=r"2\d of 40 sampled rows cannot be fed .*row \d+ of \S+v\.parquet: x: null"
        ):
            calibrate(place, **self.options(place))
        assert not (place / "table.json").exists()


@pytest.mark.usefixtures("ray_session")
def test_values_that_are_not_finite_are_an_error_with_tensor_and_rows(place: Path) -> None:
    values = np.ones((64, 4), np.float32)
    values[43] = np.nan
    data = write_vectors(place / "vectors.parquet", values)
    linear(place / "model.onnx")
    with pytest.raises(CalibrationError, match=r"tensor 'x' has 4 values .* rows 40 to 43 of \S*vectors"):
        calibrate(place, data=data, normalize=None, layout=None, actors=1)


class TestRefused:
    def test_data_that_does_not_match_the_model(self, place: Path) -> None:
        write_vectors(place / "vectors.parquet", np.zeros((5, 4), np.float32))
        with pytest.raises(MismatchError, match="input x"):
            calibrate(place, data=place / "vectors.parquet", normalize=None, layout=None)

    def test_a_model_that_is_quantized_already(self, place: Path) -> None:
        node = onnx.helper.make_node
        save(
            place / "model.onnx",
            [
                node("QuantizeLinear", ["x", "s", "z"], ["q"]),
                node("DequantizeLinear", ["q", "s", "z"], ["d"]),
                node("MatMul", ["d", "w"], ["y"]),
            ],
            {"s": np.float32(0.1), "z": np.int8(0), "w": np.eye(4, dtype=np.float32)},
            ["N", 4],
            ["N", 4],
        )
        with pytest.raises(ModelError, match=r"model\.onnx: .*is already quantized"):
            calibrate(place)

    def test_a_model_with_nothing_to_quantize(self, place: Path) -> None:
        nodes = [onnx.helper.make_node("Relu", ["x"], ["y"])]
        save(place / "model.onnx", nodes, {}, ["N", 4], ["N", 4])
        with pytest.raises(ModelError, match=r"model\.onnx: .*has no Conv"):
            calibrate(place)

    @pytest.mark.parametrize(
        ("targets", "message"),
        [
            ({"table": "nowhere/table.json"}, "there is no folder"),
            ({"table": "data"}, "it is not a file"),
            ({"table": "s3://bucket/table.json"}, "on this machine alone"),
            ({"table": "t.json", "report": "nowhere/report.html"}, "there is no folder"),
        ],
    )
    def test_a_target_that_cannot_be_written(
        self, place: Path, targets: dict[str, str], message: str
    ) -> None:
        with pytest.raises(OutputError, match=message):
            trtfleet.calibrate(place / "model.onnx", place / "data", **targets)

    @pytest.mark.parametrize(
        ("options", "kind", "message"),
        [
            ({"samples": 0}, UsageError, "samples must be >= 1"),
            ({"seed": -1}, UsageError, "seed must be >= 0"),
            ({"method": "best"}, UsageError, "method must be"),
            ({"method": "percentile:101"}, UsageError, "percentile"),
            ({"backend": "tensorrt"}, UsageError, "does not calibrate"),
            ({"batch_size": 0}, UsageError, "batch_size must be >= 1"),
            ({"cpus_per_actor": 0}, UsageError, "cpus_per_actor must be above 0"),
            ({"cpus_per_actor": "many"}, UsageError, "cpus_per_actor must be a number"),
            ({"columns": "x"}, UsageError, "only chosen for a preprocess hook"),
            ({"exclude": "Covn"}, UsageError, "'Covn'"),
            ({"frob": 1}, UsageError, "unknown option 'frob'"),
            ({"data": "nowhere"}, DatasetError, "nowhere does not exist"),
        ],
    )
    def test_options_that_make_no_sense(
        self, place: Path, options: dict[str, Any], kind: type[TrtfleetError], message: str
    ) -> None:
        with pytest.raises(kind, match=message):
            calibrate(place, **options)

    def test_a_batch_larger_than_the_model_takes(self, place: Path) -> None:
        convolutional(place / "model.onnx", batch=4)
        with pytest.raises(MismatchError, match="--batch-size 8 exceeds the model's fixed batch size 4"):
            calibrate(place, batch_size=8)


@pytest.mark.usefixtures("ray_session")
class TestCommand:
    def test_prints_what_it_made(self, place: Path, command: Callable[..., Ran]) -> None:
        ran = command(
            *("calibrate", "model.onnx", "data", "-o", "t.json", "--samples", 16, "--actors", 1),
            *("--method", "percentile:99", "--normalize", NORMALIZE, "--layout", "nhwc"),
        )
        assert ran.code == 0, ran.stderr
        assert "4 ranges by percentile:99 from 16 rows, batch size 32, seed 0" in ran.stdout
        assert "most values beyond the threshold:" in ran.stdout
        assert "table: t.json" in ran.stdout
        assert table_of(place / "t.json").method == "percentile:99"
        assert "<svg" in (place / "t.html").read_text()

    def test_prints_json(self, place: Path, command: Callable[..., Ran]) -> None:
        ran = command(
            *("calibrate", "model.onnx", "data", "--samples", 16, "--actors", 1, "--layout", "nhwc"),
            *("--method", "minmax", "--report", "r.html", "--json"),
        )
        assert ran.code == 0, ran.stderr
        found = json.loads(ran.stdout)
        assert (found["tensors"], found["rows"], found["worst"]) == (4, 16, {})
        assert Path(found["stored"]).is_file()
        assert (place / "r.html").is_file()

    def test_refuses_in_two_lines(self, place: Path, command: Callable[..., Ran]) -> None:
        ran = command("calibrate", "model.onnx", "data", "--method", "best")
        assert ran.code == 2
        assert ran.stderr.startswith("error: method must be")
