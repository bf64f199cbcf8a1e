"""Comparisons as a user sees them, on a real Ray cluster."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trtfleet
from trtfleet.datasets.sampling import sample_rows
from trtfleet.errors import CalibrationError, EmptyDatasetError, MismatchError, ParityError, UsageError
from trtfleet.jobs.compare import run_compare
from trtfleet.jobs.compare_plan import make_compare_plan
from trtfleet.jobs.compare_spec import CompareSpec
from trtfleet.jobs.compare_summary import CompareSummary
from trtfleet.jobs.plan import feed_identity
from trtfleet.jobs.progress import Silent, Snapshot
from trtfleet.tests.jobs.conftest import Ran
from trtfleet.tests.jobs.test_calibrate import EndsMeanwhile
from trtfleet.tests.trt_actors.calibration.samples import convolutional, write_images
from trtfleet.tests.trt_actors.comparison.networks import images_of, scaled, table_of, with_factors
from trtfleet.trt_actors.calibration.table import CalibrationTable
from trtfleet.trt_actors.calibration.table_store import TableStore
from trtfleet.trt_actors.model import load_model
from trtfleet.trt_actors.quantization.quantize import quantize

NORMALIZE = "0:16"


class StopsAfter(Silent):
    """Interrupts the job, as Ctrl-C does, once some units are finished."""

    def __init__(self, units: int) -> None:
        self._units = units

    def update(self, snapshot: Snapshot) -> None:
        if snapshot.shards_done >= self._units:
            raise KeyboardInterrupt


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with an empty engine cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRTFLEET_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def table(place: Path, digits: tuple[Path, Path]) -> Callable[..., Path]:
    """Writes a table of the digits, as ``table.json``; thresholds of some tensors are multiplied."""

    def write(absurd: dict[str, float] | None = None) -> Path:
        found = table_of(load_model(digits[0]), images_of(digits[1]))
        path = place / "table.json"
        path.write_bytes(with_factors(found, absurd or {}).encode())
        return path

    return write


def compare(digits: tuple[Path, Path], other: Path | None = None, **options: Any) -> CompareSummary:
    model, data = digits
    values: dict[str, Any] = {"actors": 2, "cpus_per_actor": 0.5, "normalize": NORMALIZE, **options}
    return trtfleet.compare(model, other or model, data, **values)


@pytest.mark.usefixtures("ray_session", "place")
class TestOnRay:
    def test_results_are_the_same_for_any_number_of_actors(
        self, digits: tuple[Path, Path], table: Callable[..., Path]
    ) -> None:
        options = {
            "precision_b": "int8",
            "table": table(),
            "per_layer": True,
            "keep": "label",
            "samples": 700,
        }
        one, three = (compare(digits, actors=actors, **options) for actors in (1, 3))
        assert one.comparison.encode() == three.comparison.encode()
        assert one.layers == three.layers
        assert (one.outcome.actors, one.outcome.rows, three.outcome.rows) == (1, 700, 700)
        assert 0.98 < (one.parity.top1_agreement or 0) < 1

    def test_worst_rows_are_told_by_key_file_and_number(
        self, digits: tuple[Path, Path], table: Callable[..., Path]
    ) -> None:
        found = compare(digits, precision_b="int8", table=table(), keep="label", worst=7)
        labels = pq.read_table(digits[1])["label"].to_pylist()
        worst = found.comparison.worst
        assert len(worst) == 7
        assert all(labels[row.row] == row.key["label"] and row.file == str(digits[1]) for row in worst)
        assert [row.error for row in worst if row.agrees] == sorted(
            (row.error for row in worst if row.agrees), reverse=True
        )

    def test_half_precision_is_near(self, digits: tuple[Path, Path]) -> None:
        found = compare(digits, precision_b="fp16")
        assert found.outcome.rows == found.samples == 1797
        assert found.parity.top1_agreement == 1.0
        assert 1e-5 < found.parity.relative_error < 5e-3

    def test_a_copy_with_a_scaled_weight_parts_there(self, digits: tuple[Path, Path], place: Path) -> None:
        broken = scaled(digits[0], "conv2.weight", 1.5, place / "broken.onnx")
        found = compare(digits, broken, per_layer=True, samples=200)
        first = next(layer for layer in found.layers if layer.relative_error)
        assert (first.tensor, first.suspects, found.worst_layers[0]) == ("conv2.out", ("conv2",), first)

    def test_a_quantized_file_is_compared_layer_by_layer(
        self, digits: tuple[Path, Path], place: Path, table: Callable[..., Path]
    ) -> None:
        ranges = CalibrationTable.decode(table({"relu1.out": 0.01}).read_bytes(), "table.json")
        onnx.save(quantize(load_model(digits[0]).proto, ranges), place / "int8.onnx")
        found = compare(digits, place / "int8.onnx", per_layer=True, samples=200)
        assert found.worst_layers[0].suspects == ("conv2",)

    def test_an_absurd_range_is_found_and_what_to_exclude_with_it(
        self, digits: tuple[Path, Path], table: Callable[..., Path]
    ) -> None:
        options: dict[str, Any] = {"precision_b": "int8", "table": table({"relu1.out": 0.001})}
        found = compare(digits, suggest_exclude=True, max_drop=0.02, per_layer=True, **options)
        assert found.suggestion is not None
        assert (found.suggestion.exclude, found.suggestion.passes) == (("conv2",), True)
        assert found.worst_layers[0].suspects == ("conv2",)
        assert found.samples == 500
        with pytest.raises(ParityError, match=r"digits.onnx in int8 loses 0\.\d+, more than --max-drop 0.02"):
            found.require()
        again = compare(digits, exclude=found.suggestion.exclude, max_drop=0.02, samples=500, **options)
        again.require()
        assert again.parity == found.suggestion.after

    def test_an_interrupted_comparison_goes_on(self, digits: tuple[Path, Path], place: Path) -> None:
        spec = CompareSpec.of(
            {
                "model_a": digits[0],
                "model_b": digits[0],
                "data": digits[1],
                "precision_b": "fp16",
                "batch_size": 16,
                "actors": 1,
                "normalize": NORMALIZE,
            }
        )
        with pytest.raises(KeyboardInterrupt):
            run_compare(spec, StopsAfter(2))
        assert list((place / "cache" / "comparison").iterdir())
        resumed, whole = run_compare(spec), run_compare(spec)
        assert resumed.outcome.units_before >= 2
        assert whole.outcome.units_before == 0
        assert resumed.comparison.encode() == whole.comparison.encode()
        assert not (place / "cache" / "comparison").exists()

    def test_another_run_that_ends_and_removes_what_both_knew_changes_nothing(
        self, digits: tuple[Path, Path], place: Path
    ) -> None:
        options = {"model_a": digits[0], "model_b": digits[0], "data": digits[1], "precision_b": "fp16"}
        spec = CompareSpec.of({**options, "batch_size": 16, "actors": 1, "normalize": NORMALIZE})
        told = EndsMeanwhile(place / "cache")
        again, whole = run_compare(spec, told), run_compare(spec)
        assert told.removed
        assert [line for line in told.lines if "beginning again" in line]
        assert again.comparison.encode() == whole.comparison.encode()
        assert again.outcome.units_before == 0
        assert not (place / "cache" / "comparison").exists()

    def test_rows_that_cannot_be_fed_do_not_count(self, digits: tuple[Path, Path], place: Path) -> None:
        rows = pq.read_table(digits[1]).slice(0, 40)
        images = [None if i in (3, 20) else image for i, image in enumerate(rows["image"].to_pylist())]
        field = rows.schema.field("image").with_nullable(True)
        column = pa.array(images, field.type)
        data = rows.set_column(rows.schema.get_field_index("image"), field, column)
        pq.write_table(data, place / "holes.parquet")
        found = compare((digits[0], place / "holes.parquet"), precision_b="fp16")
        assert (found.outcome.rows, found.outcome.bad_rows) == (38, 2)
        assert "row 3 of " in found.outcome.bad[0]

    def test_a_fixed_batch_size_is_filled_up_and_only_real_rows_count(self, place: Path) -> None:
        for batch in (4, "N"):
            convolutional(place / f"{batch}.onnx", batch)
        write_images(place / "data", rows=(7, 3))
        options: dict[str, Any] = {"normalize": "128:64", "layout": "nhwc", "per_layer": True, "actors": 1}
        found = trtfleet.compare(place / "4.onnx", place / "N.onnx", place / "data", **options)
        assert (found.outcome.rows, found.batch_size) == (10, 4)
        assert found.comparison.outputs[0].difference.count == 10 * 5
        assert found.comparison.layers["c"].count == 10 * 4 * 8 * 8
        assert found.parity.relative_error < 1e-6

    def test_inputs_and_outputs_of_other_names_match_in_order(
        self, digits: tuple[Path, Path], place: Path
    ) -> None:
        proto = onnx.load(digits[0])
        for value, name in ((proto.graph.input[0], "picture"), (proto.graph.output[0], "scores")):
            for node in proto.graph.node:
                for names in (node.input, node.output):
                    names[:] = [name if one == value.name else one for one in names]
            value.name = name
        onnx.save(proto, place / "renamed.onnx")
        found = compare(digits, place / "renamed.onnx", input="image=image", samples=50)
        (output,) = found.comparison.outputs
        assert (output.pair.a, output.pair.b, output.difference.relative_error) == ("logits", "scores", 0.0)
        assert found.comparison.worst == ()

    def test_the_command_prints_writes_a_report_and_exits_with_17(
        self,
        digits: tuple[Path, Path],
        table: Callable[..., Path],
        place: Path,
        command: Callable[..., Ran],
    ) -> None:
        model, data = digits
        spec = CompareSpec(
            model_a=str(model), model_b=str(model), data=(str(data),), normalize=NORMALIZE, precision_b="int8"
        )
        found = CalibrationTable.decode(table({"relu1.out": 0.001}).read_bytes(), "table.json")
        TableStore(None).put(replace(found, feed=feed_identity(spec.feeding)))
        words = ["compare", model, model, data, "--normalize", NORMALIZE, "--precision-b", "int8"]
        words += ["--samples", "300", "--actors", "1"]
        ran = command(*words, "--max-drop", "0.1", "--per-layer", "--suggest-exclude", "--report", "c.html")
        assert ran.code == 17
        assert "--exclude conv2" in ran.stdout
        assert ran.stderr.splitlines()[-2].startswith("error: digits.onnx in int8 loses 0.")
        assert "conv2.out" in (place / "c.html").read_text()
        ran = command(*words, "--json", "--exclude", "conv2", "--max-drop", "0.1", "--worst", "0")
        assert ran.code == 0
        values = json.loads(ran.stdout)
        assert values["top1_agreement"] > 0.9
        assert (values["outputs"][0]["answers"], values["worst"]) == ("top-1", [])


def test_a_table_is_not_judged_on_the_rows_it_was_made_from(
    digits: tuple[Path, Path], table: Callable[..., Path]
) -> None:
    made = CalibrationTable.decode(table().read_bytes(), "table.json")
    options: dict[str, Any] = {
        "model_a": digits[0],
        "model_b": digits[0],
        "data": digits[1],
        "normalize": NORMALIZE,
        "precision_b": "int8",
        "table": "table.json",
        "suggest_exclude": True,
    }
    plan = make_compare_plan(CompareSpec.of(options))
    own = sample_rows(plan.dataset.rows, len(plan.rows), made.seed)
    assert plan.seed == made.seed + 1
    # As many as chance has it: 500 of 1,797, of 500.
    assert len(set(own) & set(plan.rows)) < 0.4 * len(plan.rows)
    given = make_compare_plan(CompareSpec.of({**options, "seed": made.seed}))
    assert given.rows.tolist() == own.tolist()


def test_without_a_table_the_command_that_makes_one_is_told(digits: tuple[Path, Path], place: Path) -> None:
    with pytest.raises(CalibrationError, match="has no calibration table") as raised:
        compare(digits, precision_b="int8")
    line = raised.value.hint.partition("make one: ")[2].partition(";")[0]
    words = shlex.split(line)
    assert words[:4] == ["trtfleet", "calibrate", *map(str, digits)]
    assert words[words.index("--normalize") + 1] == NORMALIZE


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "compared with itself"),
        ({"precision_b": "fp16", "suggest_exclude": True}, "what not to quantize"),
        ({"precision_b": "fp16", "per_layer": True, "backend": "tensorrt"}, "does not show inner tensors"),
        ({"precision_b": "fp16", "table": "t.json"}, "in int8 only"),
        ({"precision_b": "fp16", "samples": 0}, "samples must be >= 1"),
        ({"precision_b": "fp16", "worst": -1}, "worst must be >= 0"),
        ({"precision_b": "fp16", "max_drop": -0.1}, "max_drop must be >= 0"),
        ({"precision_b": "fp16", "per_layer": 1}, "per_layer must be true or false"),
        ({"precision_b": "fp16", "depth": 1}, "unknown option 'depth'"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    digits: tuple[Path, Path], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        compare(digits, **options)


def test_a_quantized_model_cannot_be_quantized_otherwise(
    digits: tuple[Path, Path], place: Path, table: Callable[..., Path]
) -> None:
    ranges = CalibrationTable.decode(table().read_bytes(), "table.json")
    onnx.save(quantize(load_model(digits[0]).proto, ranges), place / "int8.onnx")
    with pytest.raises(UsageError, match="already quantized, and a suggestion"):
        compare(digits, place / "int8.onnx", precision_b="int8", suggest_exclude=True)


def test_models_that_do_not_correspond_are_named(
    digits: tuple[Path, Path], linear_model: Callable[..., Path], vectors: Callable[..., Path]
) -> None:
    with pytest.raises(MismatchError, match=r"one takes image: .*; the other x: "):
        compare(digits, linear_model())
    few, many = linear_model(outputs=2, name="few.onnx"), linear_model(outputs=3, name="many.onnx")
    with pytest.raises(MismatchError, match=r"few.onnx has y: .*; \S*many.onnx has y: "):
        trtfleet.compare(few, many, vectors())


def test_data_without_rows_is_refused(digits: tuple[Path, Path], place: Path) -> None:
    pq.write_table(pq.read_table(digits[1]).slice(0, 0), place / "empty.parquet")
    with pytest.raises(EmptyDatasetError):
        compare((digits[0], place / "empty.parquet"), precision_b="fp16")
