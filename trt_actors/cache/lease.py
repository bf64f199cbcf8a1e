"""One builder at a time, without trusting anybody's clock.

The lease on a key is a row of numbered records, of which the last counts. Whoever creates a number holds the
lease and renews it by rewriting its own record with a growing counter. Another process takes the lease for
dead when that record has not changed for a while *by its own clock*, and then creates the next number, which
only one can. A holder that was paused and wakes again disturbs nobody: the lease saves work, it protects
nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from ...errors import CacheError
from .identity import canonical
from .objects import LEASES, Objects

__all__ = ["DEFAULT_TTL_S", "Claim", "Lease", "LeaseRecord"]

DEFAULT_TTL_S = 30.0
"""How long a holder may be silent before it is taken for dead."""

_RENEWALS = 5
_PATIENCE_S = 5.0


@dataclass(frozen=True, kw_only=True)
class LeaseRecord:
    """What a holder writes.

    Attributes:
        owner: Host and process, for people, and a random part.
        counter: Grows with every renewal.
        released: Whether the holder is done.
        renewed_s: Unix time by the holder's clock; only a prune looks at it.
    """

    owner: str
    counter: int
    released: bool
    renewed_s: float

    def encode(self) -> bytes:
        """The record as JSON."""
        return canonical(vars(self))

    @classmethod
    def decode(cls, data: bytes) -> LeaseRecord | None:
        """Reads a record; None when it is damaged, which counts as a holder that never renews."""
        try:
            values: Any = json.loads(data)
            return cls(
                owner=str(values["owner"]),
                counter=int(values["counter"]),
                released=bool(values["released"]),
                renewed_s=float(values["renewed_s"]),
            )
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            return None


class Claim:
    """One process's wish to build what a key stands for.

    Args:
        objects: Of the cache.
        key: What is to be built.
        ttl_s: How long a holder may be silent; the same for all who ask.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        objects: Objects,
        key: str,
        ttl_s: float = DEFAULT_TTL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._objects = objects
        self._folder = f"{LEASES}/{key}"
        self._ttl_s = ttl_s
        self._clock = clock
        self._seen: tuple[int, bytes | None] | None = None
        self._seen_s = 0.0
        self.holder = ""
        """Who had the lease at the last try, for messages; empty when nobody had."""

    def take(self) -> Lease | None:
        """Takes the lease when it is free or its holder is dead; None while somebody has it.

        Raises:
            CacheError: The cache cannot be read or written.
        """
        epochs = [_epoch(path) for path in self._objects.paths(self._folder)]
        last = max(epochs, default=0)
        if last and not self._is_free(last):
            return None
        owner = f"{socket.gethostname()} process {os.getpid()} {secrets.token_hex(4)}"
        lease = Lease(self._objects, f"{self._folder}/{last + 1:06d}.json", owner, self._ttl_s)
        return lease if lease.create() else None

    def _is_free(self, epoch: int) -> bool:
        data = self._objects.get(f"{self._folder}/{epoch:06d}.json")
        record = LeaseRecord.decode(data or b"")
        self.holder = record.owner.rpartition(" ")[0] if record and not record.released else ""
        if data is None or (record is not None and record.released):
            return True
        if self._seen != (epoch, data):
            self._seen, self._seen_s = (epoch, data), self._clock()
        return self._clock() - self._seen_s >= self._ttl_s


class Lease:
    """The right to build, as a context manager that renews it in a thread of its own.

    Args:
        objects: Of the cache.
        path: Of its record.
        owner: Who holds it.
        ttl_s: How long it may go without a renewal.
    """

    def __init__(self, objects: Objects, path: str, owner: str, ttl_s: float) -> None:
        self._objects = objects
        self._path = path
        self._owner = owner
        self._ttl_s = ttl_s
        self._counter = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="trtfleet-lease", daemon=True)

    def create(self) -> bool:
        """Creates the record; False when another process was faster."""
        return self._objects.put_new(self._path, self._record(released=False))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Ends renewals and lets the next one in at once; if storage fails, it waits out the time instead."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE_S)
        with contextlib.suppress(CacheError):
            self._objects.put(self._path, self._record(released=True))

    def _keep(self) -> None:
        while not self._done.wait(self._ttl_s / _RENEWALS):
            self._counter += 1
            # The next renewal may succeed; if none does, another process builds too, which costs only time.
            with contextlib.suppress(CacheError):
                self._objects.put(self._path, self._record(released=False))

    def _record(self, *, released: bool) -> bytes:
        record = LeaseRecord(
            owner=self._owner, counter=self._counter, released=released, renewed_s=time.time()
        )
        return record.encode()


def _epoch(path: str) -> int:
    number = path.rpartition("/")[2].removesuffix(".json")
    return int(number) if number.isascii() and number.isdigit() else 0
