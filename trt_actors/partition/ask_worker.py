"""The process that asks TensorRT's parser about models; the parser may crash it.

Started as ``python -m trtfleet.trt_actors.partition.ask_worker FLAVOUR``. Each line of standard input is the
path of an ONNX file; each line of standard output is the JSON answer to it.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from ..building.flavour import Flavour, find_flavour
from ..building.log import MessageLog

__all__ = ["main"]


def main() -> None:
    """Answers until standard input ends."""
    # The library may print; the answers have a channel of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    flavour = find_flavour(sys.argv[1])
    answers.write(json.dumps({"flavour": flavour.name, "version": flavour.version}) + "\n")
    for line in sys.stdin:
        with open(line.rstrip("\n"), "rb") as file:
            answers.write(json.dumps(_answer(flavour, file.read())) + "\n")


def _answer(flavour: Flavour, model: bytes) -> dict[str, Any]:
    api = flavour.api
    log = MessageLog.over(api)
    builder = api.Builder(log)
    flags = 1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = api.OnnxParser(network, log)
    is_supported = parser.supports_model_v2(model)
    unsupported = [
        node
        for index in range(parser.num_subgraphs)
        if not parser.is_subgraph_supported(index)
        for node in parser.get_subgraph_nodes(index)
    ]
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    blamed = {
        error.node(): " ".join(error.desc().split()) for error in errors if not error.local_function_stack()
    }
    inputs = [network.get_input(index) for index in range(network.num_inputs)] if is_supported else []
    return {
        "supported": bool(is_supported),
        "unsupported": unsupported,
        "errors": sorted(blamed.items()),
        "sizes": [tensor.name for tensor in inputs if tensor.is_shape_tensor],
    }


if __name__ == "__main__":
    main()
