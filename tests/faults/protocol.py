"""What a protocol is that must survive anything, and the model and data that all of them work on."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper
from trtfleet.datasets.storage import Storage

__all__ = [
    "BAD_ROWS",
    "GROUP_ROWS",
    "ROWS",
    "SHARDS",
    "Protocol",
    "digests",
    "miscounted",
    "replaced",
    "write_assets",
]

ROWS, BAD_ROWS, SHARDS = 120, 2, 4
GROUP_ROWS = ROWS // SHARDS


def write_assets(folder: Path) -> None:
    """Writes a model and data with two bad rows; always the same bytes."""
    random = np.random.default_rng(3)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w1"], ["p"]),
            helper.make_node("Relu", ["p"], ["h"]),
            helper.make_node("MatMul", ["h", "w2"], ["y"]),
        ],
        "two products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [
            numpy_helper.from_array(random.random((4, 8), np.float32), "w1"),
            numpy_helper.from_array(random.random((8, 2), np.float32), "w2"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "net.onnx")
    rows: list[Any] = list(random.random((ROWS, 4), np.float32))
    rows[7] = rows[70] = None
    x = pa.array(rows, pa.list_(pa.float32(), 4))
    pq.write_table(pa.table({"id": np.arange(ROWS), "x": x}), folder / "x.parquet", row_group_size=GROUP_ROWS)


@dataclass(frozen=True)
class Protocol:
    """One protocol.

    Attributes:
        assets: Folder with what ``write_assets`` wrote.
    """

    assets: Path
    name: ClassVar[str]

    def prepare(self, place: str) -> None:
        """Writes what stands before the run; nothing by default."""

    def run(self, place: str, builds: Callable[[], object] = lambda: None) -> None:
        """Runs it, or what is left of it, to its end.

        Args:
            place: An empty or prepared place, or one where a run was interrupted.
            builds: Called where something expensive is done that should be done once.
        """
        raise NotImplementedError

    def check(self, place: str) -> None:
        """Makes sure that a reader sees nothing unfinished, at any time."""
        raise NotImplementedError

    def result(self, place: str) -> Mapping[str, Any]:
        """What a finished run leaves: equal for equal runs."""
        raise NotImplementedError

    def units(self, place: str) -> list[Any]:
        """All that must be there once and only once, as often as it is there."""
        raise NotImplementedError

    def hidden(self, place: str) -> Mapping[str, Any]:
        """What a finished run leaves of its own records, litter included."""
        return {}


_in_use: dict[str, int] = {}
_replacing = threading.Lock()


@contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Gives a module another function for a while; several threads may do so at once, with the same one."""
    with _replacing:
        if not _in_use.get(name):
            setattr(module, f"_true_{name}", getattr(module, name))
            setattr(module, name, value)
        _in_use[name] = _in_use.get(name, 0) + 1
    try:
        yield
    finally:
        with _replacing:
            _in_use[name] -= 1
            if not _in_use[name]:
                setattr(module, name, getattr(module, f"_true_{name}"))


def miscounted(expected: Sequence[Any], found: Sequence[Any]) -> dict[str, int]:
    """How many units are not there, and how often one is there again."""
    return {"lost": len(set(expected) - set(found)), "duplicated": len(found) - len(set(found))}


def digests(storage: Storage, paths: Sequence[str]) -> dict[str, str]:
    """The digest of each object."""
    return {path: hashlib.sha256(storage.get(path) or b"").hexdigest() for path in paths}
