"""One output of two networks, compared row by row: do they agree, and how large are the errors."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ...datasets.signature import TensorSpec
from ...errors import MismatchError
from ..calibration.histogram import BINS
from ..calibration.statistics import TensorStatistics, decode, encode
from .difference import Difference

__all__ = ["Answers", "OutputDifference", "OutputPair", "RowErrors", "pair_outputs", "quantile"]

Answers = Literal["top-1", "equal", "none"]
"""What it means that a row has the same answer: the same largest class score, all values equal, nothing."""

_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class OutputPair:
    """An output of the first network and the one of the second that it is compared with.

    Attributes:
        a: Name in the first network.
        b: Name in the second.
        answers: What it means that they agree.
    """

    a: str
    b: str
    answers: Answers


def pair_outputs(
    a: tuple[TensorSpec, ...], b: tuple[TensorSpec, ...], names: tuple[str, str] = ("A", "B")
) -> tuple[OutputPair, ...]:
    """Finds out which outputs are compared: those of the same name, the others in order.

    Outputs that only the second network has are left alone when the first one's are all found by name.

    Args:
        a: Outputs of the first network.
        b: Outputs of the second.
        names: Of both, for messages.

    Raises:
        MismatchError: An output has no counterpart of its shape; the message names both sides.
    """
    by_name = {spec.name: spec for spec in b}
    found = {spec.name: by_name[spec.name] for spec in a if spec.name in by_name}
    left = [spec for spec in a if spec.name not in found]
    others = [spec for spec in b if spec.name not in found]
    wrong = bool(left) and len(left) != len(others)
    found |= {spec.name: other for spec, other in zip(left, others, strict=False)}
    wrong = wrong or not all(_alike(spec, found[spec.name]) for spec in a)
    if wrong:
        listed = [", ".join(map(str, specs)) for specs in (a, b)]
        raise MismatchError(
            f"the outputs differ: {names[0]} has {listed[0]}; {names[1]} has {listed[1]}",
            "compare models whose outputs have the same names, or the same shapes in the same order",
        )
    return tuple(OutputPair(a=spec.name, b=found[spec.name].name, answers=_answers(spec)) for spec in a)


def _alike(one: TensorSpec, other: TensorSpec) -> bool:
    if (one.dtype.kind == "f") != (other.dtype.kind == "f") or len(one.row_shape) != len(other.row_shape):
        return False
    pairs = zip(one.row_shape, other.row_shape, strict=True)
    return all(isinstance(x, str) or isinstance(y, str) or x == y for x, y in pairs)


def _answers(spec: TensorSpec) -> Answers:
    if spec.dtype.kind != "f":
        return "equal"
    classes = spec.row_shape[0] if len(spec.row_shape) == 1 else 0
    return "top-1" if isinstance(classes, int) and classes >= 2 else "none"


@dataclass(frozen=True, kw_only=True)
class RowErrors:
    """What became of each row of a batch.

    Attributes:
        relative: float64[n], ``||a - b|| / ||a||`` of the row; infinite where ``a`` is zero and ``b`` is not,
            or where a value is not finite in one of both.
        agrees: bool[n], whether the answers are the same; all true where there is no answer.
        answers: int64[n, 2], the classes of both networks; None where no classes are scored.
    """

    relative: NDArray[np.float64]
    agrees: NDArray[np.bool_]
    answers: NDArray[np.int64] | None = None


@dataclass(frozen=True, kw_only=True)
class OutputDifference:
    """An output of two networks, over any number of rows.

    Attributes:
        pair: Which.
        rows: Rows compared.
        agreed: Of these, how many have the same answer; all where there is no answer.
        difference: Over all values.
        errors: Statistics of ``|a - b|``, in single precision.
        row_errors: Statistics of the rows' relative errors; infinite ones are not among the finite.
    """

    pair: OutputPair
    rows: int
    agreed: int
    difference: Difference
    errors: TensorStatistics
    row_errors: TensorStatistics

    @classmethod
    def empty(cls, pair: OutputPair) -> Self:
        """Nothing compared yet."""
        nothing = TensorStatistics.empty()
        return cls(pair=pair, rows=0, agreed=0, difference=Difference(), errors=nothing, row_errors=nothing)

    @classmethod
    def of(cls, pair: OutputPair, a: NDArray[Any], b: NDArray[Any]) -> tuple[Self, RowErrors]:
        """Compares a batch.

        Args:
            pair: Which output this is.
            a: (rows, ...), of the first network; only read.
            b: Likewise of the second, of the same shape.

        Raises:
            MismatchError: The shapes differ after all.
        """
        if a.shape != b.shape:
            raise MismatchError(
                f"output {pair.a} has shape {list(a.shape)} in one network and, as {pair.b}, "
                f"{list(b.shape)} in the other",
                "compare models whose outputs have the same shapes",
            )
        relative = np.empty(len(a))
        difference, errors = Difference(), TensorStatistics.empty()
        step = max(1, _BLOCK // max(1, a[:1].size))
        for start in range(0, len(a), step):
            x, y = a[start : start + step], b[start : start + step]
            difference = difference.merge(Difference.of(x, y))
            relative[start : start + step], apart = _rows(x, y)
            errors = errors.merge(TensorStatistics.of(apart))
        agrees, answers = _agree(pair.answers, a, b)
        with np.errstate(over="ignore"):
            row_errors = TensorStatistics.of(relative.astype(np.float32))
        made = cls(
            pair=pair,
            rows=len(a),
            agreed=int(np.count_nonzero(agrees)),
            difference=difference,
            errors=errors,
            row_errors=row_errors,
        )
        return made, RowErrors(relative=relative, agrees=agrees, answers=answers)

    def merge(self, other: OutputDifference) -> Self:
        """Both together: exact, associative and commutative."""
        return type(self)(
            pair=self.pair,
            rows=self.rows + other.rows,
            agreed=self.agreed + other.agreed,
            difference=self.difference.merge(other.difference),
            errors=self.errors.merge(other.errors),
            row_errors=self.row_errors.merge(other.row_errors),
        )

    @property
    def agreement(self) -> float | None:
        """The share of rows with the same answer; None where the output is no answer, or of no rows."""
        return None if self.pair.answers == "none" or not self.rows else self.agreed / self.rows

    def as_json(self) -> dict[str, Any]:
        """What ``from_json`` reads."""
        statistics = encode({"errors": self.errors, "row_errors": self.row_errors})
        return {
            "pair": dict(vars(self.pair)),
            "rows": self.rows,
            "agreed": self.agreed,
            "difference": self.difference.as_json(),
            "statistics": base64.b64encode(statistics).decode(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Reads what ``as_json`` gave.

        Raises:
            ValueError: It is something else, like the following.
            TypeError: Likewise.
            KeyError: Likewise.
            CalibrationError: Likewise.
        """
        statistics = decode(base64.b64decode(values["statistics"]))
        return cls(
            pair=OutputPair(**values["pair"]),
            rows=int(values["rows"]),
            agreed=int(values["agreed"]),
            difference=Difference.from_json(values["difference"]),
            errors=statistics["errors"],
            row_errors=statistics["row_errors"],
        )


def quantile(statistics: TensorStatistics, share: float) -> float:
    """The magnitude that a share of all values does not pass, as the upper edge of its bin.

    Args:
        statistics: Of values at least 0; those that are not finite count as larger than all others.
        share: Above 0, at most 1.
    """
    rank = math.ceil(share * (statistics.count + statistics.non_finite))
    if rank <= statistics.zeros:
        return 0.0
    if rank > statistics.count:
        return math.inf
    reached = np.searchsorted(np.cumsum(statistics.histogram.counts), rank - statistics.zeros)
    place = min(int(reached), BINS - 1)
    return min((place + 1) * statistics.histogram.bin_width, statistics.largest)


def _rows(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """The relative error of each row, and ``|a - b|``, infinite where only one is not finite."""
    x, y = (array.reshape(len(array), -1).astype(np.float64) for array in (a, b))
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        apart = np.where(same, 0.0, np.abs(x - y))
        apart = np.where(np.isnan(apart), np.inf, apart)
        finite = np.where(np.isfinite(x), x, 0.0)
        noise, signal = np.sqrt((apart * apart).sum(axis=1)), np.sqrt((finite * finite).sum(axis=1))
        relative = np.where(noise == 0, 0.0, noise / signal)
        return relative, apart.astype(np.float32)


def _agree(
    answers: Answers, a: NDArray[Any], b: NDArray[Any]
) -> tuple[NDArray[np.bool_], NDArray[np.int64] | None]:
    if answers == "none":
        return np.ones(len(a), np.bool_), None
    if answers == "equal":
        return (a == b).reshape(len(a), -1).all(axis=1), None
    classes = np.stack([a.argmax(axis=1), b.argmax(axis=1)], axis=1).astype(np.int64)
    # The largest of values with a NaN among them is no answer, unless both have it.
    broken = np.isnan(a).any(axis=1) != np.isnan(b).any(axis=1)
    return (classes[:, 0] == classes[:, 1]) & ~broken, classes
