from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trtfleet.errors import HookError
from trtfleet.trt_actors.isolate import isolate


@given(rows=st.integers(0, 70), bad=st.sets(st.integers(0, 69)), start=st.integers(0, 1000))
def test_exactly_the_bad_rows_fail_and_the_rest_is_covered_once(rows: int, bad: set[int], start: int) -> None:
    bad_rows = {start + row for row in bad if row < rows}

    def work(first: int, stop: int) -> tuple[int, int]:
        assert first < stop
        if bad_rows & set(range(first, stop)):
            raise ValueError(f"a bad row in {first}..{stop}")
        return first, stop

    good, failed = isolate(rows, work, start)
    assert [row for row, _ in failed] == sorted(bad_rows)
    assert all(str(error) == f"a bad row in {row}..{row + 1}" for row, error in failed)
    covered = [row for first, stop, result in good for row in range(*result) if (first, stop) == result]
    assert covered == [row for row in range(start, start + rows) if row not in bad_rows]


def test_one_bad_row_costs_a_logarithm_of_calls() -> None:
    calls: list[tuple[int, int]] = []

    def work(first: int, stop: int) -> None:
        calls.append((first, stop))
        if first <= 777 < stop:
            raise ValueError

    isolate(1024, work)
    assert len(calls) == 1 + 2 * 10


def test_an_error_that_blames_the_job_is_passed_on_at_once() -> None:
    calls = 0

    def work(first: int, stop: int) -> None:
        nonlocal calls
        calls += 1
        raise HookError("the hook returned nothing")

    with pytest.raises(HookError, match="returned nothing"):
        isolate(64, work)
    assert calls == 1


def test_an_interrupt_is_nobodys_row() -> None:
    def work(first: int, stop: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        isolate(4, work)
