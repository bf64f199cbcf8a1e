"""From blocks to batches: sizes, shapes, staging, and what hooks may return."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trtfleet.datasets.bindings import bind
from trtfleet.datasets.reading import Block
from trtfleet.datasets.signature import TensorSpec
from trtfleet.errors import DatasetError, HookError, MismatchError
from trtfleet.trt_actors.batches import BadInput, Batch, Piece
from trtfleet.trt_actors.feed import Feed, decodes_ahead
from trtfleet.trt_actors.onnxruntime_engine import OnnxRuntimeEngine

FeedOf = Callable[..., Feed]


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def feed_of(
    planned: Callable[..., Any],
    linear_model: Callable[..., Path],
    vectors: Callable[..., Path],
    hook: Callable[[str], str],
    threads: ThreadPoolExecutor,
) -> FeedOf:
    """A feed of the linear model (x: float32[N, 4]), with a preprocess hook on request."""

    def make(preprocess: Callable[..., Any] | None = None) -> Feed:
        options = {"keep": "id"}
        if preprocess is not None:
            options["preprocess"] = hook("def pre(batch):\n    return batch\n") + ":pre"
        return Feed(planned(linear_model(), vectors(), **options).task, preprocess, threads)

    return make


def block(first: int, rows: int, nulls: tuple[int, ...] = ()) -> Block:
    ids = np.arange(first, first + rows)
    x = np.repeat(ids, 4).astype(np.float32)
    valid = pa.array([row in nulls for row in ids.tolist()])
    lists = pa.FixedSizeListArray.from_arrays(pa.array(x), 4, mask=valid if nulls else None)
    return Block(batch=pa.record_batch({"id": ids, "x": lists}), rows=ids)


def rows_of(batches: list[Batch]) -> list[int]:
    return [row for batch in batches for piece in batch.pieces for row in piece.rows.tolist()]


@given(sizes=st.lists(st.integers(0, 40), max_size=8), batch_size=st.integers(1, 50))
def test_batches_are_full_and_in_order_however_the_blocks_are_cut(sizes: list[int], batch_size: int) -> None:
    spec = TensorSpec(name="x", dtype=np.dtype(np.float32), row_shape=(4,))

    class Task:
        keep = ("id",)
        bindings = (bind(spec, ["x"], block(0, 1).batch.schema),)

    blocks, first = [], 0
    for size in sizes:
        blocks.append(block(first, size))
        first += size
    with ThreadPoolExecutor(1) as pool:
        feed = Feed(Task(), None, pool)  # type: ignore[arg-type]
        batches = list(feed.batches(blocks, batch_size, []))
    assert rows_of(batches) == list(range(sum(sizes)))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    for batch in batches:
        whole = batch.joined()
        np.testing.assert_array_equal(whole.arrays["x"][:, 0], whole.rows)
        assert whole.kept["id"].to_pylist() == whole.rows.tolist()
        assert batch.joined(arrays=False).arrays == {}


def test_bad_rows_are_left_out_and_named(feed_of: FeedOf) -> None:
    bad: list[BadInput] = []
    blocks = [block(0, 10, nulls=(0, 7)), block(10, 10, nulls=(19,)), block(20, 3, nulls=(20, 21, 22))]
    batches = list(feed_of().batches(blocks, 6, bad))
    assert [(row.row, row.column) for row in bad] == [(row, "x") for row in (0, 7, 19, 20, 21, 22)]
    assert rows_of(batches) == [row for row in range(20) if row not in (0, 7, 19)]
    assert [len(batch) for batch in batches] == [6, 6, 5]


@given(sizes=st.lists(st.integers(0, 40), max_size=8), batch_size=st.integers(1, 50))
def test_blocks_decoded_ahead_come_in_order(sizes: list[int], batch_size: int) -> None:
    spec = TensorSpec(name="x", dtype=np.dtype(np.float32), row_shape=(2,))

    def stacked(first: int, rows: int) -> Block:
        ids = np.arange(first, first + rows)
        a = pa.array([None if row % 7 == 3 else float(row) for row in ids.tolist()], pa.float32())
        return Block(batch=pa.record_batch({"id": ids, "a": a, "b": ids.astype(np.float32)}), rows=ids)

    class Task:
        keep = ("id",)
        threads = 3
        bindings = (bind(spec, ["a", "b"], stacked(0, 1).batch.schema),)

    assert decodes_ahead(Task.bindings)
    starts = np.cumsum([0, *sizes]).tolist()
    bad: list[BadInput] = []
    with ThreadPoolExecutor(3) as pool:
        feed = Feed(Task(), None, pool)  # type: ignore[arg-type]
        blocks = (stacked(first, size) for first, size in zip(starts, sizes, strict=False))
        batches = list(feed.batches(blocks, batch_size, bad))
    expected = range(sum(sizes))
    assert [row.row for row in bad] == [row for row in expected if row % 7 == 3]
    assert rows_of(batches) == [row for row in expected if row % 7 != 3]
    for batch in batches:
        whole = batch.joined()
        np.testing.assert_array_equal(whole.arrays["x"], np.stack([whole.rows, whole.rows], axis=1))


def test_what_fails_ahead_ends_the_shard(threads: ThreadPoolExecutor) -> None:
    spec = TensorSpec(name="x", dtype=np.dtype(np.float32), row_shape=(2,))
    batch = pa.record_batch({"a": pa.array([1.0], pa.float32()), "b": pa.array([2.0], pa.float32())})

    class Task:
        keep = ()
        threads = 2
        bindings = (bind(spec, ["a", "b"], batch.schema),)

    blocks = [Block(batch=batch, rows=np.arange(1)), Block(batch=batch.select(["a"]), rows=np.arange(1, 2))]
    feed = Feed(Task(), None, threads)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="column b holds nothing here"):
        list(feed.batches(blocks, 4, []))


def test_one_piece_is_lent_several_are_gathered() -> None:
    spec = TensorSpec(name="x", dtype=np.dtype(np.float32), row_shape=(4,))
    engine = OnnxRuntimeEngine(b"", inputs=(spec,), outputs=())
    kept = pa.record_batch({"id": np.arange(3)})
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    piece = Piece(arrays={"x": array}, kept=kept, rows=np.arange(3))
    lent, gathered = engine.slot(), engine.slot()
    Batch([piece]).stage(lent)
    assert np.shares_memory(lent.inputs["x"], array)
    Batch([piece, piece[1:]]).stage(gathered)
    assert not np.shares_memory(gathered.inputs["x"], array)
    np.testing.assert_array_equal(gathered.inputs["x"], array[[0, 1, 2, 1, 2]])


def test_a_change_of_shape_ends_a_batch(
    planned: Callable[..., Any], tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    spec = TensorSpec(name="x", dtype=np.dtype(np.float32), row_shape=("height", 2))

    class Task:
        keep = ()
        network = type("Network", (), {"inputs": (spec,)})

    def hook(batch: pa.RecordBatch) -> dict[str, np.ndarray]:
        return {"x": np.zeros((batch.num_rows, 3 if batch["id"][0].as_py() < 8 else 5, 2), np.float32)}

    Task.bindings = None  # type: ignore[attr-defined]
    feed = Feed(Task(), hook, threads)  # type: ignore[arg-type]
    batches = list(feed.batches([block(0, 4), block(4, 4), block(8, 4)], 6, []))
    assert [(len(batch), batch.pieces[0].shapes["x"]) for batch in batches] == [
        (6, (3, 2)),
        (2, (3, 2)),
        (4, (5, 2)),
    ]


def test_a_hook_may_return_arrays(feed_of: FeedOf) -> None:
    def arrays(batch: pa.RecordBatch) -> dict[str, np.ndarray]:
        return {"x": np.full((batch.num_rows, 4), 3, np.float64)}

    (batch,) = feed_of(arrays).batches([block(0, 5)], 8, [])
    assert batch.pieces[0].arrays["x"].dtype == np.float32
    assert batch.pieces[0].kept["id"].to_pylist() == list(range(5))


def test_a_hook_may_return_columns(feed_of: FeedOf) -> None:
    def columns(batch: pa.RecordBatch) -> pa.RecordBatch:
        return pa.record_batch({"x": pa.array([[1, 2, 3, 4]] * batch.num_rows, pa.list_(pa.int16()))})

    (batch,) = feed_of(columns).batches([block(3, 5)], 8, [])
    np.testing.assert_array_equal(batch.pieces[0].arrays["x"], [[1, 2, 3, 4]] * 5)
    assert batch.pieces[0].kept["id"].to_pylist() == list(range(3, 8))


def test_rows_on_which_a_hook_raises_are_isolated(feed_of: FeedOf) -> None:
    def picky(batch: pa.RecordBatch) -> pa.RecordBatch:
        if {4, 9} & set(batch["id"].to_pylist()):
            raise RuntimeError("not these")
        return batch

    bad: list[BadInput] = []
    batches = list(feed_of(picky).batches([block(0, 8), block(8, 8)], 16, bad))
    assert [(row.row, row.reason) for row in bad] == [
        (4, "preprocess: RuntimeError: not these"),
        (9, "preprocess: RuntimeError: not these"),
    ]
    assert rows_of(batches) == [row for row in range(16) if row not in (4, 9)]


@pytest.mark.parametrize(
    ("made", "error", "says"),
    [
        (lambda n: {"y": np.zeros((n, 4), np.float32)}, HookError, "the model wants x"),
        (lambda n: {"x": np.zeros((n, 3), np.float32)}, HookError, r"float32\[5, 3\]"),
        (lambda n: {"x": np.zeros((n, 4), np.complex64)}, HookError, "complex64"),
        (lambda n: {"x": np.zeros((n - 1, 4), np.float32)}, HookError, "returned 4 rows in x, got 5"),
        (lambda n: {"x": np.float32(1)}, HookError, "rows in x"),
        (lambda n: {}, HookError, "returned dict"),
        (lambda n: None, HookError, "returned NoneType"),
        (lambda n: pa.record_batch({"z": [["text"]] * n}), MismatchError, "x"),
    ],
)
def test_what_a_hook_may_not_return(
    feed_of: FeedOf, made: Callable[[int], Any], error: type[Exception], says: str
) -> None:
    feed = feed_of(lambda batch: made(batch.num_rows))
    with pytest.raises(error, match=says):
        list(feed.batches([block(0, 5)], 8, []))
