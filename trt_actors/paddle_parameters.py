"""Whether a Paddle parameter file is whole and fits its network: Paddle reads past the end of a cut one."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from ..errors import ModelError

__all__ = ["check_parameters", "needed_shapes", "stored_shapes"]

Shape = tuple[int, ...]

_PIR_MAGIC = "pir"
# Paddle's number of each element type, and its bytes.
_ITEM_BYTES = {0: 1, 1: 2, 2: 4, 3: 8, 4: 2, 5: 4, 6: 8, 20: 1, 21: 1, 22: 2, 23: 8, 24: 16, 32: 1, 33: 1}
_ITEM_BYTES |= {36: 2, 37: 4, 38: 8}
_LONGEST_DESCRIPTION = 4096
# Version of the format and levels of ragged rows; version of the tensor and bytes of its description.
_BEFORE = struct.Struct("<IQIi")


def check_parameters(network: Path, parameters: Path) -> None:
    """Refuses a parameter file that is damaged or lacks what the network needs.

    Raises:
        ModelError: It does, or the network is a ``.json`` that is none of Paddle's.
    """
    stored = Counter(stored_shapes(parameters))
    if network.suffix != ".json":
        return
    needed = Counter(needed_shapes(network))
    missing = needed - stored
    if missing:
        example = "x".join(map(str, next(iter(missing)))) or "scalar"
        raise ModelError(
            f"{parameters.name} holds {stored.total()} tensors, {network.name} needs {needed.total()} and "
            f"lacks {missing.total()} of them, the first of shape {example}",
            "the two files belong to different models, or one was copied in part: copy both again",
        )


def needed_shapes(network: Path) -> list[Shape]:
    """Shapes of the parameters that a ``.json`` network names.

    Raises:
        ModelError: It is not a network as Paddle 3 saves it.
    """
    hint = "give the .json that paddle.jit.save of Paddle 3 writes; one that was copied may be truncated"
    try:
        content = json.loads(network.read_bytes())
        magic = content["base_code"]["magic"]
        program = content["program"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(
            f"{network.name} is not a Paddle network: no JSON with base_code.magic and program", hint
        ) from error
    if magic != _PIR_MAGIC:
        raise ModelError(
            f"{network.name} is not a Paddle network: its base_code.magic is {magic!r}, not {_PIR_MAGIC!r}",
            hint,
        )
    found: list[Shape] = []
    rest: list[Any] = [program]
    while rest:
        node = rest.pop()
        if isinstance(node, list):
            rest.extend(node)
        elif isinstance(node, dict):
            rest.extend(node.values())
            if node.get("#") == "p":
                try:
                    found.append(tuple(map(int, node["O"]["TT"]["D"][1])))
                except (TypeError, KeyError, IndexError, ValueError) as error:
                    raise ModelError(
                        f"{network.name} is not a Paddle network: it has a parameter without a shape", hint
                    ) from error
    return found


def stored_shapes(parameters: Path) -> list[Shape]:
    """Shapes of the tensors of a ``.pdiparams`` file, in order; reads their descriptions, not their data.

    Raises:
        ModelError: It is not such a file, or ends in the midst of a tensor.
    """
    size_bytes = parameters.stat().st_size
    shapes: list[Shape] = []
    with parameters.open("rb") as file:
        while file.tell() < size_bytes:
            start = file.tell()
            found = _next_tensor(file)
            if found is None:
                raise ModelError(
                    f"{parameters.name} is not a Paddle parameter file: no tensor at byte {start} of "
                    f"{size_bytes}",
                    "give the .pdiparams that paddle.jit.save writes; a .pdparams file is another format",
                )
            shape, data_bytes = found
            if file.tell() + data_bytes > size_bytes:
                raise ModelError(
                    f"{parameters.name} is truncated: its tensor {len(shapes)} ends at byte "
                    f"{file.tell() + data_bytes}, the file at {size_bytes}",
                    "copy it again",
                )
            file.seek(data_bytes, 1)
            shapes.append(shape)
    return shapes


def _next_tensor(file: BinaryIO) -> tuple[Shape, int] | None:
    """Reads up to a tensor's data; its shape and the bytes that follow, or None when there is no tensor."""
    head = file.read(_BEFORE.size)
    if len(head) < _BEFORE.size:
        return None
    version, levels, tensor_version, description_bytes = _BEFORE.unpack(head)
    if version or levels or tensor_version or not 0 < description_bytes <= _LONGEST_DESCRIPTION:
        return None
    description = _description_class()()
    try:
        description.ParseFromString(file.read(description_bytes))
    except DecodeError:
        return None
    shape = tuple(description.dims)
    item_bytes = _ITEM_BYTES.get(description.data_type)
    if item_bytes is None or any(dim < 0 for dim in shape):
        return None
    return shape, math.prod(shape) * item_bytes


@cache
def _description_class() -> Any:
    """The protobuf message in front of each tensor."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="tensor.proto", package="trtfleet.paddle", syntax="proto2")
    message = file.message_type.add(name="Description")
    message.field.add(name="data_type", number=1, type=field.TYPE_INT32, label=field.LABEL_REQUIRED)
    message.field.add(name="dims", number=2, type=field.TYPE_INT64, label=field.LABEL_REPEATED)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("trtfleet.paddle.Description"))
