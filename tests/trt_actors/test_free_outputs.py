"""Outputs whose sizes differ between batches keep one column type."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from trtfleet.datasets.signature import TensorSpec
from trtfleet.trt_actors.batches import Piece
from trtfleet.trt_actors.results import Results


def piece(rows: int, lengths: list[int] | None = None, width: int | None = None) -> Piece:
    kept = pa.RecordBatch.from_struct_array(pa.array([{}] * rows, pa.struct([])))
    found = None if lengths is None else np.array(lengths)
    return Piece(arrays={}, kept=kept, rows=np.arange(rows), lengths=found, width=width)


def test_free_axes_become_lists_of_one_type_for_every_size() -> None:
    spec = TensorSpec(name="map", dtype=np.dtype(np.float32), row_shape=("h", 2, "w"))
    results = Results([spec], None)
    small = np.arange(1 * 3 * 2 * 2, dtype=np.float32).reshape(1, 3, 2, 2)
    large = np.arange(2 * 5 * 2 * 4, dtype=np.float32).reshape(2, 5, 2, 4)
    first = results.convert(piece(1), {"map": small})
    second = results.convert(piece(2), {"map": large})
    assert first.schema.equals(second.schema)
    assert pa.concat_batches([first, second])["map"].to_pylist() == [*small.tolist(), *large.tolist()]


def test_tokens_are_cut_to_their_row_and_other_axes_are_not() -> None:
    per_token = TensorSpec(name="tokens", dtype=np.dtype(np.float32), row_shape=("L", 2))
    other = TensorSpec(name="other", dtype=np.dtype(np.int64), row_shape=("k",))
    results = Results([per_token, other], None)
    tokens = np.arange(3 * 4 * 2, dtype=np.float32).reshape(3, 4, 2)
    others = np.arange(15).reshape(3, 5)
    batch = results.convert(piece(3, [4, 0, 2], 4), {"tokens": tokens, "other": others})
    assert batch["tokens"].to_pylist() == [tokens[0].tolist(), [], tokens[2][:2].tolist()]
    assert batch["other"].to_pylist() == others.tolist()
