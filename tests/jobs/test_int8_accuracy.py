"""INT8 keeps the accuracy of trained networks, on rows that neither training nor calibration has seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pyarrow.parquet as pq
import pytest
from trtfleet.benchmarks.digits.accuracy import (
    METHODS,
    NETWORKS,
    NORMALIZE,
    Digits,
    Score,
    calibrated,
    measure,
)
from trtfleet.tests.jobs.conftest import Ran
from trtfleet.trt_actors.calibration.table import CalibrationTable
from trtfleet.trt_actors.quantization.source import quantizable

MOST_LOST_POINTS = 0.5
REPOSITORY = Path(__file__).resolve().parents[2]
# With minmax a single outlier decides alone.
JUDGED = tuple(method for method in METHODS if method != "minmax")


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Score]:
    found = [score for name in NETWORKS for score in measure(name, tmp_path_factory.mktemp(name))]
    return {(score.network, score.method): score for score in found}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", JUDGED)
def test_int8_loses_at_most_half_a_point(
    scores: dict[tuple[str, str], Score], network: str, method: str
) -> None:
    score = scores[network, method]
    assert score.rows == 359
    assert score.fp32 >= 0.98 * score.rows
    assert score.loss_points <= MOST_LOST_POINTS, score


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_accuracy_is_the_one_that_the_documentation_states(
    scores: dict[tuple[str, str], Score], network: str, method: str
) -> None:
    # Which rows differ hangs on roundings of the CPU's arithmetic; a row more or less is the same statement.
    score = scores[network, method]
    text = (REPOSITORY / "docs" / "int8.md").read_text("utf-8")
    line = next(line for line in text.splitlines() if line.startswith(f"| {network} | {method} |"))
    stated = [int(cell.rpartition("(")[2].partition(")")[0]) for cell in line.split("|")[3:5]]
    assert stated[0] == score.fp32
    assert abs(stated[1] - score.int8) <= 1


def test_the_deeper_network_comes_with_batch_norms_that_quantization_merges() -> None:
    model = onnx.load(str(NETWORKS["deep"]))
    before = Counter(node.op_type for node in model.graph.node)
    assert before == {"Conv": 13, "BatchNormalization": 13, "Relu": 11, "Add": 5} | {
        "GlobalAveragePool": 1,
        "Flatten": 1,
        "Gemm": 1,
    }
    after = Counter(node.op_type for node in quantizable(model).graph.node)
    assert after == {op: count for op, count in before.items() if op != "BatchNormalization"}
    assert NETWORKS["deep"].stat().st_size < 300_000


@pytest.mark.usefixtures("ray_session")
def test_the_commands_make_the_same_table_and_a_model_as_accurate(
    tmp_path: Path,
    scores: dict[tuple[str, str], Score],
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., Ran],
) -> None:
    monkeypatch.setenv("TRTFLEET_CACHE", str(tmp_path / "cache"))
    digits = Digits.of("deep")
    pq.write_table(digits.train, tmp_path / "train.parquet", row_group_size=300)
    table, model = tmp_path / "table.json", tmp_path / "int8.onnx"

    options = ("--normalize", NORMALIZE, "--batch-size", 32, "--backend", "onnxruntime-cpu", "--actors", 2)
    ran = command("calibrate", digits.model, tmp_path / "train.parquet", "-o", table, *options)
    assert ran.code == 0, ran.stderr
    ran = command("quantize", digits.model, "--table", table, "-o", model)
    assert ran.code == 0, ran.stderr

    found = CalibrationTable.decode(table.read_bytes(), table.name)
    assert found.tensors == calibrated(digits, tmp_path, ["entropy"])["entropy"].tensors
    right = digits.predictions(onnx.load(str(model))) == digits.held_out["label"].to_numpy()
    assert right.sum() == scores["deep", "entropy"].int8
