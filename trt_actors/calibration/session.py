"""ONNX Runtime as calibration uses it: the one place of calibration that imports it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnxruntime as ort

from ...datasets.storage import one_line
from ...errors import ModelError
from ..prepared import Prepared

__all__ = ["CPU", "CUDA", "open_session", "run_in_order"]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

_FATAL_ONLY = 4


def open_session(network: Prepared, providers: Sequence[Any]) -> Any:
    """An ONNX Runtime session whose results depend on the batch alone.

    One thread computes each operator: how several divide an operator's work among them could decide in which
    order floating-point numbers are added.

    Raises:
        ModelError: ONNX Runtime cannot load the network.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = _FATAL_ONLY
    if network.external_folder:
        folder_key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(folder_key, network.external_folder)
    try:
        return ort.InferenceSession(network.model_bytes, options, providers=list(providers))
    except Exception as error:
        raise ModelError(
            f"ONNX Runtime {ort.__version__} cannot load the network to calibrate: {one_line(error)}",
            "does the model run in onnxruntime by itself?",
        ) from error


def run_in_order(session: Any, binding: Any) -> Sequence[Any]:
    """Adds a run to the session's stream without waiting for it.

    Returns:
        The outputs, in the order in which they were bound; their values may still be being computed.
    """
    options = ort.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    session.run_with_iobinding(binding, options)
    outputs: Sequence[Any] = binding.get_outputs()
    return outputs
