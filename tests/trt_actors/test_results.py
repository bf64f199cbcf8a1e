"""From outputs to the columns that are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from trtfleet.datasets.signature import TensorSpec
from trtfleet.errors import HookError
from trtfleet.trt_actors.batches import Piece
from trtfleet.trt_actors.results import PostprocessError, Results


def spec(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype=np.dtype(np.float32), row_shape=shape)


def piece(rows: int, **more: Any) -> Piece:
    kept = pa.record_batch({"id": np.arange(rows), "label": pa.array(["a"] * rows).dictionary_encode()})
    return Piece(arrays={}, kept=kept, rows=np.arange(rows), **more)


def test_kept_columns_come_first_and_keep_their_types() -> None:
    outputs = {"y": np.arange(6, dtype=np.float32).reshape(3, 2), "n": np.array([7, 8, 9])}
    batch = Results([spec("y", 2), spec("n")], None).convert(piece(3), outputs)
    assert batch.schema.names == ["id", "label", "y", "n"]
    assert batch.schema.field("label").type == piece(1).kept.schema.field("label").type
    assert batch["y"].to_pylist() == [[0, 1], [2, 3], [4, 5]]
    assert batch["n"].to_pylist() == [7, 8, 9]


def test_results_outlive_the_engines_memory() -> None:
    memory = np.ones((4, 2), np.float32)
    batch = Results([spec("y", 2)], None).convert(piece(4), {"y": memory})
    memory[:] = -1
    assert batch["y"].to_pylist() == [[1, 1]] * 4


def test_outputs_per_token_are_cut_to_each_rows_length() -> None:
    values = np.arange(2 * 5 * 2, dtype=np.float32).reshape(2, 5, 2)
    ragged = piece(2, lengths=np.array([5, 2]), width=5)
    batch = Results([spec("y", "L", 2)], None).convert(ragged, {"y": values})
    assert batch["y"].to_pylist() == [values[0].tolist(), values[1, :2].tolist()]


def test_a_free_axis_that_is_not_the_tokens_is_written_whole() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    ragged = piece(2, lengths=np.array([5, 2]), width=5)
    batch = Results([spec("y", "K")], None).convert(ragged, {"y": values})
    assert batch["y"].to_pylist() == values.tolist()


def test_a_hook_gets_copies_and_the_kept_columns() -> None:
    seen: dict[str, Any] = {}

    def hook(outputs: dict[str, np.ndarray], rows: pa.RecordBatch) -> dict[str, Any]:
        seen.update(outputs)
        outputs["y"] += 1
        return {"best": outputs["y"].argmax(axis=1), "name": np.array(["x", "y"])[outputs["y"].argmax(1)]}

    memory = np.array([[1, 2], [4, 3]], np.float32)
    batch = Results([spec("y", 2)], hook).convert(piece(2), {"y": memory})
    assert batch.schema.names == ["id", "label", "best", "name"]
    assert batch["best"].to_pylist() == [1, 0]
    assert batch["name"].to_pylist() == ["y", "x"]
    assert not np.shares_memory(seen["y"], memory)
    assert memory.tolist() == [[1, 2], [4, 3]]


def test_a_hook_may_return_a_record_batch_or_a_table() -> None:
    def a_batch(outputs: dict[str, np.ndarray], rows: pa.RecordBatch) -> Any:
        return pa.record_batch({"z": [str(value) for value in rows["id"].to_pylist()]})

    def a_table(outputs: dict[str, np.ndarray], rows: pa.RecordBatch) -> Any:
        return pa.Table.from_batches([a_batch(outputs, rows.slice(0, 1)), a_batch(outputs, rows.slice(1))])

    for hook in (a_batch, a_table):
        batch = Results([spec("y")], hook).convert(piece(3), {"y": np.zeros(3, np.float32)})
        assert batch["z"].to_pylist() == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (lambda n: {"id": np.zeros(n)}, "'id' is also a kept column"),
        (lambda n: {"z": np.zeros(n + 1)}, "returned 4 rows in z, got 3"),
        (lambda n: pa.record_batch({"z": [1] * (n - 1)}), "returned 2 rows in its batch, got 3"),
        (lambda n: [1] * n, "returned list"),
        (lambda n: {"z": np.array([object()] * n)}, "cannot be written"),
    ],
)
def test_what_a_hook_may_not_return(result: Callable[[int], Any], says: str) -> None:
    results = Results([spec("y")], lambda outputs, rows: result(rows.num_rows))
    with pytest.raises(HookError, match=says) as caught:
        results.convert(piece(3), {"y": np.zeros(3, np.float32)})
    assert "\n" not in caught.value.fact


def test_an_exception_of_the_hook_blames_rows_not_the_job() -> None:
    def hook(outputs: dict[str, np.ndarray], rows: pa.RecordBatch) -> Any:
        raise KeyError("missing\nmore")

    results = Results([spec("y")], hook)
    with pytest.raises(PostprocessError) as caught:
        results.convert(piece(1), {"y": np.zeros(1, np.float32)})
    blamed = Results.blame(17, caught.value)
    assert (blamed.row, blamed.column) == (17, "")
    assert blamed.reason.startswith("postprocess: KeyError: ")
    assert "\n" not in blamed.reason
    assert Results.blame(3, ValueError("bad\nworse")).reason == "engine: bad"
