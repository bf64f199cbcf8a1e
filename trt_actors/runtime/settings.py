"""How a flavour makes execution contexts, with TensorRT-RTX's settings where it has them."""

from __future__ import annotations

from typing import Any

__all__ = ["RuntimeSettings"]


class RuntimeSettings:
    """Makes the contexts of one engine.

    TensorRT-RTX compiles kernels for the shapes it meets: in the background while slower ones serve, or, for
    a context whose executions are captured, before the first execution, because a captured graph would keep
    the slower ones for good. What it compiled is in a cache that all contexts share.

    Args:
        api: The flavour's module.
        engine: Deserialized.
    """

    def __init__(self, api: Any, engine: Any) -> None:
        self._api = api
        self._engine: Any = engine
        self._cache: Any = None
        self._configs: dict[bool, Any] = {}

    def make_context(self, *, is_captured: bool) -> Any:
        """A new execution context, or None when TensorRT refuses; the logger then has its words.

        Args:
            is_captured: Whether its executions will become graphs.
        """
        if not hasattr(self._api, "DynamicShapesKernelSpecializationStrategy"):
            return self._engine.create_execution_context()
        if is_captured not in self._configs:
            self._configs[is_captured] = self._config(is_captured)
        return self._engine.create_execution_context(self._configs[is_captured])

    def _config(self, is_captured: bool) -> Any:
        strategies = self._api.DynamicShapesKernelSpecializationStrategy
        config = self._engine.create_runtime_config()
        config.dynamic_shapes_kernel_specialization_strategy = (
            strategies.EAGER if is_captured else strategies.LAZY
        )
        if self._cache is None:
            self._cache = config.create_runtime_cache()
        config.set_runtime_cache(self._cache)
        return config

    def close(self) -> None:
        """Drops the settings; every context must be gone."""
        self._configs.clear()
        self._cache = None
        self._engine = None
