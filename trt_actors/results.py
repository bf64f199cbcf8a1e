"""What an engine computed, as the columns that are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from ..datasets.encode import to_array, to_list_array
from ..datasets.signature import TensorSpec
from ..datasets.storage import one_line
from ..errors import HookError
from .batches import BadInput, Piece
from .hooks import Hook, run_postprocess

__all__ = ["PostprocessError", "Results"]


class PostprocessError(Exception):
    """The postprocess hook raised; the cause is chained."""


class Results:
    """Turns outputs into record batches: the kept columns, then one column an output.

    Args:
        outputs: The engine's outputs.
        postprocess: The user's hook, already imported.
    """

    def __init__(self, outputs: Sequence[TensorSpec], postprocess: Hook | None) -> None:
        self._outputs = outputs
        self._postprocess = postprocess

    def convert(self, piece: Piece, outputs: Mapping[str, np.ndarray]) -> pa.RecordBatch:
        """Makes the columns of some rows; copies the outputs, whose memory the engine reuses.

        Args:
            piece: The rows; its inputs are not used.
            outputs: (n, ...) by name.

        Raises:
            HookError: The hook returned something that cannot be written.
            PostprocessError: The hook raised.
        """
        if self._postprocess is None:
            columns = {spec.name: self._column(spec, outputs[spec.name], piece) for spec in self._outputs}
        else:
            columns = self._post(piece, {name: np.array(array) for name, array in outputs.items()})
        double = sorted(set(columns) & set(piece.kept.schema.names))
        if double:
            raise HookError(f"output column {double[0]!r} is also a kept column", "rename it in the hook")
        arrays = [*piece.kept.columns, *columns.values()]
        fields = [*piece.kept.schema, *(pa.field(name, a.type) for name, a in columns.items())]
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))

    def _column(self, spec: TensorSpec, values: np.ndarray, piece: Piece) -> pa.Array:
        if spec.is_static:
            return to_array(np.array(values))
        is_free = [isinstance(dim, str) for dim in spec.row_shape]
        # As wide as the padded rows means one entry per token; any other free axis is written whole.
        is_padded = is_free[0] and piece.lengths is not None and values.shape[1] == piece.width
        return to_list_array(np.array(values), is_free, piece.lengths if is_padded else None)

    def _post(self, piece: Piece, outputs: dict[str, np.ndarray]) -> dict[str, pa.Array]:
        assert self._postprocess is not None
        try:
            result = run_postprocess(self._postprocess, outputs, piece.kept)
        except HookError:
            raise
        except Exception as error:
            raise PostprocessError(f"{type(error).__name__}: {one_line(error)}") from error
        if isinstance(result, pa.RecordBatch):
            return dict(zip(result.schema.names, result.columns, strict=True))
        try:
            return {name: to_array(array) for name, array in result.items()}
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise HookError(
                f"the postprocess hook's arrays cannot be written: {one_line(error)}",
                "return arrays of numbers, booleans or texts",
            ) from error

    @staticmethod
    def blame(row: int, error: Exception) -> BadInput:
        """The verdict on a row that failed alone."""
        if isinstance(error, PostprocessError):
            return BadInput(row=row, column="", reason=f"postprocess: {error}")
        return BadInput(row=row, column="", reason=f"engine: {one_line(error)}")
