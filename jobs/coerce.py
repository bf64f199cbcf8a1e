"""Plain values of options, as they come from YAML or from keyword arguments, as what a spec holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..errors import UsageError

__all__ = ["coerce", "cpus", "hint_for", "plain_values"]

_LISTS = ("data", "keep", "output", "columns", "mask", "profile", "exclude_op", "exclude")
_INTEGERS = (
    *("batch_size", "actors", "cpus_per_actor", "pad_to", "pad_value", "shard_bytes", "max_bad_rows"),
    *("max_batch_size", "workspace_size", "min_subgraph_size", "optimization_level"),
    *("samples", "seed", "memory_per_actor"),
)
_FLAGS = ("overwrite", "use_static", "use_calib_mode", "per_layer", "suggest_exclude")
_NUMBERS = ("fill_null", "gpus_per_actor", "max_drop", "wait_for_nodes", "batch_timeout")
_SPECIAL = {
    "batch_size": "auto",
    "actors": "auto",
    "cpus_per_actor": "auto",
    "shard_bytes": "auto",
    "max_bad_rows": "unlimited",
}


def coerce(name: str, value: Any) -> Any:
    """Turns a plain value of an option into the type of its field.

    Raises:
        UsageError: It is of the wrong type.
    """
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
            raise UsageError(f"{name} must be a whole number{also}, got {value!r}", hint_for(name))
        return value
    if name in _NUMBERS:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"{name} must be a number, got {value!r}", "for example 0.5")
        return float(value)
    if name in _FLAGS:
        if not isinstance(value, bool):
            raise UsageError(f"{name} must be true or false, got {value!r}", "leave out the quotes")
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if not isinstance(value, str):
        raise UsageError(f"{name} must be a text, got {value!r}", "put it in quotes")
    return value


def plain_values(
    spec: type[Any],
    options: Mapping[str, Any],
    *,
    required: Sequence[str],
    usage: str,
    read: Callable[[str, Any], Any] = coerce,
) -> dict[str, Any]:
    """Plain values of a job's options as the arguments of its spec.

    Args:
        spec: A dataclass, whose fields are the options.
        options: Values by name; names may have hyphens.
        required: Options that must be there.
        usage: What to write, for the hint.
        read: Turns the value of an option into the type of its field.

    Raises:
        UsageError: An option is unknown, missing or of the wrong type.
    """
    known = {f.name for f in fields(spec)}
    values: dict[str, Any] = {}
    for key, value in options.items():
        name = key.replace("-", "_")
        if name not in known:
            raise UsageError(f"unknown option {key!r}", f"known: {', '.join(sorted(known))}")
        # Nothing stands for the default, except where it says "any number of rows".
        if value is not None or name == "max_bad_rows":
            values[name] = read(name, value)
    missing = [name for name in required if values.get(name) in (None, ())]
    if missing:
        raise UsageError(f"{missing[0]} is missing", f"usage: {usage}")
    return values


def cpus(value: Any) -> float | None:
    """CPUs of an actor that may have a part of one; None for ``auto``."""
    if value == "auto":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"cpus_per_actor must be a number or 'auto', got {value!r}", "for example 0.5")
    return float(value)


def hint_for(name: str) -> str:
    """Where the help has more about an option."""
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
