"""What becomes of trials whose actors die: a pool whose calls fail as they do then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from trtfleet.datasets.sampling import Unit
from trtfleet.errors import ClusterError, ModelError
from trtfleet.jobs.compare_trials import TrialPool
from trtfleet.trt_actors.comparison.comparison import Comparison
from trtfleet.trt_actors.comparison.outputs import OutputPair
from trtfleet.trt_actors.quantization.placement import Site

UNITS = [Unit(id=str(i), index=i, first=2 * i, batch_size=2, files=()) for i in range(3)]
SITES = (Site(node="n", op_type="Conv", input=0, tensor="x"),)


class Failing:
    """Fails the first calls with an error; then compares two rows with twice their value for each unit."""

    def __init__(self, failures: int, error: Exception) -> None:
        self._left = failures
        self._error = error
        self.calls = 0

    def map(self, method: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        answers: list[Any] = []
        for _, unit in calls:
            self.calls += 1
            if self._left:
                self._left -= 1
                answers.append(self._error)
                continue
            a = np.full((2, 1), unit.index + 1, np.float32)
            pair = OutputPair(a="y", b="y", answers="none")
            answers.append(Comparison.of_batch([pair], {"y": a}, {"y": 2 * a})[0].encode())
        return answers


def test_only_what_failed_is_repeated_and_nothing_is_measured_twice() -> None:
    pool = Failing(2, ClusterError("an actor does not answer"))
    trials = TrialPool(pool, UNITS, {})
    first = trials.measure([SITES])
    assert (first[0].rows, first[0].relative_error, pool.calls) == (6, 1.0, 5)
    assert trials.measure([SITES, SITES]) == [*first, *first]
    assert pool.calls == 5


def test_calls_that_go_on_failing_are_an_error() -> None:
    with pytest.raises(ClusterError, match="again and again: the actor died"):
        TrialPool(Failing(99, RuntimeError("the actor died")), UNITS, {}).measure([SITES])


def test_a_network_that_does_not_run_is_not_tried_again() -> None:
    pool = Failing(1, ModelError("the network does not run on a batch: overflow"))
    with pytest.raises(ModelError, match="overflow"):
        TrialPool(pool, UNITS, {}).measure([SITES])
    assert pool.calls == len(UNITS)
