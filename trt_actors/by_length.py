"""Batches of ragged rows, such as token ids: grouped by length inside a shard, so that little is padded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from ..datasets.bindings import ColumnBinding, ColumnKind
from ..datasets.decode import Decoded, decode
from ..datasets.ragged import Ragged, decode_ragged, mask, order_by_length, pad
from ..datasets.reading import Block
from .batches import BadInput, Batch, Piece
from .task import FeedTask

__all__ = ["batches_by_length"]


def batches_by_length(
    blocks: Sequence[Block],
    batch_size: int,
    task: FeedTask,
    pool: ThreadPoolExecutor,
    bad: list[BadInput],
) -> Iterator[Batch]:
    """Yields the batches of a whole shard, longest rows first; each piece says which rows it holds.

    Args:
        blocks: All rows of the shard.
        batch_size: Rows of a full batch.
        task: The job; at least one of its bindings is ragged.
        pool: Threads that decode images.
        bad: Rows that cannot be decoded are appended here.
    """
    if not blocks:
        return
    batch = pa.concat_batches([block.batch for block in blocks])
    rows = np.concatenate([block.rows for block in blocks])
    bindings = {binding.input.name: binding for binding in task.bindings or ()}
    ragged = {n: decode_ragged(batch, b) for n, b in bindings.items() if b.kind is ColumnKind.RAGGED}
    dense = {n: decode(batch, b, pool) for n, b in bindings.items() if n not in ragged}
    blamed = _blame(ragged, dense)
    bad.extend(BadInput(row=int(rows[i]), column=c, reason=why) for i, (c, why) in sorted(blamed.items()))
    good = np.delete(np.arange(len(rows)), list(blamed))
    lengths = next(iter(ragged.values())).lengths
    kept = batch.select(list(task.keep))
    order = good[order_by_length(lengths[good], batch_size)]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        arrays = {name: decoded.values[chosen] for name, decoded in dense.items()}
        arrays |= {name: _padded(values, chosen, bindings[name]) for name, values in ragged.items()}
        width = max(arrays[name].shape[1] for name in ragged)
        arrays |= {spec.name: mask(lengths[chosen], width, spec.dtype) for spec in task.masks}
        piece = Piece(
            arrays=arrays,
            kept=kept.take(pa.array(chosen)),
            rows=rows[chosen],
            lengths=lengths[chosen],
            width=width,
        )
        yield Batch([piece])


def _padded(values: Ragged, rows: np.ndarray, binding: ColumnBinding) -> np.ndarray:
    options = binding.options
    return pad(values, rows, pad_to=options.pad_to, pad_value=options.pad_value, dtype=binding.input.dtype)


def _blame(ragged: Mapping[str, Ragged], dense: Mapping[str, Decoded]) -> dict[int, tuple[str, str]]:
    """Column and reason of every row that cannot be scored, by its position."""
    columns: list[Ragged | Decoded] = [*ragged.values(), *dense.values()]
    blamed = {row.row: (row.column, row.reason) for decoded in columns for row in decoded.bad}
    (first_name, first), *others = ragged.items()
    for name, other in others:
        for i in np.flatnonzero(other.lengths != first.lengths).tolist():
            why = f"{name} has {other.lengths[i]} elements, {first_name} has {first.lengths[i]}"
            blamed.setdefault(i, ("", why))
    return blamed
