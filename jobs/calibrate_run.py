"""Collecting the statistics of a calibration on Ray."""

from __future__ import annotations

from ..trt_actors.actor import CalibrateActor
from .calibrate_books import Collected, collected
from .calibrate_plan import CalibratePlan
from .progress import Reporter
from .sample_run import run_sample

__all__ = ["collect"]


def collect(plan: CalibratePlan, shown: Reporter) -> Collected:
    """Observes the sample, as far as that was not done before.

    Raises:
        TrtfleetError: The statistics cannot be had; what was collected stays for the next call.
    """
    return run_sample(plan, shown, actor=CalibrateActor, method="observe", read=collected)
