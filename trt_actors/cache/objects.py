"""The objects of an engine cache on storage, with every failure of that storage as one kind of error.

CACHE/blobs/<sha256>               what bundles consist of, each content once
CACHE/entries/<key>.json           the manifests; creating one publishes its bundle
CACHE/pending/<name>.json          blobs of a publication under way, which a prune spares
CACHE/leases/<key>/<epoch>.json    who builds what
CACHE/batches/<key>.json           batch sizes that were measured
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator

from ...datasets.storage import Storage, foreign_errors
from ...errors import CacheError
from .signing import cache_key
from .trust import refuse_open_folder

__all__ = ["BATCHES", "BLOBS", "ENTRIES", "LEASES", "PENDING", "Objects", "blob_path", "manifest_path"]

BLOBS, ENTRIES, PENDING, LEASES, BATCHES = "blobs", "entries", "pending", "leases", "batches"

_CHUNK_BYTES = 16 << 20
_MOST_RECORD_BYTES = 80 << 20
_WATCHED = (BLOBS, ENTRIES, BATCHES, "calibration")


def blob_path(sha256: str) -> str:
    """Where a content is."""
    return f"{BLOBS}/{sha256}"


def manifest_path(key: str) -> str:
    """Where an identity's manifest is."""
    return f"{ENTRIES}/{key}.json"


class Objects:
    """Reads and writes objects by their path below the cache; every method raises CacheError when it cannot.

    A local cache that strangers can write to is refused at the first access.

    Args:
        url: A directory or ``s3://bucket/prefix``.

    Attributes:
        url: The same, as it is shown.
        local_root: The directory of a local cache, else None.
        key: Signs and checks what is published; None without ``TRTFLEET_CACHE_KEY``.

    Raises:
        UsageError: The URL is malformed.
        CacheError: There is a key for signatures that cannot be used.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self._storage = Storage(url)
        self.url = self._storage.url
        self.local_root = self._storage.root if self._storage.is_local else None
        self.key = cache_key()
        self._is_safe = self.local_root is None

    def describe(self, path: str) -> str:
        """An object's full name, for messages; on disk its path."""
        return self._storage.describe(path)

    def get(self, path: str) -> bytes | None:
        """A small object, or None; one of more than 80 MiB is refused unread."""
        with self._errors("read"):
            return self._storage.get(path, most_bytes=_MOST_RECORD_BYTES)

    def paths(self, folder: str) -> list[str]:
        """The paths of all objects below a folder, sorted."""
        with self._errors("read"):
            return [found.path for found in self._storage.list(folder)]

    def sizes(self, folder: str) -> dict[str, int]:
        """The sizes in bytes of all objects below a folder, by path."""
        with self._errors("read"):
            return {found.path: found.size_bytes for found in self._storage.list(folder)}

    def chunks(self, path: str) -> Iterator[bytes]:
        """A large object piece by piece.

        Raises:
            FileNotFoundError: There is none.
            CacheError: It cannot be read.
        """
        missing: FileNotFoundError | None = None
        with self._errors("read"):
            try:
                with self._storage.open_input(path) as source:
                    while chunk := source.read(_CHUNK_BYTES):
                        yield chunk
            except FileNotFoundError as error:
                missing = error
        if missing is not None:
            raise missing

    def put_new(self, path: str, data: bytes) -> bool:
        """Creates a small object unless it is there; whether it was not.

        A new local cache is its user's alone.
        """
        with self._errors("written"):
            self._make_root()
            return self._storage.put_new(path, data)

    def put(self, path: str, data: bytes) -> None:
        """Creates or replaces a small object; a new local cache is its user's alone."""
        with self._errors("written"):
            self._make_root()
            self._storage.put(path, data)

    def put_content(self, path: str, data: bytes) -> bool:
        """Stores a large object whose path its content decides, unless it is there whole; whether it was new.

        A damaged one is replaced.
        """
        with self._errors("written"):
            is_new = self._storage.head(path) is None
            if is_new or self._storage.get(path, most_bytes=None) != data:
                # Put-if-absent sends any size in one request, which servers limit and slow lines time out.
                self._storage.put(path, data)
        return is_new

    def delete(self, paths: Iterable[str]) -> None:
        """Deletes objects; those already gone are passed over."""
        with self._errors("written"):
            self._storage.delete(paths)

    def _make_root(self) -> None:
        if self.local_root is not None:
            os.makedirs(self.local_root, mode=0o700, exist_ok=True)

    def _errors(self, what: str) -> contextlib.AbstractContextManager[None]:
        if self.local_root is not None and not self._is_safe:
            refuse_open_folder(self.local_root, _WATCHED)
            # What is not there yet will be made by somebody else, perhaps.
            self._is_safe = os.path.isdir(self.local_root)
        return foreign_errors(
            CacheError,
            f"the engine cache {self.url} cannot be {what}",
            "name another with --cache or TRTFLEET_CACHE",
        )
