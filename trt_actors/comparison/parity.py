"""Do two networks give the same answers on a few rows: what a job asks before it trusts the second one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from ...errors import EmptyDatasetError, ParityError
from ..prepared import Prepared
from ..task import TensorRTSettings
from .comparison import Comparison
from .outputs import pair_outputs
from .runner import EngineRunner, match_inputs

__all__ = ["Parity", "parity"]


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How well a second network stands in for a first one.

    Attributes:
        top1_agreement: The share of rows with the same answer, of the output with the least; None where no
            output is an answer.
        relative_error: ``||a - b|| / ||a||`` over all rows, of the output with the largest.
        rows: Rows compared.
    """

    top1_agreement: float | None
    relative_error: float
    rows: int

    @classmethod
    def of(cls, comparison: Comparison) -> Self:
        """Sums a comparison up.

        Raises:
            EmptyDatasetError: No row was compared.
        """
        if not comparison.rows:
            raise EmptyDatasetError("no row was compared", "are there rows, and do they fit the model?")
        shares = [output.agreement for output in comparison.outputs if output.agreement is not None]
        return cls(
            top1_agreement=min(shares, default=None),
            relative_error=max(output.difference.relative_error for output in comparison.outputs),
            rows=comparison.rows,
        )

    @property
    def drop(self) -> float:
        """What is lost: the share of rows with another answer, else the relative error."""
        return self.relative_error if self.top1_agreement is None else 1 - self.top1_agreement

    @property
    def sentence(self) -> str:
        """The numbers in words."""
        rows = f"of {self.rows:,} rows" if self.rows != 1 else "of 1 row"
        error = f"relative error {self.relative_error:.3g}"
        if self.top1_agreement is None:
            return f"{error} {rows}"
        return f"{self.top1_agreement:.2%} {rows} have the same answer; {error}"

    def exceeds(self, max_drop: float) -> bool:
        """Whether more is lost than allowed, beyond rounding: 0.01 of 300 rows are 3 rows."""
        return not self.drop <= max_drop * (1 + 1e-9)

    def require(self, max_drop: float, what: str) -> None:
        """Refuses a network that loses more than allowed.

        Args:
            max_drop: What ``drop`` may be.
            what: The second network, in words.

        Raises:
            ParityError: It loses more.
        """
        if self.exceeds(max_drop):
            lost = f"{self.drop:.3g}" if math.isfinite(self.drop) else "everything"
            raise ParityError(
                f"{what} loses {lost}, more than --max-drop {max_drop:g}: {self.sentence}",
                "see where with `trtfleet compare --per-layer`; it can propose what to exclude",
            )


def parity(
    network_a: Prepared,
    network_b: Prepared,
    feeds: Iterable[Mapping[str, np.ndarray]],
    *,
    backend: str = "auto",
    settings: TensorRTSettings,
    settings_b: TensorRTSettings | None = None,
) -> Parity:
    """Runs a few batches through two networks in this process, on one CPU thread or on its GPU.

    Args:
        network_a: The one to trust.
        network_b: The one to judge; its inputs are those of the first, in name or in order.
        feeds: Batches as the networks take them, (rows, ...) by input of the first network.
        backend: Where both run: ``auto`` or one backend's name.
        settings: How TensorRT engines of the first network are built.
        settings_b: Likewise of the second; None for the same.

    Raises:
        MismatchError: Inputs or outputs do not correspond.
        EmptyDatasetError: There was no row.
        TrtfleetError: A network cannot be loaded or run.
    """
    pairs = pair_outputs(network_a.outputs, network_b.outputs)
    inputs = match_inputs(network_a.inputs, network_b.inputs)
    total = Comparison.empty(pairs)
    with (
        EngineRunner(backend, network_a, settings) as first,
        EngineRunner(backend, network_b, settings_b or settings) as second,
    ):
        for feed in feeds:
            a = first.run(feed).outputs
            b = second.run({inputs[name]: array for name, array in feed.items()}).outputs
            total = total.merge(Comparison.of_batch(pairs, a, b)[0], 0)
    return Parity.of(total)
