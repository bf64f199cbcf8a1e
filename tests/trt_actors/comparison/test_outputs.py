"""Which outputs are compared, which rows agree, and which are the worst."""

from __future__ import annotations

import math

import numpy as np
import pytest
from trtfleet.datasets.signature import TensorSpec
from trtfleet.errors import CacheError, EmptyDatasetError, MismatchError, ParityError
from trtfleet.trt_actors.calibration.statistics import TensorStatistics
from trtfleet.trt_actors.comparison.comparison import Comparison
from trtfleet.trt_actors.comparison.outputs import OutputDifference, OutputPair, pair_outputs, quantile
from trtfleet.trt_actors.comparison.parity import Parity
from trtfleet.trt_actors.comparison.worst import WorstRow, choose_worst, keep_worst, plain_key

FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)
SCORES = OutputPair(a="y", b="y", answers="top-1")


def spec(name: str, *shape: int | str, dtype: np.dtype = FLOAT) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, row_shape=shape)


def batch(rows: int, seed: int = 0, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    a = random.normal(size=(rows, 4)).astype(np.float32)
    return a, (a + noise * random.normal(size=a.shape)).astype(np.float32)


def compared(a: np.ndarray, b: np.ndarray, pair: OutputPair = SCORES) -> Comparison:
    return Comparison.of_batch([pair], {pair.a: a}, {pair.b: b})[0]


def test_outputs_pair_by_name_whatever_their_order() -> None:
    pairs = pair_outputs((spec("p", 3), spec("q", 5)), (spec("q", 5), spec("p", 3)))
    assert [(pair.a, pair.b) for pair in pairs] == [("p", "p"), ("q", "q")]


def test_outputs_of_other_names_pair_in_order() -> None:
    (pair,) = pair_outputs((spec("p", 3),), (spec("q", 3),))
    assert (pair.a, pair.b) == ("p", "q")


def test_further_outputs_of_the_second_are_left_alone() -> None:
    (pair,) = pair_outputs((spec("p", 3),), (spec("more", 9), spec("p", 3)))
    assert pair.b == "p"


@pytest.mark.parametrize(
    "other", [(spec("q", 4),), (spec("q", 3), spec("r", 3)), (spec("p", 3, dtype=INT),), (spec("p", 3, 1),)]
)
def test_outputs_that_do_not_correspond_are_named(other: tuple[TensorSpec, ...]) -> None:
    with pytest.raises(MismatchError, match=rf"a.onnx has p: .*; b.onnx has {other[0].name}: "):
        pair_outputs((spec("p", 3),), other, ("a.onnx", "b.onnx"))


def test_only_vectors_of_floats_score_classes() -> None:
    outputs = (spec("p", 3), spec("one", 1), spec("open", "L"), spec("map", 3, 8), spec("ids", 3, dtype=INT))
    answers = [pair.answers for pair in pair_outputs(outputs, outputs)]
    assert answers == ["top-1", "none", "none", "none", "equal"]


def test_agreement_counts_rows_with_the_same_largest_score() -> None:
    a, b = batch(500)
    (found,) = compared(a, b).outputs
    assert found.agreed == (a.argmax(1) == b.argmax(1)).sum() < 500
    assert found.agreement == found.agreed / 500


def test_a_broken_score_is_no_answer() -> None:
    a = np.array([[1, 2], [1, 2], [math.nan, 1]], np.float32)
    b = np.array([[1, 2], [1, math.nan], [math.nan, 1]], np.float32)
    found, errors = OutputDifference.of(SCORES, a, b)
    assert errors.agrees.tolist() == [True, False, True]
    assert errors.relative.tolist() == [0.0, math.inf, 0.0]
    assert (found.errors.non_finite, found.row_errors.non_finite) == (1, 1)


def test_whole_numbers_agree_when_all_are_equal() -> None:
    pair = OutputPair(a="y", b="z", answers="equal")
    found, _ = OutputDifference.of(pair, np.array([[1, 2], [3, 4]]), np.array([[1, 2], [3, 5]]))
    assert found.agreed == 1


def test_row_errors_are_those_of_numpy() -> None:
    a, b = batch(200)
    _, errors = OutputDifference.of(SCORES, a, b)
    x, y = a.astype(np.float64), b.astype(np.float64)
    assert errors.relative == pytest.approx(np.linalg.norm(x - y, axis=1) / np.linalg.norm(x, axis=1))


def test_quantiles_are_within_a_bin() -> None:
    values = np.random.default_rng(1).random(1001).astype(np.float32)
    statistics = TensorStatistics.of(values)
    for share in (0.1, 0.5, 0.99):
        wanted = np.quantile(values, share, method="inverted_cdf")
        assert wanted <= quantile(statistics, share) <= wanted + statistics.histogram.bin_width
    assert quantile(statistics, 1.0) == values.max()


def test_infinite_errors_are_the_largest_and_zeros_the_smallest() -> None:
    statistics = TensorStatistics.of(np.array([0, 0, 1, math.inf], np.float32))
    assert [quantile(statistics, share) for share in (0.5, 0.75, 1)] == [0.0, 1.0, math.inf]


def test_shapes_that_differ_after_all_are_refused() -> None:
    with pytest.raises(MismatchError, match=r"\[2, 3\] .* \[2, 4\]"):
        OutputDifference.of(SCORES, np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32))


def test_any_division_into_batches_gives_the_same_bytes() -> None:
    parts = [batch(50, seed) for seed in range(4)]
    found = [compared(a, b) for a, b in parts]
    forward = Comparison.merged(found, [SCORES], 5)
    backward = found[3].merge(found[2], 5).merge(found[1].merge(found[0], 5), 5)
    assert forward.encode() == backward.encode()
    assert Comparison.decode(forward.encode()) == forward


@pytest.mark.parametrize("damage", [b"", b"nothing of ours", compared(*batch(3)).encode()[:-9]])
def test_damaged_bytes_are_refused(damage: bytes) -> None:
    with pytest.raises(CacheError, match="unit-1 is damaged"):
        Comparison.decode(damage, "unit-1")


def row(position: int, error: float, agrees: bool = True) -> WorstRow:
    place = {"position": position, "file": "f", "row": position, "key": {}}
    return WorstRow(**place, output="y", error=error, agrees=agrees, answers=None)


def test_other_answers_are_worse_than_errors_and_ties_go_to_the_first_row() -> None:
    rows = [row(4, 0.5), row(2, 0.9), row(3, 0.1, agrees=False), row(1, 0.5), row(0, math.inf)]
    for order in (rows, rows[::-1]):
        assert [found.position for found in keep_worst(order, 4)] == [3, 0, 2, 1]


def test_rows_without_error_are_never_the_worst() -> None:
    a = np.eye(3, 4, dtype=np.float32)
    b = a.copy()
    b[1] *= 2
    _, errors = OutputDifference.of(SCORES, a, b)
    assert choose_worst([errors], 3) == [(1, 0, True, 1.0)]


def test_keys_become_what_json_holds() -> None:
    key = plain_key({"id": 3, "name": "x" * 999, "raw": b"\x01\xff", "odd": math.nan, "none": None})
    assert key == {"id": 3, "name": "x" * 200, "raw": "01ff", "odd": "nan", "none": None}


def test_parity_is_that_of_the_output_that_loses_most() -> None:
    a, b = batch(100)
    other = OutputPair(a="z", b="z", answers="none")
    both = Comparison.of_batch([SCORES, other], {"y": a, "z": a}, {"y": a, "z": b})[0]
    parity = Parity.of(both)
    assert parity.top1_agreement == 1.0
    assert parity.relative_error == compared(a, b).outputs[0].difference.relative_error
    assert parity.drop == 0.0


def test_without_answers_the_drop_is_the_relative_error() -> None:
    a, b = batch(100)
    parity = Parity.of(compared(a, b, OutputPair(a="y", b="y", answers="none")))
    assert parity.drop == parity.relative_error > 0.1
    with pytest.raises(ParityError, match=r"int8 loses 0\.\d+, more than --max-drop 0.1: relative error"):
        parity.require(0.1, "int8")


def test_the_limit_itself_is_allowed() -> None:
    parity = Parity(top1_agreement=297 / 300, relative_error=9.0, rows=300)
    parity.require(0.01, "int8")
    assert parity.sentence == "99.00% of 300 rows have the same answer; relative error 9"
    with pytest.raises(ParityError, match=r"loses 0.0133"):
        Parity(top1_agreement=296 / 300, relative_error=0.0, rows=300).require(0.01, "int8")


def test_nothing_compared_has_no_parity() -> None:
    with pytest.raises(EmptyDatasetError):
        Parity.of(Comparison.empty([SCORES]))
