"""Removing engines from a cache, and what no engine needs any more."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ...errors import CacheError
from .batch_sizes import BatchSize, KeptBatchSizes, forget_batch_sizes
from .entry import Entry
from .lease import LeaseRecord
from .objects import BLOBS, LEASES, PENDING, Objects, manifest_path
from .store import Contents, EngineCache

__all__ = ["GRACE_S", "Pruned", "Selection", "prune"]

GRACE_S = 3600.0
"""How long a publication or a lease may go without a sign of life before a prune takes it for dead."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which entries and batch sizes to remove: those that meet all conditions given; without one, none.

    Attributes:
        keys: Whole keys.
        model: Digest of a model, or its beginning.
        older_than_s: Only what was published at least this long ago.
        everything: All of them.
    """

    keys: tuple[str, ...] = ()
    model: str = ""
    older_than_s: float | None = None
    everything: bool = False

    def takes(self, entry: Entry | BatchSize, now_s: float) -> bool:
        """Whether an entry or a batch size is to go."""
        conditions = []
        if self.keys:
            conditions.append(entry.key in self.keys)
        if self.model:
            conditions.append(entry.identity.model.startswith(self.model))
        if self.older_than_s is not None:
            conditions.append(now_s - entry.created_s >= self.older_than_s)
        return all(conditions) if conditions else self.everything


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What a prune removed, or would remove.

    Attributes:
        entries: Entries.
        damaged: Keys of manifests that could not be read.
        blobs: How many blobs.
        size_bytes: Of these blobs.
        records: How many records of dead builders.
        blobs_kept: Why no blob was removed; empty when that was possible.
        batch_sizes: Batch sizes that were remembered.
        damaged_sizes: Keys of batch sizes that could not be read.
    """

    entries: tuple[Entry, ...]
    damaged: tuple[str, ...]
    blobs: int
    size_bytes: int
    records: int
    blobs_kept: str = ""
    batch_sizes: tuple[BatchSize, ...] = ()
    damaged_sizes: tuple[str, ...] = ()


def prune(
    cache: EngineCache,
    selection: Selection | None = None,
    *,
    also: Collection[str] = (),
    damaged: bool = False,
    dry_run: bool = False,
    grace_s: float = GRACE_S,
) -> Pruned:
    """Removes entries, then blobs that no entry names, and records of builders that are dead or done.

    Blobs of publications under way stay, up to ``grace_s`` after their beginning. Jobs that are about to
    load a removed engine build it anew.

    Args:
        cache: The cache.
        selection: Which entries; None for none.
        also: Keys of further entries.
        damaged: Whether manifests and batch sizes that cannot be read go too; manifests of a later version
            always stay.
        dry_run: Whether to remove nothing and only tell.
        grace_s: See above.

    Raises:
        CacheError: The cache cannot be read or written.
    """
    objects, now_s = cache.objects, time.time()
    wanted = selection or Selection()
    # In this order: what a publication that ends meanwhile names is in the manifests, read last.
    blobs = objects.sizes(BLOBS)
    spared, dead = _pending(objects, now_s - grace_s)
    contents = cache.contents()
    gone = [entry for entry in contents.entries if entry.key in also or wanted.takes(entry, now_s)]
    broken = [one.key for one in contents.unreadable if not one.is_newer] if damaged else []
    kept_why = _unknown_blobs(contents, broken)
    kept = {entry.key for entry in contents.entries} - {entry.key for entry in gone}
    named = spared | {
        stored.sha256 for entry in contents.entries if entry.key in kept for stored in entry.files.values()
    }
    loose = [] if kept_why else [path for path in blobs if path.rpartition("/")[2] not in named]
    dead += _leases(objects, kept, now_s - grace_s)
    sizes = KeptBatchSizes.of(objects)
    forgotten = tuple(size for size in sizes.sizes if wanted.takes(size, now_s))
    illegible = sizes.unreadable if damaged else ()
    if not dry_run:
        # Manifests first: an entry never stands without its blobs.
        objects.delete([manifest_path(key) for key in [*(entry.key for entry in gone), *broken]])
        objects.delete(loose)
        objects.delete(dead)
        forget_batch_sizes(objects, *(size.key for size in forgotten), *illegible)
    return Pruned(
        entries=tuple(gone),
        damaged=tuple(broken),
        blobs=len(loose),
        size_bytes=sum(blobs[path] for path in loose),
        records=len(dead),
        blobs_kept=kept_why,
        batch_sizes=forgotten,
        damaged_sizes=illegible,
    )


def _unknown_blobs(contents: Contents, broken: Sequence[str]) -> str:
    unknown = [one for one in contents.unreadable if one.key not in broken]
    if not unknown:
        return ""
    return f"{len(unknown):,} manifests cannot be read, so that nobody knows what they need: {unknown[0].why}"


def _pending(objects: Objects, oldest_s: float) -> tuple[set[str], list[str]]:
    """The blobs of publications under way, and the notes of those that died."""
    spared: set[str] = set()
    dead: list[str] = []
    for path in objects.paths(PENDING):
        data = objects.get(path)
        if data is None:
            continue
        try:
            note = json.loads(data)
            created_s, blobs = float(note["created_s"]), set(map(str, note["blobs"]))
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
            raise CacheError(f"{objects.describe(path)} is damaged: {error}", "delete that file") from error
        if created_s < oldest_s:
            dead.append(path)
        else:
            spared |= blobs
    return spared, dead


def _leases(objects: Objects, built: set[str], oldest_s: float) -> list[str]:
    """The records of leases that nobody needs: on what is built, superseded, or long without a renewal."""
    paths = objects.paths(LEASES)
    last = {path.split("/")[1]: path for path in paths if path.count("/") == 2}
    dead = []
    for path in paths:
        key = path.split("/")[1]
        if key in built or last.get(key) != path:
            dead.append(path)
            continue
        data = objects.get(path)
        record = LeaseRecord.decode(data or b"")
        if data is not None and (record is None or record.released or record.renewed_s < oldest_s):
            dead.append(path)
    return dead
