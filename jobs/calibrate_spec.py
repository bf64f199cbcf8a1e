"""What a calibration is asked to do: the options of ``trtfleet calibrate`` as one dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..trt_actors.calibration.calibrator import BACKENDS
from ..trt_actors.calibration.thresholds import Method
from ..trt_actors.event_log import check_log_format
from .coerce import coerce, cpus, plain_values
from .feed_spec import FeedSpec
from .spec import ScoreSpec, feed_options

__all__ = ["CalibrateSpec"]

_NOWHERE = "."


@dataclass(frozen=True, kw_only=True)
class CalibrateSpec(FeedSpec):
    """One calibration.

    Attributes:
        model: ONNX file, in single precision.
        data: Files, globs, folders or ``s3://`` prefixes of Parquet or Arrow IPC data, in dataset order.
        table: Local file for the table; None keeps it beside the engine cache only.
        samples: Rows to draw from the whole dataset.
        method: How thresholds are chosen: ``entropy``, ``percentile:P``, ``minmax`` or ``mse``.
        batch_size: Rows a batch; None takes the model's own when it is fixed, else 32.
        seed: Of the drawing.
        exclude: Nodes, operators or patterns of these that stay in single precision.
        actors: Ray actors; None takes as many as fit on the cluster.
        cpus_per_actor: CPUs of each actor, or a part of one; None as for a scoring job.
        gpus_per_actor: GPUs of each actor on CUDA; below 1, actors share one.
        batch_timeout: Seconds that a hook or a network may take for one batch before the actor is replaced.
        backend: ``auto``, ``onnxruntime-cuda`` or ``onnxruntime-cpu``.
        address: Ray cluster; None takes ``RAY_ADDRESS``, else starts Ray on this machine.
        cache: Engine cache; None takes ``TRTFLEET_CACHE`` or the user's cache.
        report: Local file for the HTML report; None writes it beside ``table``.
        log_format: ``text`` for people, or ``json``: one object a line, from the actors too.

    Raises:
        UsageError: An option is malformed or contradicts another.
    """

    model: str
    data: tuple[str, ...]
    table: str | None = None
    samples: int = 500
    method: str = "entropy"
    batch_size: int | None = None
    seed: int = 0
    exclude: tuple[str, ...] = ()
    actors: int | None = None
    cpus_per_actor: float | None = None
    gpus_per_actor: float = 1.0
    batch_timeout: float = 600.0
    backend: str = "auto"
    address: str | None = None
    cache: str | None = None
    report: str | None = None
    log_format: str = "text"

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UsageError(f"samples must be >= 1, got {self.samples}", "500 are enough for most models")
        if self.seed < 0:
            raise UsageError(f"seed must be >= 0, got {self.seed}", "any whole number will do")
        if self.cpus_per_actor is not None and not self.cpus_per_actor > 0:
            raise UsageError(f"cpus_per_actor must be above 0, got {self.cpus_per_actor:g}", "say 1")
        if self.backend not in BACKENDS:
            known = ", ".join(BACKENDS)
            raise UsageError(f"backend {self.backend!r} does not calibrate", f"choose one of {known}")
        Method.parse(self.method)
        check_log_format(self.log_format)
        # Made once here, so that what both kinds of jobs ask is refused in the same words.
        _ = self.feeding

    @property
    def feeding(self) -> ScoreSpec:
        """The scoring job that would feed the network in the same way."""
        return ScoreSpec(
            model=self.model,
            data=self.data,
            out=_NOWHERE,
            batch_size=self.batch_size,
            actors=self.actors,
            gpus_per_actor=self.gpus_per_actor,
            batch_timeout=self.batch_timeout,
            **feed_options(self),
        )

    @property
    def report_path(self) -> str | None:
        """Where the report goes: beside the table, unless it is said."""
        if self.report is not None or self.table is None:
            return self.report
        return f"{self.table.removesuffix('.json')}.html"

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> CalibrateSpec:
        """Builds a spec from plain values, as ``ScoreSpec.of`` does.

        Raises:
            UsageError: An option is unknown or of the wrong type.
        """
        required, usage = ("model", "data"), "trtfleet calibrate MODEL DATA..."
        return cls(**plain_values(cls, options, required=required, usage=usage, read=_read))


def _read(name: str, value: Any) -> Any:
    return cpus(value) if name == "cpus_per_actor" else coerce(name, value)
