"""Two sweeps side by side: what became slower or faster by more than their noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .grid import Trial
from .results import Row

__all__ = ["Change", "changes", "in_words", "number_text"]

Verdict = Literal["slower", "faster", "same", "fails now", "works now"]

_LEAST_CHANGE = 0.03
_MOST_SHOWN = 30
_METRICS = (("host_p50_ms", -1), ("engine_p50_ms", -1), ("rows_per_s", 1))


@dataclass(frozen=True, kw_only=True)
class Change:
    """One number of one trial in two sweeps.

    Attributes:
        trial: The combination.
        metric: The number's column; empty where one of the two failed.
        before: In the earlier sweep.
        now: In the later one.
        noise: By what share either number may be off, added up; None where that is not known.
        verdict: ``slower`` or ``faster`` when the intervals of both have nothing in common and the change is
            3% at least.
    """

    trial: Trial
    metric: str
    before: float | None
    now: float | None
    noise: float | None
    verdict: Verdict

    @property
    def share(self) -> float | None:
        """The change as a share of the earlier number."""
        if not self.before or self.now is None:
            return None
        return self.now / self.before - 1

    def as_json(self) -> dict[str, Any]:
        """The change as plain values."""
        return {**asdict(self), "share": self.share}

    def __str__(self) -> str:
        if self.share is None or self.before is None or self.now is None:
            return f"{self.verdict}: {self.trial}"
        noise = "unknown" if self.noise is None else f"±{self.noise:.1%}"
        return (
            f"{self.verdict}: {self.trial}: {self.metric} {number_text(self.before)} -> "
            f"{number_text(self.now)}, "
            f"{self.share:+.1%}, noise {noise}"
        )


def number_text(value: float) -> str:
    """A time or a rate with four digits at least, never with an exponent."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def changes(before: Sequence[Row], now: Sequence[Row]) -> list[Change]:
    """Compares the trials that both sweeps have, in the order of the later one."""
    earlier = {row.trial: row for row in before}
    found: list[Change] = []
    for row in now:
        other = earlier.get(row.trial)
        if other is not None:
            found += _of(other, row)
    return found


def in_words(found: Sequence[Change]) -> list[str]:
    """What a user should see: regressions first, then what became faster, then how many stayed."""
    order = ("fails now", "slower", "works now", "faster")
    listed = [str(change) for verdict in order for change in found if change.verdict == verdict]
    same = sum(change.verdict == "same" for change in found)
    if len(listed) > _MOST_SHOWN:
        listed[_MOST_SHOWN:] = [f"and {len(listed) - _MOST_SHOWN} more changes, see the report"]
    return [*listed, f"{same} of {len(found)} numbers did not change by more than their noise"]


def _of(before: Row, now: Row) -> Iterator[Change]:
    failed = (before.found.error is not None, now.found.error is not None)
    if any(failed):
        if not all(failed):
            verdict: Verdict = "fails now" if failed[1] else "works now"
            yield Change(trial=now.trial, metric="", before=None, now=None, noise=None, verdict=verdict)
        return
    for metric, sign in _METRICS:
        old, new = _interval(before, metric), _interval(now, metric)
        if old is None or new is None:
            continue
        noise = _noise(old, new)
        yield Change(
            trial=now.trial,
            metric=metric,
            before=old[0],
            now=new[0],
            noise=noise,
            verdict=_verdict(old, new, sign),
        )


Interval = tuple[float, float | None, float | None]


def _interval(row: Row, metric: str) -> Interval | None:
    found, unit = asdict(row.found), "_ms" if metric.endswith("_ms") else ""
    name = metric.removesuffix(unit)
    if found[metric] is None:
        return None
    return found[metric], found[f"{name}_low{unit}"], found[f"{name}_high{unit}"]


def _noise(old: Interval, new: Interval) -> float | None:
    total = 0.0
    for value, low, high in (old, new):
        if low is None or high is None or not value:
            return None
        total += max(high - value, value - low) / value
    return total


def _verdict(old: Interval, new: Interval, sign: int) -> Verdict:
    if None in (*old, *new) or abs(new[0] - old[0]) < _LEAST_CHANGE * old[0]:
        return "same"
    assert old[1] is not None
    assert old[2] is not None
    assert new[1] is not None
    assert new[2] is not None
    if new[1] > old[2]:
        return "faster" if sign > 0 else "slower"
    if new[2] < old[1]:
        return "slower" if sign > 0 else "faster"
    return "same"
