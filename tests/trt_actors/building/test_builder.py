"""Plans built by the real builder, which needs no GPU."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from trtfleet.errors import BackendError, ModelError, UsageError
from trtfleet.trt_actors.building.builder import BuiltPlan, build_plan
from trtfleet.trt_actors.building.flavour import Flavour, find_flavour, why_missing
from trtfleet.trt_actors.building.options import BuildOptions, Profile


@pytest.fixture(scope="module")
def flavour() -> Flavour:
    return find_flavour("tensorrt-rtx")


def convolutions(layers: int = 2, dtype: int = TensorProto.FLOAT) -> bytes:
    rng = np.random.default_rng(5)
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    nodes, weights, value = [], [], "x"
    for layer in range(layers):
        channels = 3 if layer == 0 else 8
        weight = rng.standard_normal((8, channels, 3, 3)).astype(kind)
        weights.append(numpy_helper.from_array(weight, f"w{layer}"))
        nodes.append(helper.make_node("Conv", [value, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        value = f"r{layer}"
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("x", dtype, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info(value, dtype, ["N", 8, 16, 16])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


PROFILE = Profile.parse("x=1x3x16x16,4x3x16x16,8x3x16x16")


def build(flavour: Flavour, model: bytes, options: BuildOptions | None = None, **how: object) -> BuiltPlan:
    return build_plan(flavour, model, options or BuildOptions(), [PROFILE], **how)  # type: ignore[arg-type]


def test_the_same_model_gives_the_same_plan(flavour: Flavour) -> None:
    first, second = (build(flavour, convolutions()).plan for _ in range(2))
    assert first == second
    assert first.startswith(b"ftrt") or len(first) > 1000


def test_another_option_gives_another_plan(flavour: Flavour) -> None:
    assert build(flavour, convolutions(2)).plan != build(flavour, convolutions(3)).plan


@pytest.mark.parametrize(("dtype", "name"), [(TensorProto.FLOAT, "FLOAT"), (TensorProto.FLOAT16, "HALF")])
def test_the_graph_decides_the_precision(flavour: Flavour, dtype: int, name: str) -> None:
    assert build(flavour, convolutions(2, dtype)).types == {name: 2}


def test_a_free_dimension_without_profile_names_the_flag(flavour: Flavour) -> None:
    with pytest.raises(UsageError, match="input 'x' has free dimensions") as caught:
        build_plan(flavour, convolutions(), BuildOptions(), [])
    assert "--profile x=MIN,OPT,MAX" in caught.value.hint


def test_what_the_parser_says_is_the_error(flavour: Flavour) -> None:
    graph = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["y"])],
        "nonzero",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [2, "found"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ModelError, match=r"tensorrt-rtx .* cannot parse the model: .*NonZero"):
        build_plan(flavour, model.SerializeToString(), BuildOptions(), [Profile.parse("x=1x4,2x4,4x4")])


def test_garbage_is_a_model_error(flavour: Flavour) -> None:
    with pytest.raises(ModelError, match="cannot parse the model"):
        build(flavour, b"no protobuf at all")


def test_progress_is_told_and_rises(flavour: Flavour) -> None:
    seen: list[tuple[str, float]] = []

    def progress(phase: str, share: float) -> bool:
        seen.append((phase, share))
        return True

    build(flavour, convolutions(4), progress=progress)
    assert seen
    assert all(0 <= share <= 1 for _, share in seen)
    assert all(phase for phase, _ in seen)


def test_progress_can_end_a_build(flavour: Flavour) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(flavour, convolutions(6), progress=lambda phase, share: False)


def test_a_failing_progress_ends_the_build_instead_of_the_process(flavour: Flavour) -> None:
    def progress(phase: str, share: float) -> bool:
        raise ValueError("broken terminal")

    with pytest.raises(KeyboardInterrupt):
        build(flavour, convolutions(6), progress=progress)


def test_ctrl_c_ends_a_build(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(convolutions(8))
    source = """
import os, signal, sys
from trtfleet.trt_actors.building.builder import build_plan
from trtfleet.trt_actors.building.flavour import find_flavour
from trtfleet.trt_actors.building.options import BuildOptions, Profile
def progress(phase, share):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)
    return True
import time
# A process that was started in the background may have inherited that it is to ignore this signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    build_plan(find_flavour("tensorrt-rtx"), open(sys.argv[1], "rb").read(), BuildOptions(),
               [Profile.parse("x=1x3x16x16,4x3x16x16,8x3x16x16")], progress=progress)
except KeyboardInterrupt:
    print("interrupted")
"""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", source, str(tmp_path / "model.onnx")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "interrupted"), done.stderr
    assert time.monotonic() > start


def test_flavours_that_are_missing_say_so() -> None:
    assert why_missing("tensorrt-rtx") is None
    missing = why_missing("tensorrt")
    assert missing is None or "tensorrt" in missing


def test_an_unknown_flavour_is_refused() -> None:
    with pytest.raises(BackendError, match="'triton' is unknown"):
        find_flavour("triton")
