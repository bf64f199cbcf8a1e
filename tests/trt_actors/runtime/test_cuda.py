"""The CUDA device on machines that have none: reasons, and nothing touched too early."""

from __future__ import annotations

import pytest
from trtfleet.errors import BackendError
from trtfleet.trt_actors.runtime.cuda import CudaDevice, cuda_missing
from trtfleet.trt_actors.runtime.libcuda import call, driver_missing, gpus

without_gpu = pytest.mark.skipif(driver_missing() is None, reason="this machine has a GPU")


@without_gpu
def test_a_machine_without_a_gpu_says_why() -> None:
    assert driver_missing()
    assert cuda_missing() == driver_missing()
    assert gpus() == []


@without_gpu
def test_a_device_is_made_without_a_gpu_and_opened_only_with_one() -> None:
    device = CudaDevice(3)
    with pytest.raises(BackendError, match="CUDA is not available: "):
        device.open()
    with pytest.raises(BackendError, match="there is no GPU 3: "):
        device.info  # noqa: B018 - reading it is the test
    device.close()


@without_gpu
def test_calls_of_the_driver_fail_with_words() -> None:
    with pytest.raises(BackendError):
        call("cuInit", 0)


def test_a_device_that_is_not_open_is_not_used() -> None:
    with pytest.raises(BackendError, match="used while it is not open"), CudaDevice().current():
        pytest.fail("there is no context to be current")
