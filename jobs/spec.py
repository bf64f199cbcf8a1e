"""What a scoring job is asked to do: the options of ``trtfleet score`` as one dataclass."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import yaml

from ..datasets.filters import Filter
from ..datasets.parts import COMPRESSIONS
from ..errors import UsageError
from ..trt_actors.backends import check_backend
from ..trt_actors.emit import Emit
from ..trt_actors.normalize import Normalize

__all__ = ["ScoreSpec", "load_spec"]

_MOST_SPEC_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ScoreSpec:
    """One scoring job.

    Attributes:
        model: ONNX file.
        data: Files, globs, folders or ``s3://`` prefixes of Parquet or Arrow IPC data, in dataset order.
        out: Folder or ``s3://`` prefix for the results.
        input: Columns by model input; inputs left out are matched by name and type.
        keep: Columns carried into the output.
        batch_size: Rows a batch; None measures the smallest that is nearly as fast as the best.
        actors: Ray actors; None takes as many as fit on the cluster.
        cpus_per_actor: CPUs of each actor, which are also its engine's threads.
        backend: ``auto``, ``tensorrt``, ``onnxruntime-cuda`` or ``onnxruntime-cpu``.
        normalize: ``imagenet`` or ``MEAN:STD`` in the units of the stored values; done inside the network.
        layout: ``nhwc`` or ``nchw``: how images are stored, where the column's type does not tell.
        resize: (height, width) for encoded images.
        emit: ``raw``, ``softmax``, ``argmax`` or ``topk:K``; done inside the network.
        output: Model outputs to write; all when empty.
        preprocess: ``package.module:function`` before the network; see ``trt_actors/hooks.py``.
        postprocess: ``package.module:function`` after it.
        columns: Columns a preprocess hook gets; all when empty.
        filter: Row filter, see ``datasets/filters.py``.
        fill_null: Value for nulls; None makes a row with a null a bad row.
        pad_to: Length that ragged rows are padded to; None pads to the longest of each batch.
        pad_value: What they are padded with.
        mask: Model inputs that get the attention mask of the ragged ones.
        shard_bytes: Uncompressed bytes of a shard; None follows the dataset and the actors, at most 64 MiB.
        max_bad_rows: Rows that may be quarantined before the job fails; None for any number.
        compression: Parquet codec of the output.
        address: Ray cluster; None takes ``RAY_ADDRESS``, else starts Ray on this machine.
        overwrite: Replace an output of another job once this one is complete.

    Raises:
        UsageError: An option is malformed or contradicts another.
        BackendError: The backend is not available in this version.
    """

    model: str
    data: tuple[str, ...]
    out: str
    input: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    batch_size: int | None = None
    actors: int | None = None
    cpus_per_actor: int = 1
    backend: str = "auto"
    normalize: str | None = None
    layout: str | None = None
    resize: tuple[int, int] | None = None
    emit: str = "raw"
    output: tuple[str, ...] = ()
    preprocess: str | None = None
    postprocess: str | None = None
    columns: tuple[str, ...] = ()
    filter: str | None = None
    fill_null: float | None = None
    pad_to: int | None = None
    pad_value: int = 0
    mask: tuple[str, ...] = ()
    shard_bytes: int | None = None
    max_bad_rows: int | None = 0
    compression: str = "snappy"
    address: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.data:
            raise UsageError("no data was named", "name a file, a folder or a glob")
        for name in ("batch_size", "actors", "cpus_per_actor", "pad_to", "shard_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be >= 1, got {value}", _hint(name))
        if self.max_bad_rows is not None and self.max_bad_rows < 0:
            raise UsageError(f"max_bad_rows must be >= 0, got {self.max_bad_rows}", "or say unlimited")
        if self.resize is not None and min(self.resize) < 1:
            raise UsageError(
                f"resize must be at least 1x1, got {self.resize[0]}x{self.resize[1]}", _hint("resize")
            )
        if self.layout not in (None, "nhwc", "nchw"):
            raise UsageError(f"layout must be nhwc or nchw, got {self.layout!r}", _hint("layout"))
        if self.compression not in COMPRESSIONS:
            known = ", ".join(COMPRESSIONS)
            raise UsageError(f"compression {self.compression!r} is unknown", f"choose one of {known}")
        if len(set(self.keep)) != len(self.keep):
            raise UsageError(f"a column is kept twice: {', '.join(self.keep)}", "name each once")
        if self.columns and not self.preprocess:
            raise UsageError("columns are only chosen for a preprocess hook", "leave --columns out")
        if self.mask and self.preprocess:
            raise UsageError("a preprocess hook makes the mask itself", "leave --mask or --preprocess out")
        check_backend(self.backend)
        Emit.parse(self.emit)
        if self.normalize is not None:
            Normalize.parse(self.normalize)
        if self.filter is not None:
            Filter(self.filter)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> ScoreSpec:
        """Builds a spec from plain values, as they come from YAML or from keyword arguments.

        Single values stand for lists of one, ``AxB`` for a size, ``NAME=COLUMN`` for a mapping.

        Raises:
            UsageError: An option is unknown or of the wrong type.
        """
        known = {f.name: f for f in fields(cls)}
        values: dict[str, Any] = {}
        for key, value in options.items():
            name = key.replace("-", "_")
            if name not in known:
                raise UsageError(f"unknown option {key!r}", f"known: {', '.join(sorted(known))}")
            # Nothing stands for the default, except where it says "any number of rows".
            if value is not None or name == "max_bad_rows":
                values[name] = _coerce(name, value)
        missing = [name for name in ("model", "data", "out") if values.get(name) in (None, ())]
        if missing:
            raise UsageError(f"{missing[0]} is missing", "usage: trtfleet score MODEL DATA OUT")
        return cls(**values)


_LISTS = ("data", "keep", "output", "columns", "mask")
_INTEGERS = ("batch_size", "actors", "cpus_per_actor", "pad_to", "pad_value", "shard_bytes", "max_bad_rows")
_SPECIAL = {"batch_size": "auto", "actors": "auto", "shard_bytes": "auto", "max_bad_rows": "unlimited"}


def _coerce(name: str, value: Any) -> Any:
    if name in _LISTS:
        items = [value] if isinstance(value, str | os.PathLike) else value
        if not isinstance(items, Sequence) or not all(isinstance(i, str | os.PathLike) for i in items):
            raise UsageError(
                f"{name} must be a text or a list of texts, got {value!r}", "put numbers in quotes"
            )
        return tuple(os.fspath(item) for item in items)
    if name == "input":
        return _inputs(value)
    if name == "resize":
        return _size(value)
    if name in _INTEGERS:
        if value is None or (name in _SPECIAL and value == _SPECIAL[name]):
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            also = f" or {_SPECIAL[name]!r}" if name in _SPECIAL else ""
            raise UsageError(f"{name} must be a whole number{also}, got {value!r}", _hint(name))
        return value
    if name == "fill_null":
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"fill_null must be a number, got {value!r}", "for example 0.0")
        return float(value)
    if name == "overwrite":
        if not isinstance(value, bool):
            raise UsageError(f"overwrite must be true or false, got {value!r}", "leave out the quotes")
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if not isinstance(value, str):
        raise UsageError(f"{name} must be a text, got {value!r}", "put it in quotes")
    return value


def _hint(name: str) -> str:
    return f"see --{name.replace('_', '-')} in `trtfleet score --help`"


def _inputs(value: Any) -> dict[str, tuple[str, ...]]:
    pairs: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        for item in value if isinstance(value, list | tuple) else [value]:
            name, _, columns = item.partition("=") if isinstance(item, str) else (item, "", "")
            pairs.append((name, columns))
    found: dict[str, tuple[str, ...]] = {}
    for name, columns in pairs:
        listed = columns.split(",") if isinstance(columns, str) else columns
        texts = [name, *listed] if isinstance(listed, list | tuple) else []
        if len(texts) < 2 or not all(isinstance(text, str) and text for text in texts):
            raise UsageError(
                f"input {name!r} is mapped to {columns!r}, no column", "write NAME=COLUMN or NAME=A,B,C"
            )
        if name in found:
            raise UsageError(f"input {name!r} is mapped twice", "map each input once")
        found[name] = tuple(texts[1:])
    return found


def _size(value: Any) -> tuple[int, int]:
    parts = value.lower().split("x") if isinstance(value, str) else value
    try:
        height, width = (int(part) for part in parts)
    except (TypeError, ValueError) as error:
        raise UsageError(f"resize {value!r} is no size", "write HEIGHTxWIDTH, for example 224x224") from error
    return height, width


def load_spec(path: str) -> dict[str, Any]:
    """Reads a job file: YAML with the names of the command line's options.

    Raises:
        UsageError: It cannot be read or holds something else.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(_MOST_SPEC_BYTES + 1)
        if len(text) > _MOST_SPEC_BYTES:
            raise UsageError(f"{path} is larger than {_MOST_SPEC_BYTES:,} bytes", "is it a job file?")
        values = yaml.safe_load(text)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "check the path of --spec") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        raise UsageError(f"{path} is not YAML: {line}", "write one `option: value` a line") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UsageError(f"{path} holds no options", "write for example: model: model.onnx")
    return values
