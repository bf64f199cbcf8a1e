"""``build``, ``partition``, ``inspect`` and ``doctor`` as a user runs them, with the real builder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from trtfleet.errors import BackendError, CacheError, ModelError, UsageError

Command = Callable[..., Any]


def save(path: Path, model: onnx.ModelProto) -> Path:
    onnx.save(model, str(path))
    return path


def tokens(free: tuple[str | int, ...] = ("N", "T")) -> onnx.ModelProto:
    """Embeddings of token ids, summed: an input whose length is free as well as the batch."""
    table = np.random.default_rng(2).standard_normal((16, 4)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["embedded"]),
            helper.make_node("ReduceSum", ["embedded", "axis"], ["summed"], keepdims=0),
            helper.make_node("Tanh", ["summed"], ["y"]),
        ],
        "tokens",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, free)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [free[0], 4])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1]), "axis")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def mixed() -> onnx.ModelProto:
    """Three nodes for TensorRT, a NonZero, three more."""
    ops = ["Tanh", "Abs", "Tanh", "NonZero", "Cast", "Tanh", "Abs", "Tanh"]
    nodes = []
    for index, op in enumerate(ops):
        extra = {"to": TensorProto.FLOAT} if op == "Cast" else {}
        source = f"v{index - 1}" if index else "x"
        nodes.append(helper.make_node(op, [source], [f"v{index}"], name=f"{op.lower()}_{index}", **extra))
    graph = helper.make_graph(
        nodes,
        "mixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("v7", TensorProto.FLOAT, [2, "found"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def digits_model(digits: tuple[Path, Path]) -> Path:
    return digits[0]


class TestBuild:
    def test_it_builds_once_and_then_finds(
        self, digits_model: Path, tmp_path: Path, command: Command
    ) -> None:
        first = command("build", digits_model, "--cache", tmp_path / "c", "--json")
        assert first.code == 0, first.stderr
        built = json.loads(first.stdout)
        assert built["how"] == "built"
        assert built["partition"]["multiply_add_share"] == 1.0
        assert [segment["kind"] for segment in built["partition"]["segments"]] == ["tensorrt"]
        assert built["plans"]["tensorrt-0"]["bytes"] > 1000
        assert built["plans"]["tensorrt-0"]["types"] == {"FLOAT": 3}
        again = json.loads(command("build", digits_model, "--cache", tmp_path / "c", "--json").stdout)
        assert (again["how"], again["key"]) == ("found", built["key"])

    def test_half_precision_is_what_is_built(
        self, digits_model: Path, tmp_path: Path, command: Command
    ) -> None:
        ran = command("build", digits_model, "--cache", tmp_path / "c", "--precision", "fp16", "--json")
        built = json.loads(ran.stdout)
        assert built["plans"]["tensorrt-0"]["types"] == {"HALF": 3}
        assert built["fp16"]["halved"] == built["fp16"]["multiplying"] == 3
        assert 0 < max(built["fp16"]["loss"].values()) < 0.01

    def test_a_mixed_network_names_every_native_node_with_its_reason(
        self, tmp_path: Path, command: Command
    ) -> None:
        ran = command("build", save(tmp_path / "m.onnx", mixed()), "--cache", tmp_path / "c")
        assert ran.code == 0, ran.stderr
        assert "2 TensorRT segments" in ran.stdout
        assert "NonZero (nonzero_3)" in ran.stdout
        assert ran.stdout.count("plan of") == 2

    def test_two_free_dimensions_want_a_profile(self, tmp_path: Path, command: Command) -> None:
        model = save(tmp_path / "m.onnx", tokens())
        ran = command("build", model, "--cache", tmp_path / "c")
        assert ran.code == UsageError.exit_code
        assert "input 'ids' has free dimensions besides the batch: 1 (T)" in ran.stderr
        assert "--profile ids=1x32,64x64,64x128" in ran.stderr
        profile = ("--profile", "ids=1x4,8x16,64x32")
        ran = command("build", model, "--cache", tmp_path / "c", *profile, "--json")
        assert ran.code == 0, ran.stderr
        assert json.loads(ran.stdout)["profiles"] == {"tensorrt-0": ["ids=1x4,8x16,64x32"]}

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--profile", "ids=8x4,2x16,64x32"), "min > opt"),
            (("--profile", "ids=1x4,8x16"), "malformed"),
            (("--profile", "ids=1x4x1,8x16x1,64x32x1"), "has rank 3, the input has rank 2"),
            (("--profile", "ids=1x4,8x16,32x32"), "ends at batch 32, max_batch_size is 64"),
            (("--max-batch-size", "0"), "max_batch_size must be >= 1, got 0"),
            (("--optimization-level", "7"), "optimization_level must be 0 to 5, got 7"),
        ],
    )
    def test_options_that_cannot_be(
        self, options: tuple[str, ...], words: str, tmp_path: Path, command: Command
    ) -> None:
        ran = command("build", save(tmp_path / "m.onnx", tokens()), "--cache", tmp_path / "c", *options)
        assert (ran.code, ran.stdout) == (UsageError.exit_code, "")
        assert words in ran.stderr
        assert "Traceback" not in ran.stderr
        assert not (tmp_path / "c").exists()

    def test_a_profile_must_keep_what_the_model_fixes(self, tmp_path: Path, command: Command) -> None:
        model = save(tmp_path / "m.onnx", tokens(("N", 12)))
        ran = command("build", model, "--cache", tmp_path / "c", "--profile", "ids=1x4,8x12,64x12")
        assert ran.code == UsageError.exit_code
        assert "varies dimension 1, which the model fixes at 12" in ran.stderr

    def test_a_cache_that_is_a_file(self, digits_model: Path, tmp_path: Path, command: Command) -> None:
        (tmp_path / "c").write_text("mine")
        ran = command("build", digits_model, "--cache", tmp_path / "c")
        assert ran.code == CacheError.exit_code
        assert (tmp_path / "c").read_text() == "mine"

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
    def test_a_timing_cache_that_cannot_be_written_is_no_matter_to_rtx(
        self, digits_model: Path, tmp_path: Path, command: Command
    ) -> None:
        # TensorRT-RTX times nothing at build time, so there is nothing to write.
        ran = command(
            "build", digits_model, "--cache", tmp_path / "c", "--timing-cache", tmp_path / "no" / "f"
        )
        assert ran.code == 0
        assert not (tmp_path / "no").exists()

    def test_nothing_for_tensorrt_is_an_error(
        self, digits_model: Path, tmp_path: Path, command: Command
    ) -> None:
        ran = command("build", digits_model, "--cache", tmp_path / "c", "--min-subgraph-size", "7")
        assert ran.code == ModelError.exit_code
        assert "in a segment of 6 nodes, min_subgraph_size is 7" in ran.stderr


class TestPartition:
    def test_it_builds_nothing_and_reports_the_same(self, tmp_path: Path, command: Command) -> None:
        ran = command("partition", save(tmp_path / "m.onnx", mixed()), "--json")
        assert ran.code == 0, ran.stderr
        found = json.loads(ran.stdout)
        assert [segment["kind"] for segment in found["segments"]] == ["tensorrt", "native", "tensorrt"]
        assert found["native"][0]["op_type"] == "NonZero"

    def test_it_draws_and_saves(self, tmp_path: Path, command: Command) -> None:
        page, file = tmp_path / "p.html", tmp_path / "t.onnx"
        model = save(tmp_path / "m.onnx", mixed())
        assert command("build", model, "--cache", tmp_path / "c").code == 0
        ran = command("partition", model, "--html", page, "--save", file, "--cache", tmp_path / "c")
        assert ran.code == 0, ran.stderr
        assert page.read_text().startswith("<!doctype html>")
        contexts = [node for node in onnx.load(str(file)).graph.node if node.op_type == "EPContext"]
        assert len(contexts) == 2
        for node in contexts:
            (place,) = [a.s.decode() for a in node.attribute if a.name == "ep_cache_context"]
            assert Path(place).read_bytes()[:4] == b"vtrt"

    def test_exclude_op(self, digits_model: Path, command: Command) -> None:
        ran = command("partition", digits_model, "--exclude-op", "Gemm", "--json")
        found = json.loads(ran.stdout)
        assert [(node["op_type"], node["reason"]) for node in found["native"]] == [
            ("Gemm", "excluded by --exclude-op Gemm")
        ]

    def test_an_operator_of_a_custom_domain_is_named(self, tmp_path: Path, command: Command) -> None:
        model = mixed()
        model.graph.node[1].op_type, model.graph.node[1].domain = "FastGelu", "com.microsoft"
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        ran = command("partition", save(tmp_path / "m.onnx", model), "--min-subgraph-size", "1")
        assert ran.code == 0, ran.stderr
        assert "FastGelu (abs_1): operator of the custom domain com.microsoft" in ran.stdout

    @pytest.mark.parametrize(
        ("content", "words"),
        [(b"", "is empty"), (b"PAR1....", "a Parquet file"), (b"\x08\x09garbage", "model")],
    )
    def test_what_is_no_model(self, content: bytes, words: str, tmp_path: Path, command: Command) -> None:
        (tmp_path / "m.onnx").write_bytes(content)
        ran = command("partition", tmp_path / "m.onnx")
        assert ran.code == ModelError.exit_code
        assert words in ran.stderr
        assert "Traceback" not in ran.stderr

    def test_an_opset_from_the_future(self, tmp_path: Path, command: Command) -> None:
        model = mixed()
        model.opset_import[0].version = 999
        ran = command("partition", save(tmp_path / "m.onnx", model))
        assert ran.code == ModelError.exit_code
        assert "uses opset 999" in ran.stderr


class TestInspect:
    def test_a_cache_entry(self, digits_model: Path, tmp_path: Path, command: Command) -> None:
        key = json.loads(command("build", digits_model, "--cache", tmp_path / "c", "--json").stdout)["key"]
        ran = command("inspect", key[:10], "--cache", tmp_path / "c")
        assert ran.code == 0, ran.stderr
        assert key in ran.stdout
        assert "digests: ok" in ran.stdout
        assert "profile image=1x1x8x8,64x1x8x8,64x1x8x8" in ran.stdout
        assert "takes image, gives logits" in ran.stdout

    def test_a_damaged_entry_says_so(self, digits_model: Path, tmp_path: Path, command: Command) -> None:
        key = json.loads(command("build", digits_model, "--cache", tmp_path / "c", "--json").stdout)["key"]
        largest = max((tmp_path / "c" / "blobs").iterdir(), key=lambda path: path.stat().st_size)
        data = bytearray(largest.read_bytes())
        data[len(data) // 2] ^= 1
        largest.chmod(0o600)
        largest.write_bytes(bytes(data))
        ran = command("inspect", key, "--cache", tmp_path / "c", "--json")
        assert json.loads(ran.stdout)["digests"] != "ok"
        assert command("cache", "verify", "--cache", tmp_path / "c").code == CacheError.exit_code

    def test_a_plan_file_without_a_gpu(self, digits_model: Path, tmp_path: Path, command: Command) -> None:
        command("build", digits_model, "--cache", tmp_path / "c")
        plan = next(p for p in (tmp_path / "c" / "blobs").iterdir() if p.read_bytes()[:4] == b"vtrt")
        ran = command("inspect", plan)
        assert ran.code == 0, ran.stderr
        assert "SHA-256 " + plan.name in ran.stdout
        assert "on this machine: " in ran.stdout

    def test_what_is_no_plan(self, digits_model: Path, command: Command) -> None:
        ran = command("inspect", digits_model)
        assert ran.code == ModelError.exit_code
        assert "is no TensorRT plan" in ran.stderr

    def test_a_key_that_is_not_there(self, tmp_path: Path, command: Command) -> None:
        ran = command("inspect", "abc", "--cache", tmp_path)
        assert ran.code == UsageError.exit_code
        assert "no engine" in ran.stderr


class TestDoctor:
    def test_it_says_what_auto_takes_and_why(self, command: Command) -> None:
        ran = command("doctor", "--json")
        assert ran.code == 0
        found = json.loads(ran.stdout)
        assert found["takes"] in found["backends"]
        assert found["backends"][found["takes"]] == ""
        assert found["flavours"]["tensorrt-rtx"][0].isdigit()
        assert found["trials"] == []
        assert found["gpus"] or found["no_gpu"]

    def test_the_selftest_runs_every_backend_that_is_there(self, command: Command) -> None:
        ran = command("doctor", "--selftest", "--json")
        assert ran.code == 0
        trials = {trial["backend"]: trial for trial in json.loads(ran.stdout)["trials"]}
        assert set(trials) == {"tensorrt", "onnxruntime-cuda", "onnxruntime-cpu"}
        assert trials["onnxruntime-cpu"]["works"] is True
        assert all(trial["works"] is not False for trial in trials.values())

    def test_a_backend_that_fails_is_an_error(
        self, command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from trtfleet.jobs import selftest

        monkeypatch.setattr(selftest, "_TOLERANCE", -1.0)
        ran = command("doctor", "--selftest")
        assert ran.code == BackendError.exit_code
        assert "the self-test failed on" in ran.stderr
        assert "FAILED" in ran.stdout
