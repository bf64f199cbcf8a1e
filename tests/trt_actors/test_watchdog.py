"""The watch over an actor's process."""

from __future__ import annotations

import mmap
import threading
import time

import pytest
from trtfleet.errors import ActorSpentError, ActorStuckError
from trtfleet.trt_actors.watchdog import Watchdog, private_memory_bytes


def test_what_the_work_returns_or_raises_comes_through() -> None:
    watchdog = Watchdog(60.0)
    assert watchdog.run(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        watchdog.run(lambda: 1 // 0)
    watchdog.close()


def test_a_step_that_does_not_end_ends_the_calls_that_wait_for_it() -> None:
    watchdog, gate = Watchdog(0.05), threading.Event()

    def hang() -> None:
        with watchdog.step("the hook"):
            gate.wait()

    with pytest.raises(ActorStuckError, match=r"the hook took more than 0\.05 s for one batch"):
        watchdog.run(hang)
    # Whatever comes then is not even waited for.
    with pytest.raises(ActorStuckError):
        watchdog.run(gate.wait)
    gate.set()
    watchdog.close()


def test_many_steps_may_take_longer_together() -> None:
    watchdog, begun_s = Watchdog(0.2), time.monotonic()

    def work() -> str:
        while time.monotonic() - begun_s < 0.5:
            with watchdog.step("the engine"):
                time.sleep(0.001)
        return "done"

    assert watchdog.run(work) == "done"
    watchdog.close()


def test_the_memory_of_this_process_alone_is_told() -> None:
    size_bytes, before_bytes = 64 << 20, private_memory_bytes()
    # Fresh memory: the allocator may have some left that this process has used before.
    with mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as private:
        private.write(b"x" * size_bytes)
        assert private_memory_bytes() - before_bytes >= size_bytes
    with mmap.mmap(-1, size_bytes) as shared:
        shared.write(b"x" * size_bytes)
        assert private_memory_bytes() - before_bytes < size_bytes


def test_a_process_that_grows_too_large_is_given_up() -> None:
    watchdog, gate = Watchdog(memory_bytes=1 << 20), threading.Event()
    with pytest.raises(ActorSpentError, match="1,048,576 allowed"):
        watchdog.run(gate.wait)
    gate.set()
    watchdog.close()


def test_without_limits_nobody_watches() -> None:
    before = threading.active_count()
    watchdog = Watchdog()
    assert threading.active_count() == before
    assert watchdog.run(lambda: 7) == 7
    watchdog.close()
