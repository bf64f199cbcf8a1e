"""``build`` and ``partition`` in INT8, of a model in single precision: its table is found or given."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from trtfleet.errors import CalibrationError, UsageError
from trtfleet.tests.jobs.conftest import Ran
from trtfleet.tests.trt_actors.quantization.networks import block, table_of
from trtfleet.trt_actors.calibration.table import CalibrationTable
from trtfleet.trt_actors.calibration.table_store import TableStore
from trtfleet.trt_actors.model import load_file
from trtfleet.trt_actors.quantization.quantize import quantize

Command = Callable[..., Ran]

CONVOLUTIONS = 3


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "block.onnx"
    onnx.save(block(downsample=True), str(path))
    return path


@pytest.fixture
def table(model: Path) -> CalibrationTable:
    loaded = load_file(model)
    return table_of(loaded.proto, loaded.digest)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def build(model: Path, cache: Path, command: Command) -> Command:
    """Builds the model in int8, and gives the report as JSON or the error."""

    def run(*flags: str | Path) -> Ran:
        return command("build", model, "--precision", "int8", "--cache", cache, *flags)

    return run


def test_the_newest_table_kept_is_taken_and_named(
    build: Command, cache: Path, table: CalibrationTable
) -> None:
    store = TableStore(cache)
    store.put(table)
    newest = store.put(dataclasses.replace(table, seed=8))
    ran = build("--json")
    assert ran.code == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said["calibration"].endswith(f": {newest}")
    assert newest in ran.stderr
    assert [segment["kind"] for segment in said["partition"]["segments"]] == ["tensorrt"]
    (plan,) = said["plans"].values()
    assert sum(plan["types"].values()) == CONVOLUTIONS
    assert newest in build().stdout


def test_another_table_or_exclusion_is_another_engine(
    build: Command, cache: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    TableStore(cache).put(table)
    given = tmp_path / "given.json"
    given.write_bytes(dataclasses.replace(table, seed=8).encode())
    flags: list[tuple[str | Path, ...]] = [(), ("--table", given), ("--exclude", "conv1")]
    said = [json.loads(build("--json", *more).stdout) for more in flags]
    assert [one["how"] for one in said] == ["built"] * 3
    assert len({one["key"] for one in said}) == 3
    assert said[1]["calibration"].endswith(f": {given}")

    again = json.loads(build("--json", "--table", given).stdout)
    assert (again["how"], again["key"]) == ("found", said[1]["key"])


def test_without_a_table_the_hint_is_the_command(build: Command, model: Path, cache: Path) -> None:
    ran = build()
    assert (ran.code, ran.stdout) == (CalibrationError.exit_code, "")
    assert f"has no calibration table in {cache}" in ran.stderr
    assert f"trtfleet calibrate {model} DATA --cache {cache}; or say --table T.json" in ran.stderr
    assert not cache.exists()


def test_a_table_of_another_model_is_refused_by_digest(
    build: Command, model: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    other.write_bytes(dataclasses.replace(table, model="f" * 64).encode())
    ran = build("--table", other)
    assert ran.code == CalibrationError.exit_code
    assert "ffffffffffff" in ran.stderr
    assert load_file(model).digest[:12] in ran.stderr


def test_a_quantized_model_is_built_without_a_table(
    model: Path, table: CalibrationTable, cache: Path, tmp_path: Path, command: Command
) -> None:
    int8 = tmp_path / "int8.onnx"
    onnx.save(quantize(load_file(model).proto, table), str(int8))
    flags = ("--precision", "int8", "--cache", cache)
    ran = command("build", int8, *flags, "--json")
    assert ran.code == 0, ran.stderr
    assert json.loads(ran.stdout)["calibration"] == ""

    refused = command("build", int8, *flags, "--exclude", "conv1")
    assert refused.code == UsageError.exit_code
    assert "--exclude says nothing to it" in refused.stderr


def test_a_table_is_of_no_use_in_another_precision(model: Path, cache: Path, command: Command) -> None:
    ran = command("build", model, "--cache", cache, "--precision", "fp16", "--table", "t.json")
    assert ran.code == UsageError.exit_code
    assert "table is of use in int8 only, precision is fp16" in ran.stderr


def test_partition_shows_the_quantized_network(
    model: Path, table: CalibrationTable, cache: Path, tmp_path: Path, command: Command
) -> None:
    stored = TableStore(cache).put(table)
    flags = ("--precision", "int8", "--cache", cache)
    ran = command("partition", model, *flags, "--json", "--html", tmp_path / "p.html")
    assert ran.code == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said["calibration"].endswith(f": {stored}")
    plain = json.loads(command("partition", model, "--json").stdout)
    assert said["segments"][0]["nodes"] > plain["segments"][0]["nodes"]
    assert "QuantizeLinear" in (tmp_path / "p.html").read_text("utf-8")


def test_partition_points_to_the_plans_that_build_made(
    model: Path, table: CalibrationTable, build: Command, cache: Path, tmp_path: Path, command: Command
) -> None:
    TableStore(cache).put(table)
    assert build().code == 0
    saved = tmp_path / "t.onnx"
    ran = command("partition", model, "--precision", "int8", "--cache", cache, "--save", saved)
    assert ran.code == 0, ran.stderr
    (node,) = [node for node in onnx.load(str(saved)).graph.node if node.op_type == "EPContext"]
    (place,) = [a.s.decode() for a in node.attribute if a.name == "ep_cache_context"]
    assert Path(place).read_bytes()[:4] == b"vtrt"
