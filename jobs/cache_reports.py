"""What an engine cache tells: listings, findings and removals, in words and as plain values."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import CacheError
from .cache_contents import SHORT, CachedBatchSize, CachedEngine, size_text

__all__ = ["CacheListing", "CachePruned", "CacheVerified", "EngineDetails"]


@dataclass(frozen=True, kw_only=True)
class CacheListing:
    """All engines of a cache, and the batch sizes remembered, each the oldest first.

    Attributes:
        url: Of the cache.
        engines: Its engines.
        batch_sizes: Its batch sizes.
        unreadable: What is wrong with manifests and batch sizes that cannot be read.
    """

    url: str
    engines: tuple[CachedEngine, ...]
    batch_sizes: tuple[CachedBatchSize, ...]
    unreadable: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The listing as plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The listing in words, a line for each engine."""
        whole = sum(engine.size_bytes for engine in self.engines)
        lines = [engine.line() for engine in self.engines]
        lines += [size.line() for size in self.batch_sizes]
        counted = f" and {len(self.batch_sizes):,} batch sizes" if self.batch_sizes else ""
        lines.append(f"{len(self.engines):,} engines, {size_text(whole)}{counted} in {self.url}")
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
            f"file {name}: {size_text(stored['size_bytes'])}, SHA-256 {stored['sha256']}"
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
            f"{size_text(self.size_bytes)} in {self.url}",
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
        batch_sizes: The batch sizes removed.
        damaged_sizes: Keys of damaged batch sizes removed.
        dry_run: Whether nothing was removed, only looked at.
    """

    url: str
    engines: tuple[CachedEngine, ...]
    damaged: tuple[str, ...]
    blobs: int
    size_bytes: int
    records: int
    blobs_kept: str
    batch_sizes: tuple[CachedBatchSize, ...]
    damaged_sizes: tuple[str, ...]
    dry_run: bool

    def as_json(self) -> dict[str, Any]:
        """The removal as plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The removal in words."""
        verb = "would remove" if self.dry_run else "removed"
        lines = [engine.line() for engine in self.engines]
        lines += [size.line() for size in self.batch_sizes]
        lines += [f"{key[:SHORT]}  damaged" for key in (*self.damaged, *self.damaged_sizes)]
        lines.append(
            f"{verb} {len(self.engines) + len(self.damaged):,} engines, {self.blobs:,} contents "
            f"({size_text(self.size_bytes)}) and {self.records:,} records of builders from {self.url}"
        )
        sizes = len(self.batch_sizes) + len(self.damaged_sizes)
        if sizes:
            lines.append(f"{verb} {sizes:,} batch sizes")
        return [*lines, f"contents stay: {self.blobs_kept}"] if self.blobs_kept else lines


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value in (None, "") else str(value)
