"""The calibration table of a scoring job: which one it is, and what makes it when there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..trt_actors.calibration.calibrator import BACKENDS
from ..trt_actors.model import Model
from .calibrate_spec import CalibrateSpec
from .int8 import FoundTable, find_table, no_table
from .spec import ScoreSpec, feed_options

__all__ = ["calibrate_command", "same_feed", "settle_table"]


def settle_table(
    spec: ScoreSpec,
    model: Model,
    feed: Mapping[str, Any],
    *,
    standing: str | None,
    calibrate: Callable[[CalibrateSpec], object],
) -> FoundTable:
    """The table of a scoring job; with ``use_calib_mode`` one that is not there is made.

    Args:
        spec: The job.
        model: Its model, in single precision.
        feed: What decides the values fed.
        standing: Digest of the table that the output began with; None for a new one.
        calibrate: Makes and keeps a table.

    Raises:
        CalibrationError: There is none; the message names how those that are there differ, the hint the
            command that makes it.
    """

    def look() -> FoundTable | None:
        return find_table(
            spec.model,
            model.digest,
            given=spec.table,
            cache=spec.cache,
            feed=feed,
            standing=standing,
            excluded=spec.exclude,
        )

    found = look()
    if found is None and spec.use_calib_mode:
        calibrate(same_feed(spec))
        found = look()
    if found is None:
        raise no_table(
            spec.model, model.digest, spec.cache, feed, calibrate_command(spec), "--use-calib-mode"
        )
    return found


def same_feed(spec: ScoreSpec) -> CalibrateSpec:
    """The calibration, with its defaults, that feeds the network as a scoring job does, on such actors."""
    return CalibrateSpec(
        model=spec.model,
        data=spec.data,
        actors=spec.actors,
        cpus_per_actor=spec.cpus_per_actor,
        gpus_per_actor=spec.gpus_per_actor,
        backend=spec.backend if spec.backend in BACKENDS else "auto",
        address=spec.address,
        cache=spec.cache,
        log_format=spec.log_format,
        **feed_options(spec),
    )


def calibrate_command(spec: ScoreSpec) -> list[str]:
    """The words of the command that makes a job's table."""
    size = None if spec.resize is None else "x".join(map(str, spec.resize))
    fill = None if spec.fill_null is None else repr(spec.fill_null)
    words: list[str] = ["trtfleet", "calibrate", spec.model, *spec.data]
    for name, columns in spec.input.items():
        words += ["--input", f"{name}={','.join(columns)}"]
    for flag, value in (
        ("--normalize", spec.normalize),
        ("--layout", spec.layout),
        ("--resize", size),
        ("--preprocess", spec.preprocess),
        ("--fill-null", fill),
        ("--pad-to", spec.pad_to),
        ("--pad-value", spec.pad_value or None),
        ("--address", spec.address),
        ("--cache", spec.cache),
    ):
        words += [] if value is None else [flag, str(value)]
    for flag, values in (("--columns", spec.columns), ("--mask", spec.mask)):
        words += [word for value in values for word in (flag, value)]
    return words
