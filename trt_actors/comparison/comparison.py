"""What is known of two networks after comparing some rows; it merges exactly and travels as bytes."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Self

import numpy as np

from ...errors import CacheError, TrtfleetError
from .difference import Difference
from .outputs import OutputDifference, OutputPair, RowErrors
from .worst import WorstRow, keep_worst

__all__ = ["Comparison"]

_MOST_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two networks over some rows.

    Attributes:
        outputs: Every pair of outputs.
        layers: Every inner tensor that was compared, by name; the order is that of the network.
        worst: The worst rows, the worst first.
    """

    outputs: tuple[OutputDifference, ...]
    layers: Mapping[str, Difference] = field(default_factory=dict, hash=False)
    worst: tuple[WorstRow, ...] = ()

    @classmethod
    def empty(cls, pairs: Iterable[OutputPair]) -> Self:
        """Nothing compared yet."""
        return cls(outputs=tuple(map(OutputDifference.empty, pairs)))

    @classmethod
    def of_batch(
        cls, pairs: Iterable[OutputPair], a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]
    ) -> tuple[Self, list[RowErrors]]:
        """Compares the outputs of a batch.

        Args:
            pairs: Which.
            a: (rows, ...) by name, of the first network; only read.
            b: Likewise of the second.

        Returns:
            The comparison, without worst rows, and the errors of the rows, by output.

        Raises:
            MismatchError: Shapes differ.
        """
        found = [OutputDifference.of(pair, a[pair.a], b[pair.b]) for pair in pairs]
        return cls(outputs=tuple(output for output, _ in found)), [errors for _, errors in found]

    @property
    def rows(self) -> int:
        """Rows compared."""
        return max((output.rows for output in self.outputs), default=0)

    def merge(self, other: Comparison, most_worst: int) -> Self:
        """Both together, with so many of the worst rows: exact, associative and commutative."""
        nothing = Difference()
        return type(self)(
            outputs=tuple(one.merge(more) for one, more in zip(self.outputs, other.outputs, strict=True)),
            layers={
                name: self.layers.get(name, nothing).merge(other.layers.get(name, nothing))
                for name in {**self.layers, **other.layers}
            },
            worst=keep_worst((*self.worst, *other.worst), most_worst),
        )

    @classmethod
    def merged(cls, parts: Iterable[Comparison], pairs: Iterable[OutputPair], most_worst: int) -> Self:
        """All parts together; one at a time is held, when ``parts`` makes them as it goes."""
        return reduce(lambda total, part: total.merge(part, most_worst), parts, cls.empty(pairs))

    def encode(self) -> bytes:
        """The comparison as bytes, the same for equal ones."""
        values = {
            "outputs": [output.as_json() for output in self.outputs],
            "layers": {name: difference.as_json() for name, difference in self.layers.items()},
            "worst": [dict(vars(row)) for row in self.worst],
        }
        return zlib.compress(json.dumps(values, separators=(",", ":")).encode())

    @classmethod
    def decode(cls, data: bytes, name: str = "the comparison") -> Self:
        """Reads what ``encode`` gave.

        Args:
            data: The bytes.
            name: Of the file, for messages.

        Raises:
            CacheError: It is damaged.
        """
        try:
            packed = zlib.decompressobj()
            text = packed.decompress(data, _MOST_BYTES)
            if not packed.eof:
                raise ValueError("it is cut off, or too large")
            return cls._of(json.loads(text))
        except (ValueError, TypeError, KeyError, zlib.error, RecursionError, TrtfleetError) as error:
            said = " ".join(str(error).split())[:200]
            raise CacheError(f"{name} is damaged: {said}", "remove it and repeat the comparison") from error

    @classmethod
    def _of(cls, values: Mapping[str, Any]) -> Self:
        return cls(
            outputs=tuple(map(OutputDifference.from_json, values["outputs"])),
            layers={name: Difference.from_json(one) for name, one in values["layers"].items()},
            worst=tuple(map(WorstRow.from_json, values["worst"])),
        )
