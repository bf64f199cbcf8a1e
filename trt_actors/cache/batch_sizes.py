"""Batch sizes that were measured, kept beside the engines and found by what they were measured on.

A record is overwritten by a later measurement: it saves time, and nothing is wrong with another size.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass, field
from typing import Any, Self

from .identity import Identity, canonical
from .objects import BATCHES, Objects
from .signing import CacheKey

__all__ = ["BatchSize", "KeptBatchSizes", "find_batch_size", "forget_batch_sizes", "keep_batch_size"]

_FORMAT = 1
_SIGNED = "batch size"
_MOST_ROWS = 1 << 24


@dataclass(frozen=True, kw_only=True)
class BatchSize:
    """A measured batch size.

    Attributes:
        identity: The network and the engine that executed it; ``flavour`` is the backend.
        rows: Rows a batch.
        rows_per_s: How fast the engine was with it.
        created_s: Unix time of the measurement, by its clock.
        host: Where it was made.
    """

    identity: Identity
    rows: int
    rows_per_s: float = 0.0
    created_s: float = field(default_factory=time.time)
    host: str = field(default_factory=socket.gethostname)

    def __post_init__(self) -> None:
        if type(self.rows) is not int or not 1 <= self.rows <= _MOST_ROWS:
            raise ValueError(f"{self.rows!r} is no batch size")

    @property
    def key(self) -> str:
        """The identity's key, under which the record lies."""
        return self.identity.key

    def as_json(self) -> dict[str, Any]:
        """The record as plain values."""
        return {
            "identity": self.identity.as_json(),
            "rows": self.rows,
            "rows_per_s": self.rows_per_s,
            "created_s": self.created_s,
            "host": self.host,
        }

    def encode(self, key: CacheKey | None = None) -> bytes:
        """The record as UTF-8 JSON, with a signature where there is a key."""
        values = self.as_json()
        signed = {} if key is None else {"hmac": key.sign(_SIGNED, canonical(values))}
        return json.dumps({"format": _FORMAT, **signed, **values}, indent=1).encode()

    @classmethod
    def decode(cls, data: bytes, key: CacheKey | None = None) -> Self | None:
        """Reads a record.

        Returns:
            None, which counts as no record, when it is damaged, of another format or not signed with the key.
        """
        try:
            values = json.loads(data)
            if values.pop("format") != _FORMAT:
                return None
            signature = values.pop("hmac", None)
            if key is not None and not key.accepts(_SIGNED, canonical(values), signature):
                return None
            return cls(
                identity=Identity.from_json(values["identity"]),
                rows=values["rows"],
                rows_per_s=float(values["rows_per_s"]),
                created_s=float(values["created_s"]),
                host=str(values["host"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
            return None


@dataclass(frozen=True, kw_only=True)
class KeptBatchSizes:
    """All records of a cache.

    Attributes:
        sizes: The oldest first.
        unreadable: Keys of records that cannot be read.
    """

    sizes: tuple[BatchSize, ...]
    unreadable: tuple[str, ...]

    @classmethod
    def of(cls, objects: Objects) -> Self:
        """Reads every record.

        Raises:
            CacheError: The cache cannot be read.
        """
        found: list[BatchSize] = []
        unreadable: list[str] = []
        for path in objects.paths(BATCHES):
            key = path.removeprefix(f"{BATCHES}/").removesuffix(".json")
            data = objects.get(path)
            size = None if data is None else BatchSize.decode(data, objects.key)
            if size is not None and size.key == key:
                found.append(size)
            elif data is not None:
                unreadable.append(key)
        return cls(
            sizes=tuple(sorted(found, key=lambda size: (size.created_s, size.key))),
            unreadable=tuple(unreadable),
        )


def _path(key: str) -> str:
    return f"{BATCHES}/{key}.json"


def find_batch_size(objects: Objects, identity: Identity) -> BatchSize | None:
    """What was measured for an identity, or None; a damaged record counts as none.

    Raises:
        CacheError: The cache cannot be read.
    """
    data = objects.get(_path(identity.key))
    found = None if data is None else BatchSize.decode(data, objects.key)
    return found if found is not None and not identity.differences(found.identity) else None


def keep_batch_size(objects: Objects, size: BatchSize) -> None:
    """Keeps a measurement instead of an earlier one.

    Raises:
        CacheError: The cache cannot be written.
    """
    objects.put(_path(size.key), size.encode(objects.key))


def forget_batch_sizes(objects: Objects, *keys: str) -> None:
    """Removes records; those already gone are passed over.

    Raises:
        CacheError: The cache cannot be written.
    """
    objects.delete([_path(key) for key in keys])
