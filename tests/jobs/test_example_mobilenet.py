"""The commands of examples/mobilenet do what its README says, on smaller images."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
from trtfleet.tests.jobs.conftest import Ran
from trtfleet.trt_actors.calibration.table import CalibrationTable
from trtfleet.trt_actors.calibration.table_store import TableStore
from trtfleet.trt_actors.model import load_model
from trtfleet.trt_actors.quantization.quantize import quantize
from trtfleet.trt_actors.reference import compute

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "examples" / "mobilenet"
ROWS, SIZE = 60, 128


def commands_of(readme: Path) -> list[list[str]]:
    """The lines of its code blocks that call trtfleet, as words."""
    blocks = re.findall(r"^```\n(.*?)^```$", readme.read_text("utf-8"), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("trtfleet ")]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example's data in a folder to be in, with a cache of its own."""
    script = [sys.executable, str(EXAMPLE / "make_data.py")]
    sizes = ["--size", str(SIZE), "--rows", str(ROWS)]
    subprocess.run([*script, *sizes], cwd=tmp_path, check=True, timeout=60, stdout=subprocess.DEVNULL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRTFLEET_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_readme_has_the_three_commands() -> None:
    found = commands_of(EXAMPLE / "README.md")
    assert [words[0] for words in found] == ["score", "calibrate", "score"]
    assert found[2][-2:] == ["--precision", "int8"]


@pytest.mark.usefixtures("ray_session")
def test_the_commands_score_calibrate_and_score_in_int8_with_the_table_that_is_found(
    place: Path, command: Callable[..., Ran]
) -> None:
    plain, calibrate, int8 = commands_of(EXAMPLE / "README.md")
    ran = command(*plain)
    assert ran.code == 0, ran.stderr
    before = pq.read_table(place / "out-fp32")
    assert before["id"].to_pylist() == list(range(ROWS))

    ran = command(*calibrate)
    assert ran.code == 0, ran.stderr
    assert f"28 ranges by entropy from {ROWS} rows" in ran.stdout
    model = load_model(place / "mobilenet.onnx")
    ((url, table),) = TableStore().all(model.digest)
    assert url in ran.stdout
    assert (table.samples, table.feed["normalize"]) == (ROWS, "imagenet")
    check_quantized(model.proto, table, images_of(place))

    ran = command(*int8)
    assert ran.code == 0, ran.stderr
    assert url in ran.stdout + ran.stderr
    after = pq.read_table(place / "out-int8")
    assert after.schema.names == before.schema.names
    assert after["id"].to_pylist() == before["id"].to_pylist()
    assert not after.equals(before)


def check_quantized(model: onnx.ModelProto, table: CalibrationTable, images: np.ndarray) -> None:
    """Checks that everything that multiplies is in INT8, and that the answers stay near."""
    quantized = quantize(model, table)
    kinds = [node.op_type for node in quantized.graph.node]
    # Of each of 27 convolutions and the classifier: weights and activations.
    assert kinds.count("QuantizeLinear") == 28
    assert kinds.count("DequantizeLinear") == 2 * 28
    exact, rounded = (logits(each, images) for each in (model, quantized))
    assert np.linalg.norm(rounded - exact) < 0.1 * np.linalg.norm(exact)


def images_of(place: Path) -> np.ndarray:
    """The first images as the network wants them."""
    rows = pq.read_table(place / "images")["image"].slice(0, 8).to_pylist()
    pixels = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, SIZE, SIZE, 3).astype(np.float32)
    mean = np.array([123.675, 116.28, 103.53], np.float32)
    deviation = np.array([58.395, 57.12, 57.375], np.float32)
    return np.ascontiguousarray(((pixels - mean) / deviation).transpose(0, 3, 1, 2))


def logits(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    return compute(model, {"image": images}, ["logits"])["logits"]
