"""Plans that the installed TensorRT-RTX refuses before it executes anything of them; needs no GPU."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper
from trtfleet.errors import BackendError
from trtfleet.tests.trt_actors.runtime.device_double import DeviceDouble
from trtfleet.tests.trt_actors.runtime.networks import info, make
from trtfleet.trt_actors.building.builder import build_plan
from trtfleet.trt_actors.building.flavour import Flavour, find_flavour
from trtfleet.trt_actors.building.options import BuildOptions
from trtfleet.trt_actors.runtime.libcuda import driver_missing, gpus
from trtfleet.trt_actors.runtime.plan import PlanRunner
from trtfleet.trt_actors.runtime.validity import plan_refusal


@pytest.fixture(scope="module")
def flavour() -> Flavour:
    return find_flavour("tensorrt-rtx")


@pytest.fixture(scope="module")
def plan(flavour: Flavour) -> bytes:
    values = [info(name, TensorProto.FLOAT, [4]) for name in ("x", "y")]
    model = make([helper.make_node("Abs", ["x"], ["y"])], values[:1], values[1:])
    return build_plan(flavour, model.SerializeToString(), BuildOptions(), []).plan


def test_what_is_no_plan_is_refused_as_malformed(flavour: Flavour) -> None:
    refused = plan_refusal(flavour, b"no plan" * 1000)
    assert refused is not None
    assert refused.startswith(f"{flavour} refuses the plan on this machine: malformed engine")


@pytest.mark.skipif(driver_missing() is None, reason="this machine has a GPU")
def test_a_machine_without_a_gpu_refuses_every_plan(flavour: Flavour, plan: bytes) -> None:
    refused = plan_refusal(flavour, plan)
    assert refused is not None
    assert "refuses the plan on this machine" in refused
    assert "CUDA" in refused


@pytest.mark.skipif(
    not gpus() or gpus()[0].compute_capability != (9, 0), reason="there is no GPU of compute capability 9.0"
)
def test_a_gpu_that_rtx_does_not_know_is_named_as_the_cause(flavour: Flavour, plan: bytes) -> None:
    refused = plan_refusal(flavour, plan)
    assert refused == f"{flavour} refuses the plan on this machine: unsupported compute capability"


@pytest.mark.skipif(driver_missing() is None, reason="this machine has a GPU")
def test_a_runner_says_so_and_loads_nothing(flavour: Flavour, plan: bytes) -> None:
    device = DeviceDouble().open()
    with device.current():
        stream = device.stream()
        with pytest.raises(BackendError, match="refuses the plan on this machine") as raised:
            PlanRunner(
                plan,
                flavour=flavour,
                inputs=["x"],
                outputs=["y"],
                device=device,
                stream=stream,
                pool=None,  # type: ignore[arg-type] # a refused plan takes no memory
            )
        stream.close()
    assert "--backend auto" in raised.value.hint
    device.close()
