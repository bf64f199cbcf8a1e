"""One measurement of several repeats of a trial: their medians, with the noise between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from ...trt_actors.trial.task import Measurement

__all__ = ["merged"]

_SUMS = ("latency_runs", "throughput_runs", "warm_up_runs", "bad_rows", "seconds")
_LARGEST = ("load_s", "warm_up_s", "temperature_c")
_WORDS = ("executed", "not_taken", "node", "device_name", "throttled")


def merged(repeats: Sequence[Measurement]) -> Measurement:
    """Joins what several repeats of one trial found.

    Times, rates and readings are medians; the interval of one reaches from the lowest end that a repeat has
    to the highest, so that it holds what changes from one repeat to the next. A trial with a repeat that
    failed has failed.

    Args:
        repeats: At least one.
    """
    bad = next((one for one in repeats if one.error is not None), None)
    if bad is not None or len(repeats) == 1:
        return bad or repeats[0]
    found = {one.name: [getattr(repeat, one.name) for repeat in repeats] for one in fields(Measurement)}
    return Measurement(**{name: _joined(name, values) for name, values in found.items()})


def _joined(name: str, values: Sequence[Any]) -> Any:
    known = [value for value in values if value is not None]
    if not known:
        return None
    if name in _WORDS:
        return ", ".join(dict.fromkeys(filter(None, known)))
    if name == "is_steady":
        return all(known)
    if name in _SUMS:
        return sum(known)
    if name in _LARGEST:
        return max(known)
    end = _end(name)
    if end is None:
        return float(np.median(known))
    # An end that one repeat could not tell is unknown.
    return None if len(known) < len(values) else end(known)


def _end(name: str) -> Any:
    stem = name.removesuffix("_ms")
    return min if stem.endswith("_low") else max if stem.endswith("_high") else None
