"""``trtfleet inspect``: what a plan file or a cache entry holds."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import ModelError
from ..trt_actors.building.flavour import find_flavour
from ..trt_actors.building.log import MessageLog
from ..trt_actors.cache.store import EngineCache
from ..trt_actors.runtime.libcuda import driver_missing
from ..trt_actors.runtime.validity import plan_refusal
from .cache import show_engine, verify_cache

__all__ = ["PlanReport", "inspect_plan"]

_LAYERS_SHOWN = 20
_MAGIC = (b"ftrt", b"vtrt")
"""How plans of TensorRT and of TensorRT-RTX begin."""


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """What is known of a plan or an entry.

    Attributes:
        name: The file, or the entry's key.
        size_bytes: Of the plan, or of all files of the entry.
        sha256: Of the plan file; empty for an entry.
        digests: ``ok``, what is wrong, or empty where there is nothing to compare with.
        manifest: The entry's manifest; empty for a file.
        loads: Whether the plan loads here, in words.
        tensors: Inputs and outputs of a plan that loads.
        layers: Its layers, where it allows to look.
    """

    name: str
    size_bytes: int
    sha256: str = ""
    digests: str = ""
    manifest: dict[str, Any] = field(default_factory=dict)
    loads: str = ""
    tensors: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report in words."""
        lines = [
            f"{self.name}: {self.size_bytes:,} bytes" + (f", SHA-256 {self.sha256}" if self.sha256 else "")
        ]
        if self.digests:
            lines.append(f"digests: {self.digests}")
        lines += _manifest_lines(self.manifest)
        if self.loads:
            lines.append(f"on this machine: {self.loads}")
        lines += self.tensors
        lines += [f"  {layer}" for layer in self.layers[:_LAYERS_SHOWN]]
        if len(self.layers) > _LAYERS_SHOWN:
            lines.append(f"  and {len(self.layers) - _LAYERS_SHOWN:,} more layers (--json shows all)")
        return lines


def inspect_plan(name: str, cache: str | None = None) -> PlanReport:
    """Looks at a plan file, or at the cache entry whose key begins with ``name``.

    Raises:
        UsageError: There is neither such a file nor such an entry.
        ModelError: The file is no plan.
        CacheError: The cache cannot be read.
    """
    if os.path.isfile(name):
        return _file(name)
    details = show_engine(name, cache)
    wrong = verify_cache(cache, details.key).damage.get(details.key)
    entry = next(entry for entry in EngineCache(cache).entries() if entry.key == details.key)
    return PlanReport(
        name=details.key,
        size_bytes=entry.size_bytes,
        digests="; ".join(wrong) if wrong else "ok",
        manifest=details.manifest,
    )


def _file(path: str) -> PlanReport:
    try:
        with open(path, "rb") as file:
            plan = file.read()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    if plan[:4] not in _MAGIC:
        raise ModelError(
            f"{path} is no TensorRT plan: it begins with {plan[:4]!r}",
            "give a plan file or the key of a cache entry",
        )
    tensors, layers, loads = _look_inside(plan)
    return PlanReport(
        name=path,
        size_bytes=len(plan),
        sha256=hashlib.sha256(plan).hexdigest(),
        loads=loads,
        tensors=tensors,
        layers=layers,
    )


def _look_inside(plan: bytes) -> tuple[list[str], list[str], str]:
    flavour = find_flavour()
    refused = plan_refusal(flavour, plan)
    if refused is not None:
        return [], [], refused
    missing = driver_missing()
    if missing is not None:
        return [], [], f"cannot be loaded: {missing}"
    log = MessageLog.over(flavour.api)
    runtime = flavour.api.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return [], [], f"does not load: {log.why()}"
    tensors = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        mode, dtype = engine.get_tensor_mode(name).name.lower(), engine.get_tensor_dtype(name).name.lower()
        tensors.append(f"{mode} {name}: {dtype}{list(engine.get_tensor_shape(name))}")
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(flavour.api.LayerInformationFormat.JSON)
    try:
        found = json.loads(text).get("Layers", [])
    except ValueError:
        found = []
    layers = [layer if isinstance(layer, str) else str(layer.get("Name", layer)) for layer in found]
    return tensors, layers, f"loads ({flavour})"


def _manifest_lines(manifest: dict[str, Any]) -> list[str]:
    if not manifest:
        return []
    identity, extra = manifest.get("identity", {}), manifest.get("extra", {})
    lines = [f"  {name}: {value}" for name, value in identity.items() if name != "options"]
    lines += [f"  {name}: {value}" for name, value in identity.get("options", {}).items()]
    for segment in extra.get("partition", {}).get("segments", []):
        lines.append(
            f"  {segment['name']}: {segment['nodes']:,} nodes, takes {', '.join(segment['inputs'])}, "
            f"gives {', '.join(segment['outputs'])}"
        )
        lines += [f"    profile {profile}" for profile in extra.get("profiles", {}).get(segment["name"], [])]
    return lines
