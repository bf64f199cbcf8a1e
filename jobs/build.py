"""``trtfleet build``: a model's TensorRT engines, made ahead of the jobs that use them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError
from ..trt_actors.building.flavour import find_flavour
from ..trt_actors.building.monitor import Progress
from ..trt_actors.building.network_build import BuiltNetwork, build_network
from ..trt_actors.building.options import BuildOptions
from ..trt_actors.building.precision import to_precision
from ..trt_actors.building.profiles import input_profiles
from ..trt_actors.cache.entry import Entry
from ..trt_actors.cache.obtain import Built, obtain
from ..trt_actors.cache.store import EngineCache
from ..trt_actors.model import load_file
from ..trt_actors.task import TensorRTSettings
from ..trt_actors.tensorrt_backend import identity_here
from .int8 import quantized_file

__all__ = ["BuildReport", "run_build"]

_IN_WORDS = {"built": "built", "found": "found in the cache", "waited": "built by another process"}


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What was built or found.

    Attributes:
        model: The model's path.
        entry: The cache entry.
        cache: Where it is.
        how: ``built``, ``found`` or ``waited``.
        built: What this process built; None when it was found.
        seconds: From start to end.
        precision: What the conversion to FP16 did; empty in other precisions.
        calibration: With which table the model was quantized; empty where it was not.
    """

    model: str
    entry: Entry
    cache: str
    how: str
    built: BuiltNetwork | None
    seconds: float
    precision: dict[str, Any] = field(default_factory=dict)
    calibration: str = ""

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "model": self.model,
            "key": self.entry.key,
            "cache": self.cache,
            "how": self.how,
            "seconds": self.seconds,
            "bytes": self.entry.size_bytes,
            "fp16": self.precision,
            "calibration": self.calibration,
            **dict(self.entry.extra),
        }

    def lines(self) -> list[str]:
        """The report in words."""
        verb = _IN_WORDS[self.how]
        lines = [] if self.built is None else self.built.partition.lines()
        plans = dict(self.entry.extra.get("plans", {}))
        lines += [
            f"  {name}: plan of {plan['bytes']:,} bytes built in {plan['build_s']:.1f} s"
            for name, plan in plans.items()
        ]
        if self.precision:
            lines.append(
                f"FP16: {self.precision['halved']} of {self.precision['multiplying']} multiplying nodes, "
                f"largest loss {max(self.precision['loss'].values(), default=0):.2%} of an output's range, "
                f"{len(self.precision['kept'])} nodes kept in FP32"
            )
        if self.calibration:
            lines.append(self.calibration)
        lines.append(
            f"engine {self.entry.key[:12]} {verb}: {self.entry.size_bytes:,} bytes in {self.cache}, "
            f"{self.seconds:.1f} s"
        )
        return lines


def run_build(
    model: str,
    options: BuildOptions,
    *,
    table: str | None = None,
    exclude: Sequence[str] = (),
    cache: str | None = None,
    timing_cache: str | None = None,
    progress: Callable[[str], Progress] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> BuildReport:
    """Builds a model's engines, unless the cache has them.

    Args:
        model: ONNX file or Paddle model.
        options: What to build for.
        table: File of the calibration table that a model in single precision is quantized with for int8;
            None takes the newest one kept.
        exclude: What is not quantized, besides what the calibration left out.
        cache: Where engines are kept; None for the default.
        timing_cache: A file that remembers what builds learn about kernels; made when it is not there.
        progress: Called with a segment's name, returns who is told how far its build is.
        say: Takes sentences for people.

    Raises:
        TrtfleetError: The model cannot be read, cut or built, or the cache cannot be used.
    """
    start = time.monotonic()
    flavour = find_flavour()
    loaded = load_file(model)
    loaded, found = quantized_file(model, loaded, options.precision, table, exclude, cache)
    if found is not None:
        say(found.sentence)
    network = to_precision(loaded.proto, options)
    precision = {} if network.half is None else network.half.facts()
    settings = TensorRTSettings(
        options=options,
        model_digest=loaded.digest,
        cache=cache,
        calibration=None if found is None else found.identity,
    )
    identity = identity_here(settings, "", flavour)
    if identity is None:
        raise UsageError(
            f"{flavour} builds for the GPU of this machine, and there is none",
            "build on a GPU node, or install tensorrt-rtx, whose plans depend on none",
        )
    # What cannot be built is known before anybody waits for it.
    input_profiles(network.model, options)
    made: list[BuiltNetwork] = []

    def build() -> Built:
        known = _read_if_there(timing_cache)
        built = build_network(
            network.model,
            options,
            flavour,
            original=loaded.proto,
            timing_cache=known,
            progress=progress,
        )
        made.append(built)
        learned = [plan.timing_cache for plan in built.plans.values() if plan.timing_cache]
        if timing_cache and learned:
            _write(timing_cache, learned[-1])
        return Built(files=built.program.to_files(), extra={**built.facts(), "fp16": precision})

    store = EngineCache(cache)
    staged = obtain(store, identity, build, say=say)
    return BuildReport(
        model=model,
        entry=staged.entry,
        cache=store.url,
        how=staged.how,
        built=made[0] if made else None,
        seconds=time.monotonic() - start,
        precision=precision,
        calibration="" if found is None else found.sentence,
    )


def _read_if_there(path: str | None) -> bytes | None:
    if path is None or not os.path.exists(path):
        return None
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", "check the path of --timing-cache"
        ) from error


def _write(path: str, data: bytes) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}", "check the path of --timing-cache"
        ) from error
