"""How warm an engine cache is for a kind of GPU: what need not be built or measured there any more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from ..runtime.libcuda import GpuInfo
from .batch_sizes import KeptBatchSizes
from .identity import Identity
from .store import EngineCache

__all__ = ["CacheIndex", "Warmth", "gpu_class"]

_ANY = "any"


def gpu_class(gpu: GpuInfo) -> str:
    """The kind of a GPU: its name and compute capability, as ``NVIDIA H100 80GB HBM3 (9.0)``."""
    return f"{gpu.name} ({'.'.join(map(str, gpu.compute_capability))})"


@dataclass(frozen=True, kw_only=True)
class Warmth:
    """What a cache holds for one kind of GPU.

    Attributes:
        ready: Engines that the TensorRT there loads.
        ready_bytes: Their size.
        others: Engines for this GPU that another flavour or version of TensorRT made.
        batch_sizes: Networks whose batch size is remembered.
    """

    ready: int = 0
    ready_bytes: int = 0
    others: int = 0
    batch_sizes: int = 0

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Reads plain values."""
        return cls(**{name: int(value) for name, value in values.items() if name in cls.__annotations__})


@dataclass(frozen=True, kw_only=True)
class CacheIndex:
    """What a cache holds, by what it was made for.

    Attributes:
        url: Of the cache.
        engines: Identity and size in bytes of each engine.
        batch_sizes: Identity of each batch size that is remembered.
    """

    url: str
    engines: tuple[tuple[Identity, int], ...]
    batch_sizes: tuple[Identity, ...]

    @classmethod
    def read(cls, url: str | None) -> Self:
        """Reads every manifest and record, and nothing else; what is damaged does not count.

        Args:
            url: Of the cache; None for the default.

        Raises:
            UsageError: The URL is malformed.
            CacheError: The cache cannot be read, or there is no default.
        """
        cache = EngineCache(url)
        return cls(
            url=cache.url,
            engines=tuple((entry.identity, entry.size_bytes) for entry in cache.entries()),
            batch_sizes=tuple(size.identity for size in KeptBatchSizes.of(cache.objects).sizes),
        )

    def warmth(self, gpu: GpuInfo, flavour: str) -> Warmth:
        """What is there for a kind of GPU; portable engines are there for every kind.

        Args:
            gpu: One of that kind.
            flavour: The flavour of TensorRT that runs on it, with its version; empty for none.
        """
        fitting = [(identity, size) for identity, size in self.engines if _fits(identity, gpu)]
        ready = [size for identity, size in fitting if f"{identity.flavour} {identity.version}" == flavour]
        return Warmth(
            ready=len(ready),
            ready_bytes=sum(ready),
            others=len(fitting) - len(ready),
            batch_sizes=sum(1 for identity in self.batch_sizes if _fits(identity, gpu)),
        )


def _fits(identity: Identity, gpu: GpuInfo) -> bool:
    capability = ".".join(map(str, gpu.compute_capability))
    return identity.gpu in (_ANY, gpu.name) and identity.compute_capability in (_ANY, capability)
