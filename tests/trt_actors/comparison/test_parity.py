"""Two networks on a few rows, in this process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trtfleet.errors import BackendError, EmptyDatasetError, MismatchError, ModelError
from trtfleet.tests.trt_actors.comparison.networks import (
    SETTINGS,
    images_of,
    int8_of,
    outputs_of,
    prepared,
    scaled,
    table_of,
)
from trtfleet.trt_actors.comparison.parity import parity
from trtfleet.trt_actors.comparison.runner import EngineRunner, SessionRunner, match_inputs
from trtfleet.trt_actors.graph import prepare
from trtfleet.trt_actors.model import load_model


def feeds(images: np.ndarray, size: int = 32) -> list[Mapping[str, np.ndarray]]:
    return [{"image": images[start : start + size]} for start in range(0, len(images), size)]


def test_a_network_is_on_par_with_itself(digits: tuple[Path, Path]) -> None:
    model, images = prepared(digits[0]), images_of(digits[1])
    found = parity(model, model, feeds(images), settings=SETTINGS)
    assert (found.top1_agreement, found.relative_error, found.drop, found.rows) == (1.0, 0.0, 0.0, 200)


def test_int8_loses_little_and_what_numpy_says(digits: tuple[Path, Path]) -> None:
    model, images = load_model(digits[0]), images_of(digits[1])
    first, second = prepare(model), int8_of(model, table_of(model, images))
    found = parity(first, second, feeds(images), backend="onnxruntime-cpu", settings=SETTINGS)
    a, b = outputs_of(first, images), outputs_of(second, images)
    assert found.relative_error == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-3)
    assert found.top1_agreement == (a.argmax(1) == b.argmax(1)).mean()
    assert 0 < found.relative_error < 0.05


def test_an_absurd_range_loses_much(digits: tuple[Path, Path]) -> None:
    model, images = load_model(digits[0]), images_of(digits[1])
    int8 = int8_of(model, table_of(model, images, {"relu1.out": 0.001}))
    assert parity(prepare(model), int8, feeds(images), settings=SETTINGS).drop > 0.5


def test_a_scaled_network_answers_alike_with_an_error(digits: tuple[Path, Path], tmp_path: Path) -> None:
    other = prepared(scaled(digits[0], "fc.weight", 1.01, tmp_path / "other.onnx"))
    found = parity(prepared(digits[0]), other, feeds(images_of(digits[1])), settings=SETTINGS)
    assert found.drop < 0.01 < 2 * found.relative_error


def test_no_rows_are_no_parity(digits: tuple[Path, Path]) -> None:
    model = prepared(digits[0])
    with pytest.raises(EmptyDatasetError):
        parity(model, model, [], settings=SETTINGS)


def test_both_runners_agree_bit_for_bit(digits: tuple[Path, Path]) -> None:
    model, images = prepared(digits[0]), images_of(digits[1])
    with EngineRunner("onnxruntime-cpu", model, SETTINGS) as runner:
        found = runner.run({"image": images}).outputs["logits"]
        assert np.array_equal(found, outputs_of(model, images))


def test_what_does_not_run_is_said(digits: tuple[Path, Path]) -> None:
    wrong = {"image": np.zeros((2, 1, 9, 9), np.float32)}
    for runner in (
        EngineRunner("onnxruntime-cpu", prepared(digits[0]), SETTINGS),
        SessionRunner("onnxruntime-cpu", prepared(digits[0])),
    ):
        with runner, pytest.raises(ModelError, match="does not run on a batch"):
            runner.run(wrong)


def test_cuda_that_is_not_there_is_refused(
    digits: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trtfleet.trt_actors.comparison.runner.cuda_missing", lambda: "no GPU")
    with pytest.raises(BackendError, match="onnxruntime-cuda is not available: no GPU"):
        SessionRunner("onnxruntime-cuda", prepared(digits[0]))


def test_inputs_match_by_name_else_in_order(digits: tuple[Path, Path]) -> None:
    (image,) = prepared(digits[0]).inputs
    other = replace(image, name="picture")
    assert match_inputs([image], [other]) == {"image": "picture"}
    assert match_inputs([image, other], [other, image]) == {"image": "image", "picture": "picture"}
    for wrong in (
        [],
        [image, other],
        [replace(image, row_shape=(3, 8, 8))],
        [replace(image, dtype=np.dtype("u1"))],
    ):
        with pytest.raises(MismatchError, match=r"cannot be fed alike: one takes image: "):
            match_inputs([image], wrong)
