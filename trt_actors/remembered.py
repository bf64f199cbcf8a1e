"""The batch size that was found best for a network on a kind of GPU, from job to job."""

from __future__ import annotations

from ..errors import CacheError
from .building.flavour import find_flavour
from .cache.batch_sizes import BatchSize, find_batch_size, forget_batch_sizes, keep_batch_size
from .cache.identity import Identity
from .cache.store import EngineCache
from .engine import Engine
from .onnxruntime_engine import onnxruntime_version
from .prepared import Prepared
from .runtime.libcuda import GpuInfo, gpus
from .task import TensorRTSettings

__all__ = ["BatchMemory", "batch_identity", "batch_identity_of", "batch_memory"]


class BatchMemory:
    """One network's batch size on one kind of GPU, kept in the engine cache.

    A cache that cannot be used costs the measurement and is told once in ``notes``; it fails no job.

    Args:
        identity: Of the network and what executes it.
        cache: Of engines; None for the default.
    """

    def __init__(self, identity: Identity, cache: str | None) -> None:
        self._identity = identity
        self._cache = cache
        self.notes: tuple[str, ...] = ()

    def recall(self) -> int | None:
        """The size kept, or None."""
        try:
            found = find_batch_size(EngineCache(self._cache).objects, self._identity)
        except CacheError as error:
            self._tell(error)
            return None
        return found.rows if found else None

    def keep(self, rows: int, rows_per_s: float) -> None:
        """Keeps a size that was measured."""
        size = BatchSize(identity=self._identity, rows=rows, rows_per_s=rows_per_s)
        try:
            keep_batch_size(EngineCache(self._cache).objects, size)
        except CacheError as error:
            self._tell(error)

    def forget(self) -> None:
        """Keeps nothing any more, so that the next job measures."""
        try:
            forget_batch_sizes(EngineCache(self._cache).objects, self._identity.key)
        except CacheError as error:
            self._tell(error)

    def _tell(self, error: CacheError) -> None:
        if not self.notes:
            self.notes = (f"the batch size is not remembered: {error.fact}",)


def batch_identity(engine: Engine, network: Prepared, settings: TensorRTSettings, gpu: GpuInfo) -> Identity:
    """All that the best batch size depends on.

    Args:
        engine: What executes the network.
        network: With its pre- and post-processing.
        settings: How TensorRT engines are built, if it is one.
        gpu: Where it runs; batch sizes belong to a kind of GPU even where plans do not.
    """
    return batch_identity_of(engine.backend, network.digest, settings, gpu)


def batch_identity_of(
    backend: str, network_digest: str, settings: TensorRTSettings, gpu: GpuInfo
) -> Identity:
    """The same before there is an engine: with the name that its ``backend`` would have."""
    is_onnxruntime = backend.startswith("onnxruntime")
    return Identity(
        model=settings.model_digest,
        network=network_digest,
        options={} if is_onnxruntime else settings.options.as_identity(),
        flavour=backend,
        version=onnxruntime_version() if is_onnxruntime else find_flavour().version,
        compute_capability=".".join(map(str, gpu.compute_capability)),
        gpu=gpu.name,
    )


def batch_memory(engine: Engine, network: Prepared, settings: TensorRTSettings) -> BatchMemory | None:
    """Where an open engine's batch size is remembered.

    Returns:
        None where nothing is: with the cache off, and on CPUs, where measuring takes a second and depends on
        what else the machine does.
    """
    if not settings.use_static or engine.device_s is None:
        return None
    visible = gpus()
    if not visible:
        return None
    return BatchMemory(batch_identity(engine, network, settings, visible[0]), settings.cache)
