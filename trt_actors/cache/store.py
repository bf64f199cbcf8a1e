"""The engine cache: bundles of files on storage, found by identity, verified before anybody gets them.

A manifest is created with put-if-absent after its blobs are stored, and never overwritten: a builder that
dies leaves blobs that nothing refers to, and of two that publish at once the later gets the earlier's entry.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ...errors import CacheError
from .entry import Entry, StoredFile, is_newer
from .identity import Identity, canonical, in_words
from .location import default_cache_url
from .objects import BLOBS, ENTRIES, PENDING, Objects, blob_path, manifest_path

__all__ = ["Contents", "EngineCache", "Unreadable"]

_READERS = 8


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A manifest that cannot be used.

    Attributes:
        key: Of which identity, by its name.
        why: What is wrong with it.
        is_newer: Whether nothing is, but that a later version of trtfleet wrote it.
    """

    key: str
    why: str
    is_newer: bool


@dataclass(frozen=True, kw_only=True)
class Contents:
    """All that a cache holds: its entries, the oldest first, and the manifests that are none."""

    entries: tuple[Entry, ...]
    unreadable: tuple[Unreadable, ...]


class EngineCache:
    """Engines on a local directory or an object store; equal and travelling between processes by URL.

    Nothing is written before the first publication, so that a cache that is only read may be read-only.

    Args:
        url: A directory or ``s3://bucket/prefix``; None takes ``default_cache_url()``.

    Raises:
        UsageError: The URL is malformed.
        CacheError: There is no default.
    """

    def __init__(self, url: str | os.PathLike[str] | None = None) -> None:
        self.objects = Objects(default_cache_url() if url is None else url)
        self.url = self.objects.url

    def __repr__(self) -> str:
        return f"EngineCache({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EngineCache) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __reduce__(self) -> tuple[type[EngineCache], tuple[str]]:
        return (EngineCache, (self.url,))

    def find(self, identity: Identity) -> Entry | None:
        """The entry of an identity, or None.

        Raises:
            CacheError: Its manifest is damaged or of another identity (the differing fields are named), or
                the cache cannot be read.
        """
        path = manifest_path(identity.key)
        data = self.objects.get(path)
        if data is None:
            return None
        name = self.objects.describe(path)
        entry = Entry.decode(data, name, self.objects.key)
        if wrong := identity.differences(entry.identity):
            raise CacheError(
                f"{name} is the manifest of another engine: {in_words(wrong)}",
                "remove it with `trtfleet cache prune --damaged`; the next job builds the engine anew",
            )
        return entry

    def explain_miss(self, identity: Identity) -> str:
        """Says what the nearest entry has that the identity has not, one of the same model if there is any.

        Raises:
            CacheError: The cache cannot be read.
        """
        entries = self.entries()
        same_model = [entry for entry in entries if entry.identity.model == identity.model]
        if not entries:
            return f"{self.url} holds no engine"
        every = [identity.differences(entry.identity) for entry in same_model or entries]
        return in_words(min(every, key=len)) or "it has just been published"

    def publish(
        self,
        identity: Identity,
        files: Mapping[str, bytes],
        *,
        build_s: float = 0.0,
        extra: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Stores a bundle and makes it the entry of an identity, unless there is one.

        Args:
            identity: What the bundle is of.
            files: What it consists of, by name.
            build_s: How long the build took.
            extra: Further plain values to keep.

        Returns:
            The entry that stands, which may be another builder's.

        Raises:
            CacheError: The cache cannot be written, or what stands there is damaged.
        """
        stored = {name: StoredFile.of(data) for name, data in files.items()}
        entry = Entry(identity=identity, files=stored, build_s=build_s, extra=extra or {})
        blobs = {stored[name].sha256: data for name, data in files.items()}
        with self._spared(blobs):
            old = [sha256 for sha256, data in blobs.items() if not self._put_blob(sha256, data)]
            is_ours = self.objects.put_new(manifest_path(entry.key), entry.encode(self.objects.key))
            if is_ours:
                self._heal(blobs, old)
        standing = None if is_ours else self.find(identity)
        return standing or entry

    def read(self, entry: Entry, name: str) -> bytes:
        """A file of an entry.

        Raises:
            CacheError: It is missing or not what the manifest says; nothing unverified is returned.
        """
        return entry.checked(name, b"".join(self._blob(entry, name)), self._where(entry, name))

    def chunks(self, entry: Entry, name: str) -> Iterator[bytes]:
        """A file of an entry piece by piece; it is good only when the iterator ends without an error.

        Raises:
            CacheError: See ``read``.
        """
        digest, size_bytes = hashlib.sha256(), 0
        for chunk in self._blob(entry, name):
            digest.update(chunk)
            size_bytes += len(chunk)
            yield chunk
        entry.check(name, size_bytes=size_bytes, sha256=digest.hexdigest(), where=self._where(entry, name))

    def verify(self, entry: Entry) -> list[str]:
        """Reads every file of an entry; returns what is wrong, in words.

        Raises:
            CacheError: The cache cannot be read at all.
        """
        wrong = []
        for name in sorted(entry.files):
            try:
                for _ in self.chunks(entry, name):
                    pass
            except CacheError as error:
                wrong.append(error.fact)
        return wrong

    def entries(self) -> tuple[Entry, ...]:
        """Every entry that can be read, the oldest first.

        Raises:
            CacheError: The cache cannot be read.
        """
        return self.contents().entries

    def contents(self) -> Contents:
        """Every manifest, readable or not.

        Raises:
            CacheError: The cache cannot be read.
        """
        keys = [
            path.removeprefix(f"{ENTRIES}/").removesuffix(".json") for path in self.objects.paths(ENTRIES)
        ]
        with ThreadPoolExecutor(_READERS) as pool:
            found = [item for item in pool.map(self._look, keys) if item is not None]
        entries = [item for item in found if isinstance(item, Entry)]
        return Contents(
            entries=tuple(sorted(entries, key=lambda entry: (entry.created_s, entry.key))),
            unreadable=tuple(item for item in found if isinstance(item, Unreadable)),
        )

    def _look(self, key: str) -> Entry | Unreadable | None:
        path = manifest_path(key)
        data = self.objects.get(path)
        if data is None:
            return None
        name = self.objects.describe(path)
        try:
            entry = Entry.decode(data, name, self.objects.key)
        except CacheError as error:
            return Unreadable(key=key, why=error.fact, is_newer=is_newer(data))
        if entry.key != key:
            return Unreadable(key=key, why=f"{name} is the manifest of engine {entry.key}", is_newer=False)
        return entry

    def _where(self, entry: Entry, name: str) -> str:
        return self.objects.describe(blob_path(entry.file(name).sha256))

    def _put_blob(self, sha256: str, data: bytes) -> bool:
        return self.objects.put_content(blob_path(sha256), data)

    def _heal(self, blobs: Mapping[str, bytes], old: Collection[str]) -> None:
        """Stores blobs again that were swept as nobody's before the manifest named them.

        Those that were there before may have been, and any if this machine's clock is so wrong that a prune
        elsewhere took the publication for one that died long ago.
        """
        standing = self.objects.sizes(BLOBS)
        for sha256, data in blobs.items():
            if sha256 in old or blob_path(sha256) not in standing:
                self._put_blob(sha256, data)

    def _blob(self, entry: Entry, name: str) -> Iterator[bytes]:
        path = blob_path(entry.file(name).sha256)
        try:
            yield from self.objects.chunks(path)
        except FileNotFoundError as error:
            raise entry.missing(name, self.objects.describe(path)) from error

    @contextlib.contextmanager
    def _spared(self, blobs: Mapping[str, bytes]) -> Iterator[None]:
        note = f"{PENDING}/{secrets.token_hex(16)}.json"
        self.objects.put_new(note, canonical({"blobs": sorted(blobs), "created_s": time.time()}))
        try:
            yield
        finally:
            with contextlib.suppress(CacheError):
                self.objects.delete([note])
