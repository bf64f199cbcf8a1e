"""PyTorch in eager mode as what trials are compared with; most of it is skipped where it is not installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trtfleet.datasets.signature import TensorSpec
from trtfleet.errors import BackendError, HookError
from trtfleet.tests.trt_actors.trial.test_host import order_for
from trtfleet.trt_actors.trial.host import run_trial
from trtfleet.trt_actors.trial.task import TorchModule
from trtfleet.trt_actors.trial.torch_engine import TorchEngine

HAS_TORCH = importlib.util.find_spec("torch") is not None
INPUTS = (TensorSpec(name="x", dtype=np.dtype(np.float32), row_shape=(4,)),)
NETS = """
import torch

class Two(torch.nn.Module):
    def forward(self, x):
        assert not torch.is_grad_enabled() and not self.training
        return {"sum": x.sum(dim=1), "rest": [x * 2, x > 0.5]}

def two():
    return Two()

def none():
    return None

def failing():
    raise ValueError("no weights")
"""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TorchEngine]:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.syspath_prepend(tmp_path)

    def make(factory: str = "nets_of_trials:two", precision: str = "fp32") -> TorchEngine:
        (tmp_path / "nets_of_trials.py").write_text(NETS)
        module = TorchModule(factory=factory, folder=str(tmp_path), precision=precision)
        return TorchEngine(module, inputs=INPUTS, threads=1)

    return make


def ran(engine: TorchEngine, x: np.ndarray) -> dict[str, np.ndarray]:
    engine.open()
    slot: Any = engine.slot()
    slot.buffer("x", x.shape)[...] = x
    engine.enqueue(slot, len(x))
    engine.wait(slot)
    found = {name: array.copy() for name, array in slot.outputs.items()}
    engine.close()
    return found


@pytest.mark.skipif(HAS_TORCH, reason="PyTorch is installed here")
def test_without_pytorch_trials_say_so(engine: Callable[..., TorchEngine]) -> None:
    with pytest.raises(BackendError, match="torch is not available"):
        engine().open()


@pytest.mark.skipif(HAS_TORCH, reason="PyTorch is installed here")
def test_without_pytorch_a_trial_is_a_row_with_its_error(
    linear_model: Callable[..., Path], tmp_path: Path
) -> None:
    module = TorchModule(factory="nets:two", folder=str(tmp_path), precision="fp32")
    found = run_trial(order_for(linear_model(), backend="torch", torch=module), [])
    assert found.error is not None
    assert found.error.startswith("torch is not available")


@pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed here")
class TestWithPyTorch:
    def test_a_module_gets_the_inputs_and_gives_all_results(self, engine: Callable[..., TorchEngine]) -> None:
        x = np.random.default_rng(0).random((3, 4), np.float32)
        total, double, large = ran(engine(), x).values()
        np.testing.assert_allclose(total, x.sum(axis=1), rtol=1e-6)
        np.testing.assert_array_equal(double, x * 2)
        np.testing.assert_array_equal(large, x > 0.5)

    def test_in_half_precision_floats_are_converted(self, engine: Callable[..., TorchEngine]) -> None:
        found = ran(engine(precision="fp16"), np.ones((2, 4), np.float32))
        assert [array.dtype for array in found.values()] == [np.float16, np.float16, np.bool_]

    @pytest.mark.parametrize(
        ("factory", "message"),
        [
            ("none", "returned NoneType, no module"),
            ("failing", "raised ValueError: no weights"),
            ("other", "has no function other"),
        ],
    )
    def test_a_function_that_gives_no_module_is_refused(
        self, engine: Callable[..., TorchEngine], factory: str, message: str
    ) -> None:
        with pytest.raises(HookError, match=message):
            engine(f"nets_of_trials:{factory}").open()

    def test_a_trial_measures_it(
        self, engine: Callable[..., TorchEngine], linear_model: Callable[..., Path], tmp_path: Path
    ) -> None:
        engine()
        module = TorchModule(factory="nets_of_trials:two", folder=str(tmp_path), precision="fp32")
        order = order_for(linear_model(), backend="torch", torch=module, contexts=2)
        found = run_trial(replace(order, row_shapes={"x": (4,)}), [])
        assert found.error is None
        assert found.executed == "torch-cpu"
        assert found.host_p50_ms is not None
        assert found.rows_per_s is not None
