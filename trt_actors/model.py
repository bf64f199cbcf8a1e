"""Loading an ONNX model from a file: checked, hashed, and described as tensors with a batch dimension."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import checker

from ..datasets.signature import TensorSpec
from ..errors import ModelError
from .external import digest_and_inline
from .functions import check_functions
from .interface import fill_output_shapes, has_shape, input_specs, output_specs
from .operators import check_operators, check_versions, uses_runtime_operators
from .paddle import convert_paddle, is_paddle_model
from .walk import strings_are_text

__all__ = ["Model", "ModelFile", "load_file", "load_model"]

_MAX_FILE_BYTES = 2**31 - 1
_MAGIC = (
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"PK\x03\x04", "a ZIP archive, as PyTorch saves checkpoints"),
    (b"\x89HDF", "an HDF5 file"),
    (b"ftrt", "a TensorRT plan"),
    (b"vtrt", "a TensorRT-RTX plan"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it stands for"),
)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A loaded model.

    Attributes:
        proto: The model. Its external data is inlined unless ``external_folder`` is set, and output shapes
            that the file lacked are filled in as far as shape inference found them. Owned by this object: do
            not change it.
        digest: SHA-256 in hex over the model file and the external data it refers to.
        external_folder: The folder that external data of ``proto`` lies in, when it is too large to inline.
        inputs: The inputs that need data, in graph order; optional ones (with an initializer) are left out.
        outputs: The outputs with one entry per row, in graph order.
        unbatched_outputs: Names of outputs without a batch dimension, or of unknown rank.
        unsupported_outputs: Names of outputs that are no tensors, or of an element type that numpy lacks.
        custom_domains: Operator domains outside the ONNX specification, sorted.
    """

    proto: onnx.ModelProto = field(repr=False)
    digest: str
    external_folder: str | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    unbatched_outputs: tuple[str, ...] = ()
    unsupported_outputs: tuple[str, ...] = ()
    custom_domains: tuple[str, ...] = ()

    @property
    def batch(self) -> int | None:
        """The batch size the model insists on, or None when it takes any."""
        return self.inputs[0].batch


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A model as its file holds it, checked but not yet described as tensors with rows.

    Attributes:
        proto: The model. Its external data is inlined unless ``external_folder`` is set.
        digest: SHA-256 in hex over the model file and the external data it refers to.
        external_folder: The folder that external data lies in, when it is too large to inline.
        custom_domains: Operator domains outside the ONNX specification, sorted.
    """

    proto: onnx.ModelProto = field(repr=False)
    digest: str
    external_folder: str | None
    custom_domains: tuple[str, ...] = ()


def load_model(path: str | os.PathLike[str]) -> Model:
    """Loads and checks a model whose inputs and outputs have one entry per row.

    Args:
        path: A local ONNX file, or a Paddle inference model, which is converted once.

    Raises:
        ModelError: The file cannot be read, is not a valid ONNX model, uses operators, versions, types or
            shapes that are not supported, or refers to external data that is missing or outside its folder.
    """
    with _named(path) as file:
        loaded = _load(file)
        inputs = input_specs(loaded.proto.graph)
        inference_failure = _complete(loaded)
        outputs, unbatched, unsupported = output_specs(loaded.proto.graph, inputs[0].batch, inference_failure)
        return Model(
            proto=loaded.proto,
            digest=loaded.digest,
            external_folder=loaded.external_folder,
            inputs=inputs,
            outputs=outputs,
            unbatched_outputs=unbatched,
            unsupported_outputs=unsupported,
            custom_domains=loaded.custom_domains,
        )


def load_file(path: str | os.PathLike[str]) -> ModelFile:
    """Loads and checks a model without asking for rows: any inputs and outputs will do.

    Raises:
        ModelError: As `load_model`, but for batch dimensions.
    """
    with _named(path) as file:
        loaded = _load(file)
        _complete(loaded)
        return loaded


@contextlib.contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[str]:
    """Puts the path in front of what is wrong with a model; gives the ONNX file to read."""
    path = os.fspath(path)
    try:
        yield os.fspath(convert_paddle(path)) if is_paddle_model(path) else path
    except ModelError as error:
        # Names in a model and messages about it may hold line breaks.
        fact = " ".join(error.fact.split())
        named = fact if fact.startswith(f"{path}: ") else f"{path}: {fact}"
        raise ModelError(
            named, " ".join((error.hint or "export the model again").split())
        ) from error.__cause__


def _load(path: str) -> ModelFile:
    file_bytes = _read(path)
    proto = _parse(file_bytes)
    check_versions(proto)
    check_functions(proto)
    custom_domains = check_operators(proto)
    folder = os.path.dirname(os.path.abspath(path))
    digest, is_external = digest_and_inline(proto, file_bytes=file_bytes, folder=folder)
    return ModelFile(
        proto=proto,
        digest=digest,
        external_folder=folder if is_external else None,
        custom_domains=custom_domains,
    )


def _complete(model: ModelFile) -> str:
    """Fills in output shapes and runs the checker; returns why shape inference failed, or ""."""
    proto = model.proto
    inference_failure = fill_output_shapes(proto)
    # The checker resolves external files against the working folder and insists on output shapes and on the
    # operators of the specification; models that run fine may lack each of these.
    is_checkable = model.external_folder is None and not uses_runtime_operators(proto)
    if is_checkable and all(map(has_shape, proto.graph.output)):
        try:
            checker.check_model(proto)
        except (checker.ValidationError, ValueError) as error:
            message = str(error).split("==>")[0]
            raise ModelError(f"is not a valid ONNX model: {message}", "export the model again") from error
    return inference_failure


def _read(path: str) -> bytes:
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ModelError("is a directory", "name the .onnx file inside it")
        if not stat.S_ISREG(status.st_mode):
            raise ModelError("is not a regular file", "name an .onnx file")
        if status.st_size > _MAX_FILE_BYTES:
            raise ModelError(
                f"has {status.st_size} bytes, an ONNX file can have at most {_MAX_FILE_BYTES}",
                "save the model with its weights as external data",
            )
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise ModelError("does not exist", "check the path of the model") from error
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot be read: {getattr(error, 'strerror', None) or error}",
            "check the permissions of that path",
        ) from error


def _parse(file_bytes: bytes) -> onnx.ModelProto:
    hint = "give an .onnx file; one that was copied may be truncated"
    if not file_bytes:
        raise ModelError("is empty (0 bytes)", hint)
    kind = next((kind for magic, kind in _MAGIC if file_bytes.startswith(magic)), "")
    if kind:
        raise ModelError(f"is {kind}, not an ONNX model", hint)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(file_bytes)
    except DecodeError as error:
        raise ModelError(f"is not an ONNX model or is truncated ({len(file_bytes)} bytes)", hint) from error
    if not proto.ir_version:
        raise ModelError("is not an ONNX model: it has no IR version", hint)
    if not proto.HasField("graph"):
        raise ModelError("has no graph", hint)
    if not strings_are_text(proto):
        raise ModelError("holds a name that is not UTF-8", hint)
    return proto
