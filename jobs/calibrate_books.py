"""What a calibration collected, merged from what is known of each unit of its sample."""

from __future__ import annotations

from dataclasses import dataclass

from ..trt_actors.calibration.statistics import Statistics, decode, merge_all
from .sample_books import Outcome, SampleBooks

__all__ = ["Collected", "collected"]


@dataclass(frozen=True, kw_only=True)
class Collected(Outcome):
    """What a run collected, with what earlier runs of the same calibration had.

    Attributes:
        statistics: Of every tensor, over the whole sample.
    """

    statistics: Statistics


def collected(books: SampleBooks) -> Collected:
    """Merges the statistics of all units.

    Raises:
        CalibrationError: Statistics are damaged.
        RecordsGoneError: They are gone.
        BadRowsError: More than half of the rows are bad.
    """
    outcome = books.outcome()
    parts = (decode(data, name) for data, name in books.parts())
    return Collected(statistics=merge_all(parts), **vars(outcome))
