"""What an engine cache tells: listings, findings and removals, in words and as plain values."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import CacheError
from ..trt_actors.cache.entry import Entry

__all__ = ["SHORT", "CacheListing", "CachePruned", "CacheVerified", "CachedEngine", "EngineDetails"]

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
            f"{_bytes(self.size_bytes)} in {self.files} files  {_age(self.age_s)} old"
        )


@dataclass(frozen=True, kw_only=True)
class CacheListing:
    """All engines of a cache, the oldest first.

    Attributes:
        url: Of the cache.
        engines: Its engines.
        unreadable: What is wrong with manifests that cannot be read.
    """

    url: str
    engines: tuple[CachedEngine, ...]
    unreadable: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The listing as plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The listing in words, a line for each engine."""
        whole = sum(engine.size_bytes for engine in self.engines)
        lines = [engine.line() for engine in self.engines]
        lines.append(f"{len(self.engines):,} engines, {_bytes(whole)} in {self.url}")
        return lines + [f"unreadable: {why}" for why in self.unreadable]


@dataclass(frozen=True, kw_only=True)
class EngineDetails:
    """Everything that the manifest of one engine says.

    Attributes:
        url: Of the cache.
        key: The engine's whole key.
        manifest: The manifest as plain values.
    """

    url: str
    key: str
    manifest: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The details as plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The details in words, a line for each field."""
        manifest = dict(self.manifest)
        identity = dict(manifest.pop("identity"))
        options, files, extra = identity.pop("options"), manifest.pop("files"), manifest.pop("extra")
        made = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(manifest["created_s"]))
        lines = [f"engine {self.key} in {self.url}"]
        lines += [f"{name}: {_plain(value)}" for name, value in identity.items()]
        lines += [f"option {name}: {_plain(value)}" for name, value in sorted(options.items())]
        lines.append(f"built on {manifest['host']} in {manifest['build_s']:.1f} s, published {made} UTC")
        lines += [
            f"file {name}: {_bytes(stored['size_bytes'])}, SHA-256 {stored['sha256']}"
            for name, stored in files.items()
        ]
        return lines + [f"{name}: {_plain(value)}" for name, value in sorted(extra.items())]


@dataclass(frozen=True, kw_only=True)
class CacheVerified:
    """Which engines are what their manifests say.

    Attributes:
        url: Of the cache.
        good: Keys of sound engines.
        damage: What is wrong, by key.
        size_bytes: Of all files that were to be read.
    """

    url: str
    good: tuple[str, ...]
    damage: dict[str, list[str]]
    size_bytes: int

    def as_json(self) -> dict[str, Any]:
        """The findings as plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The findings in words."""
        lines = [f"damaged: {why}" for found in self.damage.values() for why in found]
        return [
            *lines,
            f"{len(self.good):,} engines are sound, {len(self.damage):,} damaged, "
            f"{_bytes(self.size_bytes)} in {self.url}",
        ]

    def check(self) -> None:
        """Does nothing when all engines are sound.

        Raises:
            CacheError: Some are not.
        """
        if self.damage:
            raise CacheError(
                f"{len(self.damage):,} engines in {self.url} are damaged: "
                f"{', '.join(key[:SHORT] for key in self.damage)}",
                "remove them with `trtfleet cache prune --damaged`; jobs build them anew",
            )


@dataclass(frozen=True, kw_only=True)
class CachePruned:
    """What was removed.

    Attributes:
        url: Of the cache.
        engines: The engines removed.
        damaged: Keys of damaged engines removed.
        blobs: How many contents that no engine needs any more.
        size_bytes: Of these.
        records: How many records of dead builders.
        blobs_kept: Why contents had to stay.
        dry_run: Whether nothing was removed, only looked at.
    """

    url: str
    engines: tuple[CachedEngine, ...]
    damaged: tuple[str, ...]
    blobs: int
    size_bytes: int
    records: int
    blobs_kept: str
    dry_run: bool

    def as_json(self) -> dict[str, Any]:
        """The removal as plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The removal in words."""
        verb = "would remove" if self.dry_run else "removed"
        lines = [engine.line() for engine in self.engines]
        lines += [f"{key[:SHORT]}  damaged" for key in self.damaged]
        lines.append(
            f"{verb} {len(self.engines) + len(self.damaged):,} engines, {self.blobs:,} contents "
            f"({_bytes(self.size_bytes)}) and {self.records:,} records of builders from {self.url}"
        )
        return [*lines, f"contents stay: {self.blobs_kept}"] if self.blobs_kept else lines


def _bytes(size_bytes: int) -> str:
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


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value in (None, "") else str(value)
