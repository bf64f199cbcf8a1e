"""A network as TensorRT engines on this GPU: from the cache, or built here for all that wait, and loaded."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import onnx
from onnx import TensorProto, helper

from ..errors import BackendError, ModelError
from .building.builder import build_plan
from .building.flavour import Flavour, find_flavour
from .building.network_build import BuiltNetwork, build_network
from .building.options import BuildOptions
from .cache.identity import Identity
from .cache.obtain import Built, obtain
from .cache.signing import require_key
from .cache.store import EngineCache
from .partition.clean import clean
from .prepared import Prepared
from .runtime.cuda import CudaDevice, cuda_missing
from .runtime.device import Device
from .runtime.libcuda import GpuInfo, driver_missing, gpus
from .runtime.program import NetworkProgram
from .runtime.segmented import SegmentedEngine
from .runtime.validity import plan_refusal
from .task import TensorRTSettings

__all__ = ["identity_here", "identity_of", "open_tensorrt", "tensorrt_missing"]

_LOG = logging.getLogger(__name__)


@functools.cache
def tensorrt_missing() -> str | None:
    """Why this process cannot run TensorRT engines, or None when it can; looks at GPU 0 without using it.

    Asked once a process: the answer takes the build of a plan.
    """
    missing = cuda_missing()
    if missing is not None:
        return missing
    try:
        flavour = find_flavour()
        return _device_refusal(flavour)
    except (BackendError, ModelError) as error:
        return error.fact


def _device_refusal(flavour: Flavour) -> str | None:
    """Why a flavour's plans do not run on this GPU, or None; asks with the smallest plan there is."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "smallest", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    plan = build_plan(flavour, model.SerializeToString(), BuildOptions(), []).plan
    return plan_refusal(flavour, plan)


def identity_of(
    settings: TensorRTSettings, network_digest: str, flavour: Flavour, gpu: GpuInfo | None
) -> Identity:
    """Under which identity a network's engines are kept.

    Args:
        settings: What they are built for.
        network_digest: Digest of the network with its pre- and post-processing.
        flavour: Who builds.
        gpu: For which GPU; None for plans that depend on none, as TensorRT-RTX's, or are hardware-compatible.
    """
    capability = "any" if gpu is None else ".".join(map(str, gpu.compute_capability))
    return Identity(
        model=settings.model_digest,
        network=network_digest,
        options=settings.options.as_identity(),
        calibration=settings.calibration,
        flavour=flavour.name,
        version=flavour.version,
        compute_capability=capability,
        gpu="any" if gpu is None else gpu.name,
    )


def identity_here(settings: TensorRTSettings, network_digest: str, flavour: Flavour) -> Identity | None:
    """Under which identity a network's engines for GPU 0 of this process are kept.

    Returns:
        None when plans depend on the GPU and there is none; see `identity_of` for the arguments.
    """
    if _is_portable(flavour, settings.options):
        return identity_of(settings, network_digest, flavour, None)
    visible = [] if driver_missing() else gpus()
    return identity_of(settings, network_digest, flavour, visible[0]) if visible else None


def _is_portable(flavour: Flavour, options: BuildOptions) -> bool:
    """Whether plans depend on no single GPU: TensorRT-RTX compiles for the GPU when it loads them."""
    return flavour.name == "tensorrt-rtx" or options.hardware_compatible != "none"


def open_tensorrt(
    network: Prepared,
    settings: TensorRTSettings,
    say: Callable[[str], None] = _LOG.info,
    *,
    flavour: Flavour | None = None,
    device: Device | None = None,
    build: Callable[[onnx.ModelProto, BuildOptions, Flavour], BuiltNetwork] = build_network,
) -> SegmentedEngine:
    """Opens a network's engines on a GPU of this process.

    Args:
        network: What to run.
        settings: How it is built, and where it is kept.
        say: Takes sentences for people.
        flavour: Whose engines; the one to use here by default.
        device: Where they run, not open; GPU 0 by default.
        build: Builds the network when the cache does not have it.

    Raises:
        BackendError: TensorRT or the GPU is not available here.
        ModelError: The network cannot be built.
        CacheError: The cache cannot be used.
    """
    if network.external_folder is not None:
        raise ModelError(
            "models with more than 1.5 GiB of weights cannot be built into TensorRT engines",
            "choose --backend onnxruntime-cuda",
        )
    if flavour is None or device is None:
        missing = tensorrt_missing()
        if missing is not None:
            raise BackendError(f"backend tensorrt is not available: {missing}", "choose --backend auto")
    flavour, device = flavour or find_flavour(), device or CudaDevice()
    options = settings.options

    def built() -> Built:
        model = onnx.load_from_string(network.model_bytes)
        # A network in half precision was cleaned before it was converted.
        made = build(model if options.precision == "fp16" else clean(model), options, flavour)
        return Built(files=made.program.to_files(), extra=made.facts())

    if settings.use_static:
        require_key(settings.cache_key_id)
        identity = identity_here(settings, network.digest, flavour)
        if identity is None:
            raise BackendError(f"{flavour} builds for a GPU, and there is none", "choose --backend auto")
        staged = obtain(EngineCache(settings.cache), identity, built, say=say)
        program = NetworkProgram.from_files(staged.read)
        facts = {**staged.entry.extra, "origin": staged.how}
    else:
        made_here = built()
        program = NetworkProgram.from_files(made_here.files.__getitem__)
        facts = {**made_here.extra, "origin": "built"}
    return SegmentedEngine(
        program,
        inputs=network.inputs,
        outputs=network.outputs,
        max_batch_size=options.max_batch_size,
        flavour=flavour,
        device=device,
        facts={**facts, "flavour": str(flavour)},
    ).open()
