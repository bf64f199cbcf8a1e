"""What an engine cache holds, whether it is sound, and how to make room in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from ..errors import UsageError
from ..trt_actors.cache.batch_sizes import BatchSize, KeptBatchSizes
from ..trt_actors.cache.entry import Entry
from ..trt_actors.cache.prune import Selection, prune
from ..trt_actors.cache.store import EngineCache
from .cache_contents import SHORT, CachedBatchSize, CachedEngine
from .cache_reports import CacheListing, CachePruned, CacheVerified, EngineDetails

__all__ = ["list_cache", "prune_cache", "show_engine", "verify_cache"]

_CANDIDATES_SHOWN = 5

_Kept = TypeVar("_Kept", bound=Entry | BatchSize)


def list_cache(url: str | None = None) -> CacheListing:
    """Lists a cache; None takes the default one.

    Raises:
        CacheError: It cannot be read.
    """
    cache = EngineCache(url)
    contents, kept = cache.contents(), KeptBatchSizes.of(cache.objects)
    damaged = (f"the batch size of key {key[:SHORT]} is damaged" for key in kept.unreadable)
    return CacheListing(
        url=cache.url,
        engines=tuple(map(CachedEngine.of, contents.entries)),
        batch_sizes=tuple(map(CachedBatchSize.of, kept.sizes)),
        unreadable=(*(one.why for one in contents.unreadable), *damaged),
    )


def show_engine(key: str, url: str | None = None) -> EngineDetails:
    """Tells all about one engine, named by its key or the beginning of it.

    Raises:
        UsageError: None, or more than one, begins so.
        CacheError: The cache cannot be read.
    """
    cache = EngineCache(url)
    entry = _choose(cache, cache.entries(), key)
    return EngineDetails(url=cache.url, key=entry.key, manifest=entry.as_json())


def verify_cache(url: str | None = None, key: str | None = None) -> CacheVerified:
    """Reads every file of every engine, or of one, and compares it with its manifest.

    Raises:
        UsageError: None, or more than one, begins with ``key``.
        CacheError: The cache cannot be read.
    """
    cache = EngineCache(url)
    contents = cache.contents()
    entries = contents.entries if key is None else (_choose(cache, contents.entries, key),)
    damage = {one.key: [one.why] for one in contents.unreadable if key is None and not one.is_newer}
    found = {entry.key: cache.verify(entry) for entry in entries}
    return CacheVerified(
        url=cache.url,
        good=tuple(one for one, wrong in found.items() if not wrong),
        damage={**damage, **{one: wrong for one, wrong in found.items() if wrong}},
        size_bytes=sum(entry.size_bytes for entry in entries),
    )


def prune_cache(
    url: str | None = None,
    *,
    keys: tuple[str, ...] = (),
    model: str = "",
    older_than_s: float | None = None,
    everything: bool = False,
    damaged: bool = False,
    dry_run: bool = False,
) -> CachePruned:
    """Removes the engines and batch sizes that meet all conditions given, then what no engine needs any more.

    Args:
        url: Of the cache; None takes the default one.
        keys: Engines or batch sizes, each by its key or the beginning of it.
        model: Those of one model, by its digest or the beginning of it.
        older_than_s: Those published at least this long ago.
        everything: All, when no other condition is given.
        damaged: Those whose manifest, record or files are damaged, besides the others; this reads every file.
        dry_run: Whether only to tell.

    Raises:
        UsageError: None, or more than one, begins with one of ``keys``; or ``older_than_s`` is negative.
        CacheError: The cache cannot be read or written.
    """
    if older_than_s is not None and older_than_s < 0:
        raise UsageError(f"an age must be >= 0 s, got {older_than_s:g}", "choose a larger number")
    cache = EngineCache(url)
    found = cache.entries() if keys or damaged else ()
    candidates: list[Entry | BatchSize] = [*found, *(KeptBatchSizes.of(cache.objects).sizes if keys else ())]
    chosen = tuple(_choose(cache, candidates, key).key for key in keys)
    selection = Selection(keys=chosen, model=model, older_than_s=older_than_s, everything=everything)
    rotten = tuple(entry.key for entry in found if damaged and cache.verify(entry))
    done = prune(cache, selection, damaged=damaged, also=rotten, dry_run=dry_run)
    return CachePruned(
        url=cache.url,
        engines=tuple(map(CachedEngine.of, done.entries)),
        damaged=done.damaged,
        blobs=done.blobs,
        size_bytes=done.size_bytes,
        records=done.records,
        blobs_kept=done.blobs_kept,
        batch_sizes=tuple(map(CachedBatchSize.of, done.batch_sizes)),
        damaged_sizes=done.damaged_sizes,
        dry_run=dry_run,
    )


def _choose(cache: EngineCache, kept: Sequence[_Kept], key: str) -> _Kept:
    # An engine and the batch size that was measured with it may have one key.
    by_key = {one.key: one for one in kept}
    found = [one for name, one in by_key.items() if name.startswith(key)]
    if len(found) == 1:
        return found[0]
    shown = found or list(by_key.values())
    names = ", ".join(one.key[:SHORT] for one in shown[:_CANDIDATES_SHOWN])
    if len(shown) > _CANDIDATES_SHOWN:
        names += f" and {len(shown) - _CANDIDATES_SHOWN:,} more"
    if found:
        raise UsageError(
            f"{len(found):,} engines in {cache.url} begin with {key!r}", f"choose one of {names}"
        )
    raise UsageError(
        f"no engine in {cache.url} begins with {key!r}", f"it has {names}" if names else "it has none"
    )
