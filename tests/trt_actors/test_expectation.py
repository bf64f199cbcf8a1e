"""What would execute a network is known without loading it; the engine cache is only looked at."""

from __future__ import annotations

from pathlib import Path

import pytest
from trtfleet.trt_actors import expectation
from trtfleet.trt_actors.building.flavour import find_flavour
from trtfleet.trt_actors.building.options import BuildOptions
from trtfleet.trt_actors.cache.store import EngineCache
from trtfleet.trt_actors.expectation import Inquiry, expect
from trtfleet.trt_actors.task import TensorRTSettings
from trtfleet.trt_actors.tensorrt_backend import identity_of

NETWORK = "b" * 64


@pytest.fixture
def settings(tmp_path: Path) -> TensorRTSettings:
    return TensorRTSettings(
        options=BuildOptions(), model_digest="a" * 64, cache=str(tmp_path / "cache"), cache_key_id=""
    )


@pytest.fixture
def _portable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans of TensorRT-RTX are for every GPU: whether the cache has one can be told without any."""
    monkeypatch.setenv("TRTFLEET_TENSORRT", "tensorrt-rtx")


def test_without_a_gpu_the_cpu_executes_and_no_engine_is_looked_for(settings: TensorRTSettings) -> None:
    found = expect(Inquiry(backend="auto", has_gpu=False, settings=settings, network=NETWORK))
    assert (found.device, found.backend, found.engine) == ("CPU", "onnxruntime-cpu", "")
    assert found.not_taken == "tensorrt: no GPU; onnxruntime-cuda: no GPU"
    assert 0 < found.free_bytes <= found.memory_bytes


def test_a_backend_that_cannot_be_used_here(settings: TensorRTSettings) -> None:
    found = expect(Inquiry(backend="tensorrt", has_gpu=False, settings=settings))
    assert (found.backend, found.not_taken) == ("", "tensorrt: no GPU")


def test_a_calibration_is_nothing_for_tensorrt() -> None:
    found = expect(Inquiry(backend="auto", has_gpu=False, counts=True))
    assert found.not_taken == "onnxruntime-cuda: no GPU"


@pytest.mark.usefixtures("_portable")
class TestEngines:
    def test_one_that_is_not_there_has_to_be_built(self, settings: TensorRTSettings, tmp_path: Path) -> None:
        state, key, size_bytes, note = expectation._engine(NETWORK, settings)
        assert (state, size_bytes, note) == ("to build", 0, "")
        assert key == identity_of(settings, NETWORK, find_flavour(), None).key
        assert list(tmp_path.iterdir()) == []

    def test_one_that_is_there(self, settings: TensorRTSettings) -> None:
        identity = identity_of(settings, NETWORK, find_flavour(), None)
        EngineCache(settings.cache).publish(identity, {"plan": b"12345"})
        assert expectation._engine(NETWORK, settings) == ("cached", identity.key, 5, "")
        assert expectation._engine("c" * 64, settings)[0] == "to build"

    def test_a_network_that_is_not_known_yet(self, settings: TensorRTSettings) -> None:
        assert expectation._engine("", settings) == ("to build", "", 0, "")

    def test_a_cache_that_cannot_be_read(self, settings: TensorRTSettings) -> None:
        assert settings.cache is not None
        folder = Path(settings.cache, "entries")
        folder.mkdir(parents=True)
        identity = identity_of(settings, NETWORK, find_flavour(), None)
        (folder / f"{identity.key}.json").write_text("{")
        state, key, _, note = expectation._engine(NETWORK, settings)
        assert (state, key) == ("unknown", identity.key)
        assert identity.key in note
