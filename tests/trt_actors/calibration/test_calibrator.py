"""Units of a sample through the calibrator, without Ray: the same bytes however they are cut and ordered."""

from __future__ import annotations

import importlib
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper
from trtfleet.datasets.sampling import Unit, plan_units
from trtfleet.errors import ActorStuckError, CalibrationError
from trtfleet.jobs.calibrate_plan import CalibratePlan, make_calibrate_plan
from trtfleet.jobs.calibrate_spec import CalibrateSpec
from trtfleet.tests.trt_actors.calibration.samples import (
    NORMALIZE,
    activations,
    convolutional,
    images,
    linear,
    save,
    write_images,
    write_vectors,
)
from trtfleet.trt_actors.calibration.calibrator import Calibrator
from trtfleet.trt_actors.calibration.statistics import TensorStatistics, decode, encode, merge_all
from trtfleet.trt_actors.calibration.task import UnitReceipt
from trtfleet.trt_actors.model import load_model
from trtfleet.trt_actors.watchdog import Watchdog


@pytest.fixture
def plan_of(tmp_path: Path) -> Callable[..., CalibratePlan]:
    def make(model: Path, data: Path, **options: Any) -> CalibratePlan:
        values = {"model": model, "data": data, "cache": tmp_path / "cache", **options}
        return make_calibrate_plan(CalibrateSpec.of(values))

    return make


def units_of(plan: CalibratePlan, unit_batches: int = 2) -> list[Unit]:
    return plan_units(plan.dataset.files, plan.rows, batch_size=plan.batch_size, unit_batches=unit_batches)


def observe(plan: CalibratePlan, units: list[Unit]) -> list[UnitReceipt]:
    with Calibrator(plan.task(1)) as calibrator:
        return [calibrator.observe(unit) for unit in units]


def merged(receipts: list[UnitReceipt]) -> bytes:
    return encode(merge_all(decode(receipt.statistics) for receipt in receipts))


class TestStatistics:
    def test_are_those_of_the_sampled_rows(
        self, tmp_path: Path, plan_of: Callable[..., CalibratePlan]
    ) -> None:
        model, data = convolutional(tmp_path / "m.onnx"), write_images(tmp_path / "data")
        plan = plan_of(model, data, samples=50, batch_size=8, normalize=NORMALIZE, layout="nhwc")
        assert tuple(plan.observed.tensors) == ("x", "b", "d", "f")
        found = decode(merged(observe(plan, units_of(plan))))

        pixels = images(120)[plan.rows]
        fed = np.ascontiguousarray(((pixels.astype(np.float32) - 128) / 64).transpose(0, 3, 1, 2))
        proto = load_model(model).proto
        batches = [fed[start : start + 8] for start in range(0, 50, 8)]
        for place, name in enumerate("bdf"):
            values = [activations(proto, {"x": batch}, "bdf")[place] for batch in batches]
            assert found[name] == TensorStatistics.of(np.concatenate([v.reshape(-1) for v in values])), name
        assert found["x"] == TensorStatistics.of(fed)

    @pytest.mark.parametrize("batch", ["N", 8])
    def test_do_not_depend_on_units_or_their_order(
        self, tmp_path: Path, plan_of: Callable[..., CalibratePlan], batch: int | str
    ) -> None:
        model, data = convolutional(tmp_path / "m.onnx", batch), write_images(tmp_path / "data")
        plan = plan_of(model, data, samples=83, batch_size=8, normalize=NORMALIZE, layout="nhwc")
        expected = merged(observe(plan, units_of(plan, 100)))
        for unit_batches in (1, 2, 3, 7):
            units = units_of(plan, unit_batches)
            random.Random(unit_batches).shuffle(units)
            assert merged(observe(plan, units)) == expected, unit_batches

    def test_depend_on_the_seed(self, tmp_path: Path, plan_of: Callable[..., CalibratePlan]) -> None:
        model, data = convolutional(tmp_path / "m.onnx"), write_images(tmp_path / "data")
        found = {
            merged(observe(plan, units_of(plan)))
            for plan in (plan_of(model, data, samples=20, layout="nhwc", seed=seed) for seed in (0, 1))
        }
        assert len(found) == 2

    def test_ragged_rows_are_padded_to_the_longest_of_their_batch_alone(
        self, tmp_path: Path, plan_of: Callable[..., CalibratePlan]
    ) -> None:
        model = save(
            tmp_path / "m.onnx",
            [
                helper.make_node("Gather", ["table", "ids"], ["e"]),
                helper.make_node("MatMul", ["e", "w"], ["y"]),
            ],
            {
                "table": np.arange(40, dtype=np.float32).reshape(10, 4),
                "w": np.ones((4, 2), np.float32),
            },
            ["N", "length"],
            ["N", "length", 2],
        )
        proto = load_ids(model)
        data = tmp_path / "data.parquet"
        rows = [[1] * (1 + row % 5) for row in range(40)]
        pq.write_table(pa.table({"ids": pa.array(rows, pa.list_(pa.int64()))}), data, row_group_size=7)
        plan = plan_of(proto, data, samples=40, batch_size=4)
        expected = decode(merged(observe(plan, units_of(plan, 100))))
        # Of four consecutive rows the longest decides how far all four are padded.
        padded = sum(4 * max(map(len, rows[start : start + 4])) for start in range(0, 40, 4))
        assert expected["e"].count == padded * 4
        for unit_batches in (1, 3):
            assert decode(merged(observe(plan, units_of(plan, unit_batches)))) == expected

    def test_take_no_more_memory_for_more_samples(
        self, tmp_path: Path, plan_of: Callable[..., CalibratePlan]
    ) -> None:
        model = linear(tmp_path / "m.onnx", hidden=256)
        values = np.random.default_rng(0).normal(size=(50_000, 4)).astype(np.float32)
        data = write_vectors(tmp_path / "data.parquet", values)
        peaks = {}
        for samples in (2_000, 50_000):
            plan = plan_of(model, data, samples=samples)
            (unit,) = units_of(plan, unit_batches=10_000)
            with Calibrator(plan.task(1)) as calibrator:
                tracemalloc.start()
                receipt = calibrator.observe(unit)
                peaks[samples] = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
            assert receipt.rows == samples
            assert decode(receipt.statistics)["h"].count == samples * 256
        # The activations of 50,000 rows have 51 million bytes, those of the rows alone 0.8.
        assert peaks[50_000] < peaks[2_000] + 2_000_000


def load_ids(model: Path) -> Path:
    """Makes the model's input int64 ``ids``."""
    import onnx

    proto = onnx.load(model)
    proto.graph.input[0].name = "ids"
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(proto, model)
    return model


class TestRowsThatFail:
    def test_are_named_and_do_not_count(self, tmp_path: Path, plan_of: Callable[..., CalibratePlan]) -> None:
        data = tmp_path / "data"
        data.mkdir()
        rows: list[list[float] | None] = [[float(row)] * 4 for row in range(30)]
        for row in (3, 17, 18):
            rows[row] = None
        column = pa.array(rows, pa.list_(pa.float32(), 4))
        pq.write_table(pa.table({"x": column[:16]}), data / "a.parquet")
        pq.write_table(pa.table({"x": column[16:]}), data / "b.parquet")
        plan = plan_of(linear(tmp_path / "m.onnx"), data, batch_size=8)
        receipts = observe(plan, units_of(plan, 1))
        bad = [(Path(row.file).name, row.row, row.column) for receipt in receipts for row in receipt.bad]
        assert bad == [("a.parquet", 3, "x"), ("b.parquet", 1, "x"), ("b.parquet", 2, "x")]
        assert sum(receipt.rows for receipt in receipts) == 27
        kept = [float(row) for row in range(30) if row not in (3, 17, 18)]
        assert decode(merged(receipts))["x"] == TensorStatistics.of(np.repeat(np.float32(kept), 4))
        assert merged(observe(plan, units_of(plan, 3))) == merged(receipts)

    @pytest.mark.parametrize("poison", [np.nan, np.inf, 3e38])
    def test_values_that_are_not_finite_are_an_error_with_tensor_and_rows(
        self, tmp_path: Path, plan_of: Callable[..., CalibratePlan], poison: float
    ) -> None:
        values = np.ones((64, 4), np.float32)
        values[43] = poison
        data = write_vectors(tmp_path / "data.parquet", values, row_group_rows=10)
        plan = plan_of(linear(tmp_path / "m.onnx"), data, batch_size=8)
        # 3e38 itself is finite: the sum of its products is not.
        tensor = "h" if poison == 3e38 else "x"
        with pytest.raises(
            CalibrationError, match=rf"tensor '{tensor}' has \d+ values .* rows 40 to 47 of .*data"
        ):
            observe(plan, units_of(plan, 100))

    def test_rows_of_two_files_are_named_with_both(
        self, tmp_path: Path, plan_of: Callable[..., CalibratePlan]
    ) -> None:
        (tmp_path / "data").mkdir()
        values = np.full((6, 4), np.nan, np.float32)
        for name in ("a", "b"):
            write_vectors(tmp_path / "data" / f"{name}.parquet", values)
        plan = plan_of(linear(tmp_path / "m.onnx"), tmp_path / "data")
        with pytest.raises(CalibrationError, match=r"rows from 0 of \S*a\.parquet to 5 of \S*b\.parquet"):
            observe(plan, units_of(plan))


class TestHooks:
    def test_get_the_rows_of_a_batch_and_file(
        self, tmp_path: Path, plan_of: Callable[..., CalibratePlan], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "calibration_hook.py").write_text(
            "import numpy as np\n"
            "def centred(batch):\n"
            "    x = np.stack(batch['x'].to_numpy_ndarray()).astype(np.float32).transpose(0, 3, 1, 2)\n"
            # Depends on which rows come together.
            "    return {'x': x - x.mean()}\n"
        )
        monkeypatch.chdir(tmp_path)
        model, data = convolutional(tmp_path / "m.onnx"), write_images(tmp_path / "data")
        plan = plan_of(
            model, data, samples=50, batch_size=8, preprocess="calibration_hook:centred", columns="x"
        )
        found = {merged(observe(plan, units_of(plan, unit_batches))) for unit_batches in (1, 2, 100)}
        assert len(found) == 1

    def test_may_not_take_longer_than_allowed(
        self, tmp_path: Path, plan_of: Callable[..., CalibratePlan], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "hanging_hook.py").write_text(
            "import threading\nGATE = threading.Event()\n"
            "def hang(batch):\n    GATE.wait()\n    return batch\n"
        )
        monkeypatch.chdir(tmp_path)
        model, data = convolutional(tmp_path / "m.onnx"), write_images(tmp_path / "data")
        options = {"preprocess": "hanging_hook:hang", "columns": "x", "batch_timeout": 0.1}
        plan = plan_of(model, data, samples=50, batch_size=8, normalize=NORMALIZE, layout="nhwc", **options)
        task, units = plan.task(1), units_of(plan)
        watchdog = Watchdog(task.batch_timeout_s)
        with Calibrator(task, watchdog) as calibrator:
            with pytest.raises(ActorStuckError, match=r"hook hanging_hook:hang took more than 0\.1 s"):
                watchdog.run(lambda: calibrator.observe(units[0]))
            importlib.import_module("hanging_hook").GATE.set()
        watchdog.close()
