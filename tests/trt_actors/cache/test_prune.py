"""Pruning: what is chosen goes, what anybody needs stays."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from trtfleet.errors import CacheError
from trtfleet.trt_actors.cache.entry import Entry
from trtfleet.trt_actors.cache.identity import Identity
from trtfleet.trt_actors.cache.lease import Claim, LeaseRecord
from trtfleet.trt_actors.cache.objects import BLOBS, ENTRIES, LEASES, PENDING, blob_path
from trtfleet.trt_actors.cache.prune import Selection, prune
from trtfleet.trt_actors.cache.store import EngineCache

SHARED = {"layout.json": b"{}"}


@pytest.fixture
def three(cache: EngineCache, identity: Identity) -> dict[str, Entry]:
    """Three engines of two models that share a file."""
    identities = {
        "one": identity,
        "two": replace(identity, gpu="H200"),
        "six": replace(identity, model="e" * 64),
    }
    return {
        name: cache.publish(wanted, {"a.plan": name.encode(), **SHARED})
        for name, wanted in identities.items()
    }


def left(cache: EngineCache, three: dict[str, Entry]) -> set[str]:
    keys = {entry.key for entry in cache.entries()}
    assert all(cache.verify(entry) == [] for entry in cache.entries())
    return {name for name, entry in three.items() if entry.key in keys}


def test_without_a_choice_nothing_goes(cache: EngineCache, three: dict[str, Entry]) -> None:
    done = prune(cache)
    assert (done.entries, done.blobs, done.records, done.blobs_kept) == ((), 0, 0, "")
    assert left(cache, three) == {"one", "two", "six"}


def test_one_entry_goes_with_the_contents_that_only_it_has(
    cache: EngineCache, three: dict[str, Entry]
) -> None:
    done = prune(cache, Selection(keys=(three["one"].key,)))
    assert done.entries == (three["one"],)
    assert (done.blobs, done.size_bytes) == (1, 3)
    assert left(cache, three) == {"two", "six"}
    assert len(cache.objects.paths(BLOBS)) == 3


def test_a_model_goes(cache: EngineCache, three: dict[str, Entry]) -> None:
    assert len(prune(cache, Selection(model="aaaa")).entries) == 2
    assert left(cache, three) == {"six"}


def test_the_old_go(cache: EngineCache, three: dict[str, Entry], monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = time.time()
    monkeypatch.setattr("trtfleet.trt_actors.cache.prune.time.time", lambda: now_s + 500)
    assert prune(cache, Selection(older_than_s=1000, everything=True)).entries == ()
    # Conditions are met together.
    assert prune(cache, Selection(older_than_s=400, model="eeee")).entries == (three["six"],)
    assert left(cache, three) == {"one", "two"}
    assert len(prune(cache, Selection(older_than_s=400)).entries) == 2
    assert left(cache, three) == set()


def test_everything_goes(cache: EngineCache, three: dict[str, Entry]) -> None:
    done = prune(cache, Selection(everything=True))
    assert {entry.key for entry in done.entries} == {entry.key for entry in three.values()}
    assert done.blobs == 4
    assert all(cache.objects.paths(folder) == [] for folder in (ENTRIES, BLOBS, PENDING, LEASES))


def test_a_dry_run_only_tells(cache: EngineCache, three: dict[str, Entry]) -> None:
    dry = prune(cache, Selection(everything=True), dry_run=True)
    assert left(cache, three) == {"one", "two", "six"}
    assert prune(cache, Selection(everything=True)) == dry


def test_contents_of_a_publication_under_way_stay_for_a_while(
    cache: EngineCache, three: dict[str, Entry]
) -> None:
    for age_s, digit in ((10, "1"), (7200, "2")):
        cache.objects.put_content(blob_path(digit * 64), b"blob")
        note = {"blobs": [digit * 64], "created_s": time.time() - age_s}
        cache.objects.put_new(f"{PENDING}/{digit}.json", json.dumps(note).encode())
    cache.objects.put_content(blob_path("3" * 64), b"of nobody")
    done = prune(cache)
    assert (done.blobs, done.records) == (2, 1)
    assert cache.objects.get(blob_path("1" * 64)) == b"blob"
    assert cache.objects.paths(PENDING) == [f"{PENDING}/1.json"]
    assert left(cache, three) == {"one", "two", "six"}


def test_a_prune_in_the_middle_of_a_publication_takes_nothing_from_it(
    cache: EngineCache, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_new, seen = cache.objects.put_new, []

    def prune_first(path: str, data: bytes) -> bool:
        if path.startswith(ENTRIES):
            seen.append(prune(cache, Selection(everything=True)).blobs)
        return put_new(path, data)

    monkeypatch.setattr(cache.objects, "put_new", prune_first)
    entry = cache.publish(identity, {"a.plan": b"plan", **SHARED})
    assert seen == [0]
    assert cache.verify(entry) == []


def test_contents_swept_while_a_publication_took_them_for_there_are_stored_again(
    cache: EngineCache, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = cache.publish(identity, SHARED).file("layout.json")
    put_new = cache.objects.put_new

    def sweep_first(path: str, data: bytes) -> bool:
        if path.startswith(ENTRIES):
            cache.objects.delete([blob_path(stored.sha256)])
        return put_new(path, data)

    monkeypatch.setattr(cache.objects, "put_new", sweep_first)
    entry = cache.publish(replace(identity, gpu="H200"), SHARED)
    assert cache.verify(entry) == []


def test_leases_of_the_dead_and_done_go(cache: EngineCache, identity: Identity) -> None:
    cache.publish(identity, SHARED)

    def put(key: str, epoch: int, *, released: bool, age_s: float) -> None:
        record = LeaseRecord(owner="x", counter=1, released=released, renewed_s=time.time() - age_s)
        cache.objects.put_new(f"{LEASES}/{key}/{epoch:06d}.json", record.encode())

    put(identity.key, 1, released=False, age_s=0)
    put("dead", 1, released=False, age_s=7200)
    put("done", 1, released=True, age_s=0)
    put("alive", 1, released=False, age_s=10)
    put("alive", 2, released=False, age_s=10)
    cache.objects.put_new(f"{LEASES}/broken/000001.json", b"?")
    assert prune(cache).records == 5
    assert cache.objects.paths(LEASES) == [f"{LEASES}/alive/000002.json"]
    assert Claim(cache.objects, "alive").take() is None
    assert Claim(cache.objects, "dead").take() is not None


def test_damaged_manifests_go_when_told(cache: EngineCache, three: dict[str, Entry]) -> None:
    cache.objects.put(f"{ENTRIES}/{three['one'].key}.json", b"{")
    done = prune(cache, Selection(model="eeee"))
    assert done.entries == (three["six"],)
    # Nobody knows which contents the damaged one names.
    assert done.blobs == 0
    assert "1 manifests cannot be read" in done.blobs_kept
    assert len(cache.objects.paths(BLOBS)) == 4
    done = prune(cache, damaged=True)
    assert (done.damaged, done.blobs, done.blobs_kept) == ((three["one"].key,), 2, "")
    assert left(cache, three) == {"two"}


def test_manifests_of_a_later_version_stay_with_all_contents(
    cache: EngineCache, three: dict[str, Entry]
) -> None:
    newer = f"{ENTRIES}/{three['one'].key}.json"
    cache.objects.put(newer, b'{"format": 99}')
    done = prune(cache, Selection(everything=True), damaged=True)
    assert (len(done.entries), done.damaged, done.blobs) == (2, (), 0)
    assert "has format 99" in done.blobs_kept
    assert cache.objects.paths(ENTRIES) == [newer]


def test_a_damaged_note_is_an_error(cache: EngineCache) -> None:
    cache.objects.put_new(f"{PENDING}/x.json", b"{}")
    with pytest.raises(CacheError, match="is damaged"):
        prune(cache)
