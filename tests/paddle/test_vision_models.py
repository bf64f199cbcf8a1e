"""Networks of ``paddle.vision`` with random weights against Paddle itself; scripts/test-paddle runs this."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from trtfleet.errors import ModelError
from trtfleet.trt_actors.model import load_model
from trtfleet.trt_actors.paddle import Converter, convert_paddle, installed_converter
from trtfleet.trt_actors.partition.partitioner import partition_model
from trtfleet.trt_actors.partition.support import ParserProcess

_MISSING = [name for name in ("paddle", "paddle2onnx", "tensorrt_rtx") if find_spec(name) is None]
if _MISSING:
    pytest.skip(
        f"not installed here: {', '.join(_MISSING)}; run scripts/test-paddle", allow_module_level=True
    )

NETWORKS = [
    "alexnet",
    "googlenet",
    "mobilenet_v1",
    "resnet50",
    "resnet101",
    "resnext50_32x4d",
    "vgg16",
    "inception_v3",
]

# Of a batch's largest value. Both sides compute in float32 but add in different orders, and random networks
# amplify what that changes: noise of 1e-6 in ResNet-101's input moves its output by 1.5e-4, and the two sides
# differ by up to 1e-4 there, by 1e-6 in the shallow ones. A mistake in one layer shows in the first digits.
TOLERANCE = 1e-3


@pytest.fixture
def export(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Makes a Paddle model in a folder of its own, deleted after the test: some have half a gigabyte."""
    folders: list[Path] = []

    def make(network: str, seed: int = 0, *, program_format: bool = False) -> Path:
        folder = tmp_path / f"{network}-{seed}-{len(folders)}"
        folder.mkdir()
        folders.append(folder)
        environment = {**os.environ, "FLAGS_enable_pir_api": "0"} if program_format else None
        command = [
            sys.executable,
            str(Path(__file__).with_name("export.py")),
            network,
            str(folder),
            str(seed),
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return folder

    yield make
    for folder in (*folders, tmp_path / "cache"):
        shutil.rmtree(folder, ignore_errors=True)


def assert_equals_paddle(onnx_file: Path, folder: Path) -> None:
    """Compares ONNX Runtime with what Paddle computed, for a batch of one and of two."""
    session = ort.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    [image] = session.get_inputs()
    with np.load(folder / "expected.npz") as expected:
        for rows in (1, 2):
            results = session.run(None, {image.name: expected[f"x{rows}"]})
            wanted = [expected[f"y{rows}_{place}"] for place in range(len(results))]
            assert f"y{rows}_{len(results)}" not in expected
            for result, right in zip(results, wanted, strict=True):
                assert result.shape == right.shape
                assert result.dtype == right.dtype == np.float32
                assert np.ptp(right) > 0
                np.testing.assert_allclose(result, right, rtol=0, atol=TOLERANCE * np.abs(right).max())


@pytest.mark.parametrize("network", NETWORKS)
def test_converts_equals_paddle_and_is_one_tensorrt_segment(
    export: Callable[..., Path], tmp_path: Path, network: str
) -> None:
    folder = export(network)
    onnx_file = convert_paddle(folder, tmp_path / "cache")
    assert_equals_paddle(onnx_file, folder)
    model = load_model(onnx_file)
    [image] = model.inputs
    assert image.name == "image"
    assert image.row_shape[0] == 3
    assert model.batch is None
    assert model.unbatched_outputs == ()
    assert {output.row_shape for output in model.outputs} == {(1000,)}
    with ParserProcess("tensorrt-rtx") as query:
        partition = partition_model(model.proto, query, flavour="tensorrt-rtx")
    assert partition.is_whole, partition.lines()
    assert partition.native == ()


def test_the_older_program_format_converts_too(export: Callable[..., Path], tmp_path: Path) -> None:
    folder = export("tiny", program_format=True)
    assert (folder / "inference.pdmodel").is_file()
    onnx_file = convert_paddle(folder / "inference.pdmodel", tmp_path / "cache")
    assert_equals_paddle(onnx_file, folder)


def test_the_same_model_is_converted_once(export: Callable[..., Path], tmp_path: Path) -> None:
    folder = export("tiny")
    result = convert_paddle(folder, tmp_path / "cache")
    fails = Converter(command=("false",), version=installed_converter().version)
    assert convert_paddle(folder / "inference.json", tmp_path / "cache", fails) == result
    with pytest.raises(ModelError):
        convert_paddle(folder, tmp_path / "other cache", fails)


def test_conversion_gives_the_same_bytes_again(export: Callable[..., Path], tmp_path: Path) -> None:
    folder = export("mobilenet_v1")
    first, second = (convert_paddle(folder, tmp_path / "cache" / name) for name in "ab")
    assert first != second
    assert first.read_bytes() == second.read_bytes()


def test_changed_parameters_are_converted_anew(export: Callable[..., Path], tmp_path: Path) -> None:
    folder, other = export("tiny"), export("tiny", seed=1)
    first = convert_paddle(folder, tmp_path / "cache")
    shutil.copy(other / "inference.pdiparams", folder)
    second = convert_paddle(folder, tmp_path / "cache")
    assert first != second
    assert_equals_paddle(second, other)
    with pytest.raises(AssertionError):
        assert_equals_paddle(first, other)


def test_an_operator_that_does_not_convert_is_one_clear_error(
    export: Callable[..., Path], tmp_path: Path
) -> None:
    refused(export("unknown"), tmp_path, "killed by SIGABRT: Due to the unsupported operators")


def test_damage_that_only_paddle2onnx_notices(export: Callable[..., Path], tmp_path: Path) -> None:
    folder = export("tiny")
    (folder / "inference.json").write_text('{"base_code": {"magic": "pir", "version": 4}, "program": {}}')
    refused(folder, tmp_path, "Failed to convert PaddlePaddle model: ")
    folder = export("tiny", program_format=True)
    (folder / "inference.pdmodel").write_text("hello")
    refused(folder, tmp_path, "Failed to parse program_desc")


@pytest.mark.parametrize("program_format", [False, True], ids=["json", "pdmodel"])
def test_truncated_parameters_are_refused(
    export: Callable[..., Path], tmp_path: Path, program_format: bool
) -> None:
    folder = export("tiny", program_format=program_format)
    parameters = folder / "inference.pdiparams"
    parameters.write_bytes(parameters.read_bytes()[:-1])
    refused(folder, tmp_path, "inference.pdiparams is truncated: its tensor 3 ends at byte")


def refused(folder: Path, tmp_path: Path, part: str) -> None:
    cache = tmp_path / "refusing cache"
    with pytest.raises(ModelError) as caught:
        convert_paddle(folder, cache)
    assert part in caught.value.fact
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert not cache.exists() or not list(cache.iterdir())
