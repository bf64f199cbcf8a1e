"""What a comparison is asked to do: the options of ``trtfleet compare`` as one dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..trt_actors.backends import check_backend
from ..trt_actors.building.options import Precision
from ..trt_actors.event_log import check_log_format
from .coerce import coerce, cpus, plain_values
from .feed_spec import FeedSpec
from .spec import ScoreSpec, check_int8_options, feed_options

__all__ = ["ALL_ROWS", "DEFAULT_MAX_DROP", "CompareSpec"]

ALL_ROWS = 1 << 62
"""As ``samples``: every row of the dataset."""

DEFAULT_MAX_DROP = 0.01
"""What may be lost where a suggestion is asked for and nothing else is said."""

_SUGGESTING_ROWS = 500
_NOWHERE = "."


@dataclass(frozen=True, kw_only=True)
class CompareSpec(FeedSpec):
    """One comparison; the inputs are those of the first model.

    Attributes:
        model_a: ONNX file or Paddle model, in single precision or as it is: what is right.
        model_b: What is compared with it; may be the same file in another precision.
        data: Files, globs, folders or ``s3://`` prefixes of Parquet or Arrow IPC data, in dataset order.
        precision_b: ``fp32``, ``fp16`` or ``int8``: what the second network computes in.
        table: File of the calibration table for int8; None finds the one kept beside the engine cache.
        exclude: Nodes, operators or patterns of these that are not quantized.
        samples: Rows to draw from the whole dataset; ``ALL_ROWS`` takes all. None does too, but draws 500 for
            a suggestion, which goes through them again and again.
        seed: Of the drawing; None takes another one than the calibration table's, or 0 without a table.
        batch_size: Rows a batch; None takes the first model's own when it is fixed, else 32.
        keep: Columns that tell the worst rows.
        worst: How many of the worst rows are shown.
        per_layer: Whether inner tensors are compared.
        suggest_exclude: Whether it is looked for what to keep in single precision.
        max_drop: What may be lost, see ``Parity.drop``; None sets no limit, and 0.01 for a suggestion.
        actors: Ray actors; None takes as many as fit on the cluster.
        cpus_per_actor: CPUs of each actor, or a part of one; None as for a scoring job.
        gpus_per_actor: GPUs of each actor of a GPU backend; below 1, actors share one.
        batch_timeout: Seconds that a hook or a network may take for one batch before the actor is replaced.
        backend: ``auto`` or one backend's name, for both networks; with ``per_layer`` one of ONNX Runtime.
        address: Ray cluster; None takes ``RAY_ADDRESS``, else starts Ray on this machine.
        cache: Engine cache; None takes ``TRTFLEET_CACHE`` or the user's cache.
        report: Local file for an HTML report; None writes none.
        log_format: ``text`` for people, or ``json``: one object a line, from the actors too.

    Raises:
        UsageError: An option is malformed or contradicts another.
    """

    model_a: str
    model_b: str
    data: tuple[str, ...]
    precision_b: Precision = "fp32"
    table: str | None = None
    exclude: tuple[str, ...] = ()
    samples: int | None = None
    seed: int | None = None
    batch_size: int | None = None
    keep: tuple[str, ...] = ()
    worst: int = 20
    per_layer: bool = False
    suggest_exclude: bool = False
    max_drop: float | None = None
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
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"samples must be >= 1, got {self.samples}", "or say all")
        for name in ("seed", "worst"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UsageError(f"{name} must be >= 0, got {value}", "leave it out for the default")
        if self.cpus_per_actor is not None and not self.cpus_per_actor > 0:
            raise UsageError(f"cpus_per_actor must be above 0, got {self.cpus_per_actor:g}", "say 1")
        if self.max_drop is not None and not self.max_drop >= 0:
            raise UsageError(f"max_drop must be >= 0, got {self.max_drop:g}", "for example 0.01")
        check_backend(self.backend)
        check_log_format(self.log_format)
        if self.per_layer and self.backend == "tensorrt":
            raise UsageError(
                "TensorRT does not show inner tensors, and per_layer compares them",
                "choose --backend onnxruntime-cuda or onnxruntime-cpu",
            )
        if self.suggest_exclude and self.precision_b != "int8":
            raise UsageError(
                f"suggest_exclude looks for what not to quantize, precision_b is {self.precision_b}",
                "give a model in single precision and say --precision-b int8",
            )
        check_int8_options(self.precision_b, {"table": self.table, "exclude": self.exclude})
        if self.model_a == self.model_b and self.precision_b == "fp32":
            raise UsageError(
                f"{self.model_a} would be compared with itself",
                "name another model, or say --precision-b int8",
            )
        # Made once here, so that what all kinds of jobs ask is refused in the same words.
        _ = self.feeding

    @property
    def wanted_rows(self) -> int:
        """Rows to draw, as far as there are so many."""
        return self.samples or (_SUGGESTING_ROWS if self.suggest_exclude else ALL_ROWS)

    @property
    def feeding(self) -> ScoreSpec:
        """The scoring job that would feed the first network in the same way."""
        return ScoreSpec(
            model=self.model_a,
            data=self.data,
            out=_NOWHERE,
            keep=self.keep,
            batch_size=self.batch_size,
            actors=self.actors,
            gpus_per_actor=self.gpus_per_actor,
            batch_timeout=self.batch_timeout,
            address=self.address,
            cache=self.cache,
            **feed_options(self),
        )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> CompareSpec:
        """Builds a spec from plain values, as ``ScoreSpec.of`` does.

        Raises:
            UsageError: An option is unknown or of the wrong type.
        """
        required, usage = ("model_a", "model_b", "data"), "trtfleet compare MODEL_A MODEL_B DATA..."
        return cls(**plain_values(cls, options, required=required, usage=usage, read=_read))


def _read(name: str, value: Any) -> Any:
    if name == "samples" and value == "all":
        return ALL_ROWS
    if name == "cpus_per_actor":
        return cpus(value)
    if name == "worst":
        if isinstance(value, bool) or not isinstance(value, int):
            raise UsageError(f"worst must be a whole number, got {value!r}", "20 by default")
        return value
    return coerce(name, value)
