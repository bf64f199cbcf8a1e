"""Calibration tables beside the engine cache, found by the model they are of.

CACHE/calibration/<model digest>/000001.json               tables in the order they were stored
CACHE/calibration/<model digest>/signed/<sha256>.hmac      signatures of tables, where a key is set

A number is created with put-if-absent, so that tables stored at once get one each, and which one is the
newest needs nobody's clock.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any

from ...errors import CalibrationError
from ..cache.location import default_cache_url
from ..cache.objects import Objects
from .table import CalibrationTable

__all__ = ["TABLES", "TableStore"]

TABLES = "calibration"
"""The folder below the cache."""

_NAME = re.compile(r"(\d{6,18})\.json")
_SIGNED = "calibration table"


class TableStore:
    """Tables on a local directory or an object store; equal and travelling between processes by URL.

    Args:
        location: A directory or ``s3://bucket/prefix``; None takes the engine cache's default.

    Raises:
        UsageError: The location is malformed.
        CacheError: There is no default.
    """

    def __init__(self, location: str | os.PathLike[str] | None = None) -> None:
        self._objects = Objects(default_cache_url() if location is None else location)
        self.url = self._objects.url

    def __repr__(self) -> str:
        return f"TableStore({self.url!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TableStore) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __reduce__(self) -> tuple[type[TableStore], tuple[str]]:
        return (TableStore, (self.url,))

    def put(self, table: CalibrationTable) -> str:
        """Stores a table as the newest of its model; one that is the newest already is not stored again.

        Returns:
            Its URL, on disk its path.

        Raises:
            CacheError: The cache cannot be written.
        """
        data = table.encode()
        if self._objects.key is not None:
            signature = self._objects.key.sign(_SIGNED, data)
            self._objects.put(_signature_path(table.model, data), signature.encode())
        numbers = self._numbers(table.model)
        if numbers and self._objects.get(self._path(table.model, numbers[-1])) == data:
            return self._describe(table.model, numbers[-1])
        number = numbers[-1] + 1 if numbers else 1
        while not self._objects.put_new(self._path(table.model, number), data):
            number += 1
        return self._describe(table.model, number)

    def find(
        self, model_digest: str, feed: Mapping[str, Any], method: str | None = None
    ) -> tuple[str, CalibrationTable] | None:
        """The table to use for a model that is fed so: the one stored last of those with exactly that feed.

        Args:
            model_digest: Of the model.
            feed: What decides the values fed, as in the table.
            method: Takes only tables of that method, as ``str(Method)`` writes it.

        Returns:
            Its URL and the table, or None.

        Raises:
            CalibrationError: A table that would have to be looked at is damaged, of another model, or not
                signed with the cache's key.
            CacheError: The cache cannot be read.
        """
        for number in reversed(self._numbers(model_digest)):
            found = self._read(model_digest, number)
            if found is None or found[1].feed_differences(feed):
                continue
            if method in (None, found[1].method):
                return found
        return None

    def all(self, model_digest: str) -> list[tuple[str, CalibrationTable]]:
        """Every table of a model with its URL, the one stored last first.

        Raises:
            CalibrationError: One is damaged, of another model, or not signed with the cache's key.
            CacheError: The cache cannot be read.
        """
        read = (self._read(model_digest, number) for number in reversed(self._numbers(model_digest)))
        return [found for found in read if found is not None]

    def _read(self, model_digest: str, number: int) -> tuple[str, CalibrationTable] | None:
        data = self._objects.get(self._path(model_digest, number))
        if data is None:
            return None
        url = self._describe(model_digest, number)
        self._check_signature(model_digest, data, url)
        table = CalibrationTable.decode(data, url)
        if table.model != model_digest:
            raise CalibrationError(
                f"{url} is of another model, {table.model_name} with digest {table.model[:12]}",
                "remove that file",
            )
        return url, table

    def _check_signature(self, model_digest: str, data: bytes, url: str) -> None:
        key = self._objects.key
        if key is None:
            return
        signature = self._objects.get(_signature_path(model_digest, data)) or b""
        if not key.accepts(_SIGNED, data, signature.decode(errors="replace")):
            raise CalibrationError(
                f"{url} is not signed with key {key.id}",
                "remove that file and calibrate again, or name the table with --table if you trust it",
            )

    def _numbers(self, model_digest: str) -> list[int]:
        folder = f"{TABLES}/{model_digest}"
        names = [path.removeprefix(f"{folder}/") for path in self._objects.paths(folder)]
        return sorted(int(found[1]) for found in map(_NAME.fullmatch, names) if found)

    def _path(self, model_digest: str, number: int) -> str:
        return f"{TABLES}/{model_digest}/{number:06d}.json"

    def _describe(self, model_digest: str, number: int) -> str:
        return self._objects.describe(self._path(model_digest, number))


def _signature_path(model_digest: str, data: bytes) -> str:
    return f"{TABLES}/{model_digest}/signed/{hashlib.sha256(data).hexdigest()}.hmac"
