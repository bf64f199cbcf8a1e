"""Leases: one holder at a time, judged by nobody's clock but one's own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from trtfleet.errors import CacheError
from trtfleet.trt_actors.cache.lease import Claim, Lease, LeaseRecord
from trtfleet.trt_actors.cache.objects import LEASES
from trtfleet.trt_actors.cache.store import EngineCache

KEY = "0" * 64


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def taken(claim: Claim) -> Lease:
    lease = claim.take()
    assert lease is not None
    return lease


def records(cache: EngineCache) -> list[LeaseRecord]:
    found = [LeaseRecord.decode(cache.objects.get(path) or b"") for path in cache.objects.paths(LEASES)]
    return [record for record in found if record is not None]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_of_many_one_gets_it(cache: EngineCache) -> None:
    together = threading.Barrier(8)

    def take(_: int) -> Lease | None:
        together.wait()
        return Claim(cache.objects, KEY).take()

    for epoch in (1, 2):
        with ThreadPoolExecutor(8) as pool:
            leases = [lease for lease in pool.map(take, range(8)) if lease is not None]
        assert len(leases) == 1
        leases[0].release()
        assert len(records(cache)) == epoch


def test_a_released_one_is_free_at_once(cache: EngineCache) -> None:
    with taken(Claim(cache.objects, KEY, clock=Clock())):
        other = Claim(cache.objects, KEY, clock=Clock())
        assert other.take() is None
        assert other.holder
    assert taken(other) is not None
    assert other.holder == ""


def test_a_holder_is_dead_when_nothing_changed_for_long(cache: EngineCache) -> None:
    clock = Clock()
    taken(Claim(cache.objects, KEY, 10, clock))
    other = Claim(cache.objects, KEY, 10, clock)
    assert other.take() is None
    clock.now_s += 9.9
    assert other.take() is None
    # A clock that asks for the first time begins to count then, whatever the record's age.
    late = Claim(cache.objects, KEY, 10, clock)
    assert late.take() is None
    clock.now_s += 0.2
    assert late.take() is None
    assert taken(other) is not None
    assert late.take() is None
    assert cache.objects.paths(LEASES) == [f"leases/{KEY}/000001.json", f"leases/{KEY}/000002.json"]


def test_a_wrong_wall_clock_means_nothing(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("trtfleet.trt_actors.cache.lease.time.time", lambda: 0.0)
    taken(Claim(cache.objects, KEY, 10, clock))
    monkeypatch.undo()
    assert records(cache)[0].renewed_s == 0.0
    other = Claim(cache.objects, KEY, 10, clock)
    assert other.take() is None
    clock.now_s += 9
    assert other.take() is None


def test_a_renewed_one_is_alive(cache: EngineCache) -> None:
    clock = Clock()
    other = Claim(cache.objects, KEY, 10, clock)
    with taken(Claim(cache.objects, KEY, 0.05)):
        for _ in range(3):
            assert other.take() is None
            before = records(cache)[0].counter
            wait_for(lambda before=before: records(cache)[0].counter > before)
            clock.now_s += 20
        assert other.take() is None
    assert records(cache)[0].released


def test_renewals_end_with_the_release(cache: EngineCache) -> None:
    lease = taken(Claim(cache.objects, KEY, 0.05))
    with lease:
        pass
    assert not lease._thread.is_alive()
    assert records(cache)[0].released


def test_a_holder_that_wakes_after_another_took_over_disturbs_nobody(cache: EngineCache) -> None:
    clock = Clock()
    asleep = taken(Claim(cache.objects, KEY, 10, clock))
    other = Claim(cache.objects, KEY, 10, clock)
    assert other.take() is None
    clock.now_s += 11
    second = taken(other)
    asleep.release()
    third = Claim(cache.objects, KEY, 10, clock)
    assert third.take() is None
    second.release()
    assert taken(third) is not None


def test_a_damaged_record_is_a_silent_holder(cache: EngineCache) -> None:
    clock = Clock()
    cache.objects.put_new(f"leases/{KEY}/000007.json", b"\xffgarbage")
    claim = Claim(cache.objects, KEY, 10, clock)
    assert claim.take() is None
    assert claim.holder == ""
    clock.now_s += 11
    assert taken(claim) is not None
    assert f"leases/{KEY}/000008.json" in cache.objects.paths(LEASES)


def test_a_renewal_that_fails_is_tried_again(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "cache")
    with taken(Claim(cache.objects, KEY, 0.05)) as lease:
        folder = tmp_path / "cache" / LEASES
        folder.rename(tmp_path / "away")
        folder.write_bytes(b"in the way")
        with pytest.raises(CacheError):
            cache.objects.put(f"{LEASES}/{KEY}/000001.json", b"")
        failed = lease._counter + 3
        wait_for(lambda: lease._counter > failed)
        folder.unlink()
        (tmp_path / "away").rename(folder)
        before = records(cache)[0].counter
        wait_for(lambda: records(cache)[0].counter > before)


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheError, match="cannot be written"):
        Claim(EngineCache(tmp_path / "file").objects, KEY).take()
