"""``trtfleet quantize`` as a user runs it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from trtfleet.errors import CalibrationError, ModelError, OutputError, UsageError
from trtfleet.tests.trt_actors.quantization.networks import block, feeds_of, table_of
from trtfleet.trt_actors.model import load_file
from trtfleet.trt_actors.reference import compute

Command = Callable[..., Any]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "block.onnx"
    onnx.save(block(downsample=True), str(path))
    return path


@pytest.fixture
def table(model: Path, tmp_path: Path) -> Path:
    loaded = load_file(model)
    path = tmp_path / "table.json"
    path.write_bytes(table_of(loaded.proto, loaded.digest).encode())
    return path


def test_it_writes_a_model_that_runs(model: Path, table: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "int8.onnx"
    ran = command("quantize", model, "--table", table, "-o", out)
    assert ran.code == 0, ran.stderr
    assert "int8: 3 of 3 Conv; 1 shortcuts of additions; 3 activations" in ran.stdout
    assert f"ranges: minmax, from {table}" in ran.stdout
    int8 = onnx.load(str(out))
    onnx.checker.check_model(int8, full_check=True)
    feeds = feeds_of(int8)
    wanted, found = compute(block(downsample=True), feeds, ["y"])["y"], compute(int8, feeds, ["y"])["y"]
    assert np.abs(wanted - found).max() < 0.03 * np.abs(wanted).max()


def test_json_says_what_was_done(model: Path, table: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "int8.onnx"
    ran = command("quantize", model, "--table", table, "-o", out, "--exclude", "conv[12]", "--json")
    said = json.loads(ran.stdout)
    assert said["quantized"] == {"Conv": 1}
    assert said["multiplying"] == {"Conv": 3}
    assert sorted(said["excluded"]) == ["conv1", "conv2"]
    assert said["bytes_after"] == out.stat().st_size
    assert said["method"] == "minmax"


def test_the_same_command_gives_the_same_bytes(
    model: Path, table: Path, tmp_path: Path, command: Command
) -> None:
    for name in ("a.onnx", "b.onnx", "a.onnx"):
        assert command("quantize", model, "--table", table, "-o", tmp_path / name).code == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a.onnx", "b.onnx", "block.onnx", "table.json"]


def test_the_result_builds_in_int8(model: Path, table: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "int8.onnx"
    assert command("quantize", model, "--table", table, "-o", out).code == 0
    ran = command("build", out, "--precision", "int8", "--cache", tmp_path / "c", "--json")
    assert ran.code == 0, ran.stderr
    assert [s["kind"] for s in json.loads(ran.stdout)["partition"]["segments"]] == ["tensorrt"]


def test_a_quantized_model_is_not_quantized_again(
    model: Path, table: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "int8.onnx"
    assert command("quantize", model, "--table", table, "-o", out).code == 0
    again = tmp_path / "again.json"
    loaded = load_file(out)
    made = table_of(block(downsample=True), loaded.digest)
    again.write_bytes(made.encode())
    ran = command("quantize", out, "--table", again, "-o", tmp_path / "twice.onnx")
    assert ran.code == ModelError.exit_code
    assert "already quantized" in ran.stderr
    assert not (tmp_path / "twice.onnx").exists()


def test_the_table_of_another_model(model: Path, table: Path, tmp_path: Path, command: Command) -> None:
    other = tmp_path / "other.onnx"
    onnx.save(block(), str(other))
    ran = command("quantize", other, "--table", table, "-o", tmp_path / "int8.onnx")
    assert ran.code == CalibrationError.exit_code
    assert load_file(model).digest[:12] in ran.stderr
    assert load_file(other).digest[:12] in ran.stderr
    assert not (tmp_path / "int8.onnx").exists()


def test_a_table_that_lacks_a_tensor(model: Path, table: Path, tmp_path: Path, command: Command) -> None:
    loaded = load_file(model)
    whole = table_of(loaded.proto, loaded.digest)
    part = dataclasses.replace(whole, tensors={"start": whole.tensors["start"]})
    table.write_bytes(part.encode())
    ran = command("quantize", model, "--table", table, "-o", tmp_path / "int8.onnx")
    assert ran.code == CalibrationError.exit_code
    assert "no range for 2 of 3 tensors" in ran.stderr


@pytest.mark.parametrize("what", ["model", "table"])
def test_its_inputs_are_never_overwritten(
    what: str, model: Path, table: Path, tmp_path: Path, command: Command
) -> None:
    path = {"model": model, "table": table}[what]
    link = tmp_path / "link.onnx"
    link.symlink_to(path)
    before = path.read_bytes()
    for out in (path, link):
        ran = command("quantize", model, "--table", table, "-o", out)
        assert ran.code == UsageError.exit_code
        assert f"is the {what} itself" in ran.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot be read"), (b"{}", "no calibration table"), (b"\xff\x00", "no calibration table")],
)
def test_a_table_that_is_none(
    content: bytes | None, words: str, model: Path, tmp_path: Path, command: Command
) -> None:
    path = tmp_path / "t.json"
    if content is not None:
        path.write_bytes(content)
    ran = command("quantize", model, "--table", path, "-o", tmp_path / "int8.onnx")
    assert ran.code == CalibrationError.exit_code
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_place_that_cannot_be_written(model: Path, table: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for out in (tmp_path / "file" / "int8.onnx", tmp_path / "folder", tmp_path / "none" / "int8.onnx"):
        ran = command("quantize", model, "--table", table, "-o", out)
        assert ran.code == OutputError.exit_code, ran.stderr
        assert "cannot be written" in ran.stderr
    assert sorted(os.listdir(tmp_path)) == ["block.onnx", "file", "folder", "table.json"]


def test_an_unknown_exclusion_names_what_is_near(
    model: Path, table: Path, tmp_path: Path, command: Command
) -> None:
    ran = command("quantize", model, "--table", table, "-o", tmp_path / "int8.onnx", "--exclude", "conv7")
    assert ran.code == UsageError.exit_code
    assert "conv1" in ran.stderr
    assert not (tmp_path / "int8.onnx").exists()
