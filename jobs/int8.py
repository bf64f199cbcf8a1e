"""What ``--precision int8`` means for a model in single precision: its calibration table, and quantizers."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx

from ..errors import CalibrationError, ModelError, UsageError
from ..trt_actors.calibration.table import CalibrationTable
from ..trt_actors.calibration.table_store import TableStore
from ..trt_actors.model import ModelFile
from ..trt_actors.quantization.quantize import quantize
from ..trt_actors.quantization.source import quantizing_node
from .quantize import read_table
from .spec import check_int8_options

__all__ = [
    "FoundTable",
    "find_table",
    "no_table",
    "quantized_file",
    "quantized_model",
    "wants_table",
]

_DIGEST_SHOWN = 12
_DATA = ("DATA",)


@dataclass(frozen=True, kw_only=True)
class FoundTable:
    """The calibration table of a job.

    Attributes:
        table: The table, of the job's model.
        url: Where it was found.
        excluded: What the job excludes besides.
        notes: What a user should know of it.
    """

    table: CalibrationTable = field(repr=False)
    url: str
    excluded: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """What decides the quantized network besides the model: 64 hexadecimal digits."""
        if not self.excluded:
            return self.table.digest
        parts = "\0".join([self.table.digest, *sorted(set(self.excluded))])
        return hashlib.sha256(parts.encode()).hexdigest()

    @property
    def sentence(self) -> str:
        """Which table it is, in words."""
        table = self.table
        rows = "1 row" if table.samples == 1 else f"{table.samples:,} rows"
        return f"int8 ranges by {table.method} from {rows}: {self.url}"


def wants_table(precision: str, model: onnx.ModelProto, options: Mapping[str, Any]) -> bool:
    """Whether a model has to be quantized before it runs in a precision.

    Args:
        precision: That was asked for.
        model: The model.
        options: ``table`` and ``exclude`` as given, which are of no use for a model that is quantized.

    Raises:
        UsageError: The model is quantized, and an option says how it should be.
    """
    if precision != "int8":
        return False
    node = quantizing_node(model)
    given = [f"--{name}" for name, value in options.items() if value]
    if node is not None and given:
        raise UsageError(
            f"the model is already quantized, node {node.name or node.output[0]!r} is a {node.op_type}: "
            f"{given[0]} says nothing to it",
            f"leave {given[0]} out, or give the FP32 model",
        )
    return node is None


def find_table(
    model: str,
    digest: str,
    *,
    given: str | None = None,
    cache: str | None = None,
    feed: Mapping[str, Any] | None = None,
    standing: str | None = None,
    excluded: Sequence[str] = (),
) -> FoundTable | None:
    """Finds the table of a model: the one given, else the newest that is kept for what the model is fed.

    Args:
        model: The model's path, for messages.
        digest: Its digest.
        given: File of a table; no other is looked at.
        cache: The engine cache; None for the default.
        feed: What decides the values fed, as in the table; None for any.
        standing: Digest of the table that an unfinished job began with; taken when it is still there.
        excluded: What is excluded besides what the calibration left out.

    Returns:
        None when none is kept that fits.

    Raises:
        CalibrationError: The table given cannot be read or is of another model, or a table kept is damaged.
        CacheError: The cache cannot be read.
    """
    if given is not None:
        table = read_table(given)
        table.require_model(digest, model)
        differences = table.feed_differences(feed) if feed is not None else ""
        notes = (f"{given} was made for other values: {differences}",) if differences else ()
        return FoundTable(table=table, url=given, excluded=tuple(excluded), notes=notes)
    store = TableStore(cache)
    found = next(iter(store.all(digest)), None) if feed is None else store.find(digest, feed)
    if found is None:
        return None
    newer: tuple[str, ...] = ()
    if standing is not None and found[1].digest != standing:
        before = next((kept for kept in store.all(digest) if kept[1].digest == standing), None)
        if before is not None:
            newer = (f"the job goes on with the table that it began with; {found[0]} is newer",)
            found = before
    return FoundTable(table=found[1], url=found[0], excluded=tuple(excluded), notes=newer)


def no_table(
    model: str,
    digest: str,
    cache: str | None,
    feed: Mapping[str, Any] | None = None,
    command: Sequence[str] | None = None,
    instead: str = "--table T.json",
) -> CalibrationError:
    """The error that there is no table for a model.

    Args:
        model: The model's path.
        digest: Its digest.
        cache: The engine cache; None for the default.
        feed: What decides the values fed; None where that is not known.
        command: What makes the table, as words; None for the command without options.
        instead: What else may be said.
    """
    store = TableStore(cache)
    kept = store.all(digest)
    what = f"{model}, digest {digest[:_DIGEST_SHOWN]}, has no calibration table"
    if kept and feed is not None:
        url, table = kept[0]
        count = "the one there, " if len(kept) == 1 else f"of {len(kept)} there the newest, "
        what += f" for what it is fed here; {count}{url}, differs: {table.feed_differences(feed)}"
    else:
        what += f" in {store.url}"
    words = command or [*("trtfleet", "calibrate", model), *_DATA, *(("--cache", cache) if cache else ())]
    return CalibrationError(what, f"make one: {shlex.join(words)}; or say {instead}")


def quantized_model(
    proto: onnx.ModelProto, path: str, found: FoundTable, *, external: bool
) -> onnx.ModelProto:
    """Quantizes a model with its table.

    Args:
        proto: In single precision, of the table's digest; not changed.
        path: The model's path, for messages.
        found: The table and the exclusions.
        external: Whether weights lie outside ``proto``.

    Raises:
        ModelError: The model cannot be quantized.
        UsageError: An exclusion names no node, or leaves nothing.
        CalibrationError: The table lacks tensors.
    """
    if external:
        raise ModelError(
            f"{path}: its weights are too large to be quantized in one ONNX file", "run it in FP16"
        )
    try:
        return quantize(proto, found.table, found.excluded)
    except ModelError as error:
        raise ModelError(f"{path}: {error.fact}", error.hint) from error


def quantized_file(
    model: str,
    loaded: ModelFile,
    precision: str,
    table: str | None,
    exclude: Sequence[str],
    cache: str | None,
) -> tuple[ModelFile, FoundTable | None]:
    """A model ready for a precision, where nothing is known of its data: the newest table kept is taken.

    Args:
        model: Its path.
        loaded: The model.
        precision: That was asked for.
        table: File of a table; None finds one.
        exclude: What is not quantized.
        cache: The engine cache; None for the default.

    Returns:
        The quantized model and its table; the model itself and None where there is nothing to quantize.

    Raises:
        TrtfleetError: There is no table, or the model cannot be quantized.
    """
    options = {"table": table, "exclude": exclude}
    check_int8_options(precision, options)
    if not wants_table(precision, loaded.proto, options):
        return loaded, None
    found = find_table(model, loaded.digest, given=table, cache=cache, excluded=exclude)
    if found is None:
        raise no_table(model, loaded.digest, cache)
    external = loaded.external_folder is not None
    proto = quantized_model(loaded.proto, model, found, external=external)
    return replace(loaded, proto=proto), found
