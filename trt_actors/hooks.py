"""Users' own functions around the network, named on the command line as ``package.module:function``.

``preprocess(batch: pyarrow.RecordBatch)`` gets the columns that were read and returns either a RecordBatch,
whose columns then feed the model as stored columns would, or a dict of numpy arrays by model input name.
``postprocess(outputs: dict[str, numpy.ndarray], rows: pyarrow.RecordBatch)`` gets the model's outputs and the
kept columns of the same rows, and returns what to write instead of the outputs: a dict of arrays or a
RecordBatch. Both keep the number of rows; an exception blames the rows it was called with.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from ..datasets.storage import one_line
from ..errors import HookError
from .watchdog import Watchdog

__all__ = ["Hook", "load_hook", "run_postprocess", "run_preprocess", "watched_hook"]

Hook = Callable[..., Any]


def load_hook(name: str, folder: str | None = None) -> Hook:
    """Imports a hook.

    Args:
        name: ``package.module:function``.
        folder: Where to look besides ``sys.path``, usually the working directory of the command.

    Raises:
        HookError: It cannot be imported or is not callable.
    """
    module_name, colon, function_name = name.partition(":")
    if not colon or not module_name or not function_name:
        raise HookError(f"{name!r} names no hook", "write package.module:function")
    if folder and folder not in sys.path and os.path.isdir(folder):
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise HookError(
            f"cannot import {module_name} for hook {name}: {type(error).__name__}: {one_line(error)}",
            "is it importable on every node, or in the folder you start from?",
        ) from error
    hook = getattr(module, function_name, None)
    if not callable(hook):
        raise HookError(f"{module_name} has no function {function_name}", "check the hook's name")
    return hook  # type: ignore[no-any-return]


def watched_hook(role: str, name: str | None, folder: str | None, watchdog: Watchdog) -> Hook | None:
    """Imports a hook, if one is named, every call of which is watched; raises as ``load_hook`` does."""
    if name is None:
        return None
    hook, what = load_hook(name, folder), f"the {role} hook {name}"

    def watched(*args: Any) -> Any:
        with watchdog.step(what):
            return hook(*args)

    return watched


def run_preprocess(hook: Hook, batch: pa.RecordBatch) -> pa.RecordBatch | dict[str, np.ndarray]:
    """Calls a preprocess hook on some rows and checks what it returns.

    Raises:
        HookError: It returned another type or another number of rows.
        Exception: Whatever the hook raised.
    """
    return _checked("preprocess", hook(batch), batch.num_rows)


def run_postprocess(
    hook: Hook, outputs: dict[str, np.ndarray], kept: pa.RecordBatch
) -> pa.RecordBatch | dict[str, np.ndarray]:
    """Calls a postprocess hook on some rows and checks what it returns; raises as ``run_preprocess`` does."""
    return _checked("postprocess", hook(outputs, kept), kept.num_rows)


def _checked(role: str, result: Any, rows: int) -> pa.RecordBatch | dict[str, np.ndarray]:
    if isinstance(result, pa.Table):
        batches = result.combine_chunks().to_batches()
        result = batches[0] if batches else pa.RecordBatch.from_pylist([], result.schema)
    if isinstance(result, pa.RecordBatch):
        lengths = {"its batch": result.num_rows}
    elif isinstance(result, dict) and result:
        result = {str(name): np.asarray(array) for name, array in result.items()}
        lengths = {name: len(array) if array.ndim else -1 for name, array in result.items()}
    else:
        raise HookError(
            f"the {role} hook returned {type(result).__name__}", "return a RecordBatch or a dict of arrays"
        )
    for name, found in lengths.items():
        if found != rows:
            raise HookError(
                f"the {role} hook returned {found} rows in {name}, got {rows}",
                "a hook keeps every row; use --filter to drop rows",
            )
    return result
