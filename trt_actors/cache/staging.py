"""A node's own copies of engines: fetched once for all its processes, and verified at every opening."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...datasets.storage import foreign_errors
from ...errors import CacheError
from .entry import Entry
from .location import default_staging_folder
from .objects import BLOBS
from .store import EngineCache

__all__ = ["How", "Staged", "stage"]

How = Literal["found", "built", "waited"]

_KEPT_S = 30 * 86400.0
_OURS = re.compile(r"[0-9a-f]{64}(\.lock)?|fetching-.*")
_LOCK_PATIENCE_S = 600.0
_LOCK_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Staged:
    """An engine whose files lie on this machine.

    Attributes:
        entry: The engine.
        folder: Where its files lie, each under its digest.
        how: Whether it was ``found`` in the cache, ``built`` by this process, or ``waited`` for while another
            built it.
    """

    entry: Entry
    folder: str
    how: How = "found"

    def path(self, name: str) -> str:
        """Where a file lies. Whoever opens it there has verified nothing; ``read`` does.

        Raises:
            CacheError: The engine has no such file.
        """
        return os.path.join(self.folder, self.entry.file(name).sha256)

    def read(self, name: str) -> bytes:
        """A file's bytes, verified.

        Raises:
            CacheError: They are missing, or not what the manifest says.
        """
        path = self.path(name)
        try:
            data = Path(path).read_bytes()
        except FileNotFoundError as error:
            raise self.entry.missing(name, path) from error
        except OSError as error:
            raise CacheError(f"{path} cannot be read: {error.strerror}", "check that folder") from error
        return self.entry.checked(name, data, path)


def stage(cache: EngineCache, entry: Entry, folder: str | os.PathLike[str] | None = None) -> Staged:
    """Brings an engine's files onto this machine; those of a local cache are used where they are.

    Copies that nobody staged for 30 days go when new ones come.

    Args:
        cache: Holds the engine.
        entry: The engine.
        folder: Where this machine keeps copies; None takes ``default_staging_folder()``.

    Raises:
        CacheError: A file is missing or damaged in the cache, or the folder cannot be written.
    """
    if cache.objects.local_root is not None:
        staged = Staged(entry=entry, folder=os.path.join(cache.objects.local_root, BLOBS))
        for name in entry.files:
            if not os.path.exists(staged.path(name)):
                raise entry.missing(name, staged.path(name))
        return staged
    staged = Staged(entry=entry, folder=os.path.abspath(folder or default_staging_folder()))
    doing = f"engines cannot be staged in {staged.folder}"
    with foreign_errors(CacheError, doing, "name another folder with TRTFLEET_STAGING"):
        os.makedirs(staged.folder, mode=0o700, exist_ok=True)
        fetched = [_fetch(cache, staged, name) for name in entry.files]
        if any(fetched):
            _sweep(staged.folder)
    return staged


def _fetch(cache: EngineCache, staged: Staged, name: str) -> bool:
    """Fetches a file unless it is there; whether it did."""
    target = staged.path(name)
    if _is_whole(staged, name):
        return False
    with _locked(f"{target}.lock"):
        if _is_whole(staged, name):
            return False
        handle, temporary = tempfile.mkstemp(dir=staged.folder, prefix="fetching-")
        try:
            with os.fdopen(handle, "wb") as sink:
                for chunk in cache.chunks(staged.entry, name):
                    sink.write(chunk)
            os.replace(temporary, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    return True


def _sweep(folder: str) -> None:
    oldest_s = time.time() - _KEPT_S
    for file in os.scandir(folder):
        # The folder may be somebody's, with other files in it.
        if _OURS.fullmatch(file.name):
            with contextlib.suppress(FileNotFoundError):
                if file.stat().st_mtime < oldest_s:
                    os.unlink(file.path)


def _is_whole(staged: Staged, name: str) -> bool:
    wanted = staged.entry.file(name)
    try:
        with open(staged.path(name), "rb") as file:
            if os.fstat(file.fileno()).st_size != wanted.size_bytes:
                return False
            with contextlib.suppress(OSError):
                os.utime(file.fileno())
            return hashlib.file_digest(file, "sha256").hexdigest() == wanted.sha256
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Lets one process of this machine fetch at a time.

    A lock that cannot be had, because the file system has none or its holder is frozen, is done without:
    files appear under their names whole, so that fetching twice is waste and nothing worse.
    """
    deadline_s = time.monotonic() + _LOCK_PATIENCE_S
    with open(path, "wb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES) or time.monotonic() > deadline_s:
                    break
            time.sleep(_LOCK_POLL_S)
        yield
