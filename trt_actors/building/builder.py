"""Builds a plan from an ONNX model with whichever flavour of TensorRT is installed; needs no GPU with RTX."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from ...errors import BackendError, ModelError, UsageError
from .flavour import Flavour
from .log import MessageLog
from .monitor import Progress, make_monitor
from .options import BuildOptions, Profile

__all__ = ["BuiltPlan", "build_plan"]

_HARDWARE = {"ampere-plus": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}


@dataclass(frozen=True, kw_only=True)
class BuiltPlan:
    """A serialized engine.

    Attributes:
        plan: What ``Runtime.deserialize_cuda_engine`` takes.
        types: How many multiplying layers TensorRT typed as what, e.g. ``{"HALF": 53}``.
        timing_cache: What the build learned about kernels; None where the flavour keeps nothing.
        seconds: What the build took.
    """

    plan: bytes = field(repr=False)
    types: Mapping[str, int]
    timing_cache: bytes | None = field(repr=False, default=None)
    seconds: float


def build_plan(
    flavour: Flavour,
    model: bytes,
    options: BuildOptions,
    profiles: Sequence[Profile],
    *,
    timing_cache: bytes | None = None,
    progress: Progress | None = None,
) -> BuiltPlan:
    """Builds one plan.

    The network is strongly typed: its precision is that of the ONNX graph, never lowered by the builder.

    Args:
        flavour: Who builds.
        model: Serialized ModelProto, below 2 GiB.
        options: Limits of the build; precision and profiles are in the model and in ``profiles`` already.
        profiles: Shapes of every input with a free dimension.
        timing_cache: What an earlier build learned; ignored when it does not fit this device and version.
        progress: Told how far the build is; may end it.

    Raises:
        ModelError: TensorRT cannot parse or build the model; the message has its words.
        UsageError: The installed flavour does not know an option, or a profile names no input.
        BackendError: TensorRT does not start.
        KeyboardInterrupt: ``progress`` ended the build, or Ctrl-C did.
    """
    api, start = flavour.api, time.monotonic()
    log = MessageLog.over(api)
    try:
        builder = api.Builder(log)
    except Exception as error:
        raise BackendError(
            f"{flavour} does not start: {log.why() or error}", "see `trtfleet doctor`"
        ) from error
    network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = api.OnnxParser(network, log)
    if not parser.parse(model):
        raise ModelError(
            f"{flavour} cannot parse the model: {_parser_words(parser, log)}", "see `trtfleet partition`"
        )
    config = builder.create_builder_config()
    _apply(api, flavour, config, options)
    _add_profiles(builder, network, config, profiles)
    cache = _timing_cache(flavour, config, timing_cache)
    monitor = make_monitor(api, progress)
    config.progress_monitor = monitor
    plan = _run(lambda: builder.build_serialized_network(network, config), monitor)
    if monitor.is_ended:
        raise KeyboardInterrupt
    if plan is None:
        raise ModelError(
            f"{flavour} cannot build the model: {log.why() or 'it gave no reason'}", _hint(log.why())
        )
    learned = bytes(cache.serialize()) if cache is not None else None
    return BuiltPlan(
        plan=bytes(plan),
        types=_types(api, network),
        timing_cache=learned,
        seconds=time.monotonic() - start,
    )


def _types(api: Any, network: Any) -> dict[str, int]:
    multiplying = (api.LayerType.CONVOLUTION, api.LayerType.DECONVOLUTION, api.LayerType.MATRIX_MULTIPLY)
    found: dict[str, int] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type in multiplying:
            name = layer.get_output(0).dtype.name
            found[name] = found.get(name, 0) + 1
    return found


def _parser_words(parser: Any, log: Any) -> str:
    words = [" ".join(parser.get_error(index).desc().split()) for index in range(parser.num_errors)]
    return (words or [log.why() or "it gave no reason"])[0][:400]


def _hint(why: str) -> str:
    if "workspace" in why.lower() or "memory" in why.lower():
        return "raise --workspace-size or lower --max-batch-size"
    return "see `trtfleet partition` for what TensorRT takes of it"


def _apply(api: Any, flavour: Flavour, config: Any, options: BuildOptions) -> None:
    if options.workspace_size is not None:
        config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, options.workspace_size)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        config.set_flag(_known(api.BuilderFlag, "VERSION_COMPATIBLE", flavour, "--version-compatible"))
    if options.hardware_compatible != "none":
        levels = getattr(api, "HardwareCompatibilityLevel", None)
        wanted = _HARDWARE[options.hardware_compatible]
        config.hardware_compatibility_level = _known(levels, wanted, flavour, "--hardware-compatible")


def _known(enum: Any, name: str, flavour: Flavour, flag: str) -> Any:
    value = getattr(enum, name, None)
    if value is None:
        raise UsageError(f"{flavour} does not know {flag}", f"leave {flag} out; its plans are as they are")
    return value


def _add_profiles(builder: Any, network: Any, config: Any, profiles: Sequence[Profile]) -> None:
    inputs = {network.get_input(index).name: network.get_input(index) for index in range(network.num_inputs)}
    wanted = {profile.name: profile for profile in profiles if profile.name in inputs}
    dynamic = [name for name, tensor in inputs.items() if -1 in tuple(tensor.shape)]
    for name in dynamic:
        if name not in wanted:
            raise UsageError(
                f"input {name!r} has free dimensions {list(inputs[name].shape)} and no profile",
                f"add --profile {name}=MIN,OPT,MAX",
            )
    if not dynamic:
        return
    made = builder.create_optimization_profile()
    for name in dynamic:
        profile = wanted[name]
        made.set_shape(name, profile.min, profile.opt, profile.max)
    config.add_optimization_profile(made)


def _timing_cache(flavour: Flavour, config: Any, known: bytes | None) -> Any:
    # TensorRT-RTX times nothing while it builds: there the calls exist and do nothing but warn.
    if flavour.name == "tensorrt-rtx":
        return None
    cache = config.create_timing_cache(known or b"")
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, True)
    return cache


def _run(build: Callable[[], Any], monitor: Any) -> Any:
    """Calls into native code from another thread, so that Ctrl-C reaches this one and ends the build."""
    with ThreadPoolExecutor(1, "build") as thread:
        future = thread.submit(build)
        try:
            wait([future])
        except KeyboardInterrupt:
            monitor.end()
            raise
        return future.result()
