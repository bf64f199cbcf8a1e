"""External tensor data: kept inside the model's folder, hashed, and read in while it is small enough."""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import BinaryIO

import onnx
from onnx import helper

from ..errors import ModelError
from .walk import all_tensors

__all__ = ["MAX_INLINE_BYTES", "digest_and_inline"]

MAX_INLINE_BYTES = 3 * 2**29
"""Model file and external data up to this size (1.5 GiB) become one protobuf; those must stay below 2 GiB."""

_CHUNK_BYTES = 16 * 2**20
_SUB_BYTE_BITS = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}


@dataclass(frozen=True, order=True, kw_only=True)
class _Region:
    """A run of bytes of one external file; sorts by location, offset, length."""

    location: str
    offset: int
    length_bytes: int


def digest_and_inline(model: onnx.ModelProto, *, file_bytes: bytes, folder: str) -> tuple[str, bool]:
    """Hashes a model with its external data and reads that data into the model when it is small enough.

    Without external data the digest is the SHA-256 of the model file, as ``sha256sum`` prints it. With
    external data it is the SHA-256 over: the SHA-256 of the model file (32 bytes), then for each distinct
    region in order of (location, offset, length) the text ``location NUL offset NUL length NUL`` and the
    SHA-256 of the region (32 bytes). Bytes of external files that no tensor refers to do not count.

    Args:
        model: The parsed model; changed in place when its data is inlined.
        file_bytes: The bytes of the model file.
        folder: The folder of the model file; external data must lie in it.

    Returns:
        The digest in hex, and whether the model still refers to external files.

    Raises:
        ModelError: External data is missing, too short, malformed, or outside the folder. Every location is
            checked before the first byte is read.
    """
    regions: dict[_Region, list[onnx.TensorProto]] = {}
    paths: dict[str, str] = {}
    inlined_bytes = len(file_bytes)
    for tensor in all_tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        region = _region(tensor)
        if region.location not in paths:
            paths[region.location] = _locate(region.location, folder, tensor.name)
        regions.setdefault(region, []).append(tensor)
        inlined_bytes += region.length_bytes
    if not regions:
        return hashlib.sha256(file_bytes).hexdigest(), False
    _check_sizes(regions, paths)
    inline = inlined_bytes <= MAX_INLINE_BYTES
    digest = hashlib.sha256(hashlib.sha256(file_bytes).digest())
    for location, path in sorted(paths.items()):
        try:
            with open(path, "rb") as file:
                for region in sorted(region for region in regions if region.location == location):
                    digest.update(f"{location}\0{region.offset}\0{region.length_bytes}\0".encode())
                    digest.update(_consume(file, region, regions[region] if inline else []))
        except OSError as error:
            raise ModelError(f"external data {location!r} cannot be read: {error.strerror}") from error
    return digest.hexdigest(), not inline


def _consume(file: BinaryIO, region: _Region, tensors: list[onnx.TensorProto]) -> bytes:
    """Hashes one region and, when tensors are given, stores its bytes in each of them."""
    file.seek(region.offset)
    if not tensors:
        digest = hashlib.sha256()
        for chunk in _chunks(file, region):
            digest.update(chunk)
        return digest.digest()
    data = b"".join(_chunks(file, region))
    for tensor in tensors:
        tensor.raw_data = data
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return hashlib.sha256(data).digest()


def _chunks(file: BinaryIO, region: _Region) -> Iterator[bytes]:
    left_bytes = region.length_bytes
    while left_bytes:
        chunk = file.read(min(left_bytes, _CHUNK_BYTES))
        if not chunk:
            raise ModelError(f"external data {region.location!r} became shorter while it was read")
        left_bytes -= len(chunk)
        yield chunk


def _region(tensor: onnx.TensorProto) -> _Region:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    needed = _tensor_bytes(tensor)
    numbers = {"offset": 0, "length": needed}
    for key in numbers:
        text = entries.get(key, "")
        if text:
            if not (text.isascii() and text.isdigit()):
                raise ModelError(
                    f"tensor {tensor.name!r} declares the external {key} {text!r}, not a number >= 0"
                )
            numbers[key] = int(text)
    if numbers["length"] != needed:
        raise ModelError(
            f"tensor {tensor.name!r} declares {numbers['length']} bytes of external data, its shape "
            f"{list(tensor.dims)} and type need {needed}",
            "export the model again",
        )
    return _Region(location=entries.get("location", ""), offset=numbers["offset"], length_bytes=needed)


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    try:
        type_name = onnx.TensorProto.DataType.Name(tensor.data_type)
        bits: int = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * 8
    except (KeyError, ValueError):
        raise ModelError(f"tensor {tensor.name!r} has the unknown element type {tensor.data_type}") from None
    if type_name == "STRING" or any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"tensor {tensor.name!r} cannot be external: {type_name}{list(tensor.dims)}")
    elements: int = math.prod(tensor.dims)
    return -(-elements * _SUB_BYTE_BITS.get(type_name, bits) // 8)


def _locate(location: str, folder: str, tensor_name: str) -> str:
    """The real path of an external file, refused unless it is a regular file inside the folder."""
    subject = f"external data {location!r} of tensor {tensor_name!r}"
    hint = "keep the model and its external data in one folder, as regular files"
    if not location or "\0" in location:
        raise ModelError(f"{subject} is not a file name", hint)
    if "_ORT_MEM_ADDR_" in location:
        # ONNX Runtime's own mark of tensors in memory: their offset is taken for an address.
        raise ModelError(f"{subject} names memory, not a file", hint)
    if os.path.isabs(location) or PureWindowsPath(location).anchor:
        raise ModelError(f"{subject} has an absolute path", hint)
    if ".." in PureWindowsPath(location).parts:
        raise ModelError(f"{subject} contains '..'", hint)
    root = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(root, location))
    if os.path.commonpath([root, path]) != root:
        raise ModelError(f"{subject} leaves the model's folder through a symbolic link", hint)
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise ModelError(f"{subject} cannot be read: {error.strerror}", hint) from error
    if not stat.S_ISREG(mode):
        raise ModelError(f"{subject} is not a regular file", hint)
    return path


def _check_sizes(regions: dict[_Region, list[onnx.TensorProto]], paths: dict[str, str]) -> None:
    sizes = {location: os.path.getsize(path) for location, path in paths.items()}
    for region, tensors in regions.items():
        end = region.offset + region.length_bytes
        if end > sizes[region.location]:
            raise ModelError(
                f"external data {region.location!r} holds {sizes[region.location]} bytes, tensor "
                f"{tensors[0].name!r} needs bytes {region.offset} to {end}",
                "the file is truncated or belongs to another model: copy it again",
            )
