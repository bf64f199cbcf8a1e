"""Batch sizes in the engine cache: found by identity, replaced, listed, forgotten."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from trtfleet.trt_actors.cache.batch_sizes import (
    BatchSize,
    KeptBatchSizes,
    find_batch_size,
    forget_batch_sizes,
    keep_batch_size,
)
from trtfleet.trt_actors.cache.identity import Identity
from trtfleet.trt_actors.cache.objects import BATCHES
from trtfleet.trt_actors.cache.prune import Selection, prune
from trtfleet.trt_actors.cache.store import EngineCache

Damage = Callable[[str, Callable[[bytes], bytes]], None]


def test_nothing_is_found_where_nothing_was_kept(cache: EngineCache, identity: Identity) -> None:
    assert find_batch_size(cache.objects, identity) is None
    assert KeptBatchSizes.of(cache.objects) == KeptBatchSizes(sizes=(), unreadable=())
    forget_batch_sizes(cache.objects, identity.key)


def test_a_size_is_found_for_its_identity_alone(cache: EngineCache, identity: Identity) -> None:
    size = BatchSize(identity=identity, rows=256, rows_per_s=11_700.5)
    keep_batch_size(cache.objects, size)
    assert find_batch_size(cache.objects, identity) == size
    for other in ({"gpu": "NVIDIA H100"}, {"version": "1.8"}, {"network": "e" * 64}, {"options": {}}):
        assert find_batch_size(cache.objects, replace(identity, **other)) is None


def test_a_later_measurement_replaces_the_earlier(cache: EngineCache, identity: Identity) -> None:
    for rows in (256, 64):
        keep_batch_size(cache.objects, BatchSize(identity=identity, rows=rows))
    found = find_batch_size(cache.objects, identity)
    assert found is not None
    assert found.rows == 64
    assert len(KeptBatchSizes.of(cache.objects).sizes) == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"format": 99}', b'{"format": 1}'],
    ids=["empty", "cut", "list", "newer", "bare"],
)
def test_a_damaged_record_counts_as_none_and_is_replaced(
    cache: EngineCache, identity: Identity, damage: Damage, content: bytes
) -> None:
    size = BatchSize(identity=identity, rows=8)
    keep_batch_size(cache.objects, size)
    damage(f"{BATCHES}/{identity.key}.json", lambda data: content)
    assert find_batch_size(cache.objects, identity) is None
    assert KeptBatchSizes.of(cache.objects).unreadable == (identity.key,)
    keep_batch_size(cache.objects, size)
    assert find_batch_size(cache.objects, identity) == size


@pytest.mark.parametrize("rows", [b"0", b"-4", b"true", b'"8"', b"8.5", b"null"])
def test_a_size_that_is_none_is_not_taken(
    cache: EngineCache, identity: Identity, damage: Damage, rows: bytes
) -> None:
    keep_batch_size(cache.objects, BatchSize(identity=identity, rows=8))
    damage(f"{BATCHES}/{identity.key}.json", lambda data: data.replace(b'"rows": 8', b'"rows": ' + rows, 1))
    assert find_batch_size(cache.objects, identity) is None


def test_a_record_under_another_key_is_not_taken(cache: EngineCache, identity: Identity) -> None:
    other = replace(identity, gpu="NVIDIA H100")
    size = BatchSize(identity=identity, rows=8)
    cache.objects.put(f"{BATCHES}/{other.key}.json", size.encode())
    assert find_batch_size(cache.objects, other) is None
    assert KeptBatchSizes.of(cache.objects).unreadable == (other.key,)


def test_sizes_are_pruned_by_the_conditions_of_engines(cache: EngineCache, identity: Identity) -> None:
    old = BatchSize(identity=identity, rows=8, created_s=1_000.0)
    new = BatchSize(identity=replace(identity, model="e" * 64), rows=16)
    for size in (new, old):
        keep_batch_size(cache.objects, size)
    assert KeptBatchSizes.of(cache.objects).sizes == (old, new)
    assert prune(cache).batch_sizes == ()
    assert prune(cache, Selection(older_than_s=3600), dry_run=True).batch_sizes == (old,)
    assert prune(cache, Selection(older_than_s=3600)).batch_sizes == (old,)
    assert KeptBatchSizes.of(cache.objects).sizes == (new,)
    assert prune(cache, Selection(model="aaaa")).batch_sizes == ()
    assert prune(cache, Selection(keys=(new.key,))).batch_sizes == (new,)
    keep_batch_size(cache.objects, new)
    assert prune(cache, Selection(everything=True)).batch_sizes == (new,)
    assert cache.objects.paths(BATCHES) == []


def test_damaged_records_go_when_told(cache: EngineCache, identity: Identity, damage: Damage) -> None:
    keep_batch_size(cache.objects, BatchSize(identity=identity, rows=8))
    damage(f"{BATCHES}/{identity.key}.json", lambda data: b"{")
    prune(cache, Selection(everything=True))
    assert len(cache.objects.paths(BATCHES)) == 1
    assert prune(cache, damaged=True).damaged_sizes == (identity.key,)
    assert cache.objects.paths(BATCHES) == []
