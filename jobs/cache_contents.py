"""What lies in an engine cache, one line for each engine and each batch size."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..trt_actors.cache.batch_sizes import BatchSize
from ..trt_actors.cache.entry import Entry

__all__ = ["SHORT", "CachedBatchSize", "CachedEngine", "size_text"]

SHORT = 12
"""Digits of a key that are shown."""


@dataclass(frozen=True, kw_only=True)
class CachedEngine:
    """One line of a listing.

    Attributes:
        key: The whole key.
        model: Digest of the model.
        precision: As asked for; empty where the build knows none.
        flavour: TensorRT's flavour and version.
        gpu: The GPU's name and compute capability.
        files: How many.
        size_bytes: Of all files.
        created_s: Unix time.
        age_s: Seconds since.
    """

    key: str
    model: str
    precision: str
    flavour: str
    gpu: str
    files: int
    size_bytes: int
    created_s: float
    age_s: float

    @classmethod
    def of(cls, entry: Entry) -> CachedEngine:
        """Sums an entry up."""
        identity = entry.identity
        return cls(
            key=entry.key,
            model=identity.model,
            precision=str(identity.options.get("precision", "")),
            flavour=f"{identity.flavour} {identity.version}",
            gpu=f"{identity.gpu} ({identity.compute_capability})",
            files=len(entry.files),
            size_bytes=entry.size_bytes,
            created_s=entry.created_s,
            age_s=max(0.0, time.time() - entry.created_s),
        )

    def line(self) -> str:
        """The engine in one line."""
        return (
            f"{self.key[:SHORT]}  model {self.model[:SHORT]}  {self.precision}  {self.flavour}  {self.gpu}  "
            f"{size_text(self.size_bytes)} in {self.files} files  {_age(self.age_s)} old"
        )


@dataclass(frozen=True, kw_only=True)
class CachedBatchSize:
    """One line of a listing about a batch size that was measured.

    Attributes:
        key: The whole key.
        model: Digest of the model.
        rows: Rows a batch.
        rows_per_s: How fast the engine was with it.
        backend: What executed, with its version.
        gpu: The GPU's name and compute capability.
        created_s: Unix time.
        age_s: Seconds since.
    """

    key: str
    model: str
    rows: int
    rows_per_s: float
    backend: str
    gpu: str
    created_s: float
    age_s: float

    @classmethod
    def of(cls, size: BatchSize) -> CachedBatchSize:
        """Sums a record up."""
        identity = size.identity
        return cls(
            key=size.key,
            model=identity.model,
            rows=size.rows,
            rows_per_s=size.rows_per_s,
            backend=f"{identity.flavour} {identity.version}",
            gpu=f"{identity.gpu} ({identity.compute_capability})",
            created_s=size.created_s,
            age_s=max(0.0, time.time() - size.created_s),
        )

    def line(self) -> str:
        """The batch size in one line."""
        return (
            f"{self.key[:SHORT]}  model {self.model[:SHORT]}  batch size {self.rows:,}  {self.backend}  "
            f"{self.gpu}  {self.rows_per_s:,.0f} rows/s  {_age(self.age_s)} old"
        )


def size_text(size_bytes: int) -> str:
    """A size in the largest unit that fits."""
    size = float(size_bytes)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"


def _age(seconds: float) -> str:
    for unit, length_s in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:,.0f} {unit}"
    return f"{seconds:,.0f} s"
