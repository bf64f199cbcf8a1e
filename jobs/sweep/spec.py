"""What a sweep is asked to do: the options of ``trtfleet sweep`` as one dataclass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import UsageError
from ...trt_actors.building.options import PRECISIONS, BuildOptions, Profile
from ...trt_actors.event_log import check_log_format
from ...trt_actors.trial.task import MODES, TORCH, TRIAL_BACKENDS, Measure
from ..coerce import coerce, plain_values
from ..feed_spec import FeedSpec
from ..spec import ScoreSpec, feed_options

__all__ = ["SweepSpec"]

_HINT = "see `trtfleet sweep --help`"
_NUMBER_LISTS = ("batch_sizes", "contexts", "actors")
_TEXT_LISTS = ("precisions", "backends")
_NUMBERS = ("seconds", "warm_up_s", "timeout_s")
_INTEGERS = ("repeats", "runs", "cpus_per_actor")
_NOWHERE = "."


@dataclass(frozen=True, kw_only=True)
class SweepSpec(FeedSpec):
    """One sweep: every combination of its lists, on every kind of device of the cluster.

    Attributes:
        models: ONNX files.
        out: Folder or ``s3://`` prefix for the results.
        batch_sizes: Rows a batch.
        precisions: ``fp32``, ``fp16``, ``int8``.
        backends: ``auto``, ``tensorrt``, ``onnxruntime-cuda``, ``onnxruntime-cpu``, ``torch``.
        contexts: Engines in one process, each with its own thread and streams.
        actors: Processes at once, each with a device of its own, all on one node.
        repeats: How often each trial is measured, each time in new processes and at another time.
        mode: ``latency``, ``throughput`` or ``both``.
        runs: Least batches that count.
        seconds: Least seconds of measuring.
        warm_up_s: Most seconds of warming up.
        timeout_s: Most seconds of one trial, the build of its engine included.
        cpus_per_actor: CPU threads of each actor; None for its GPU's share of the node, or on the CPU the
            whole node divided by the actors. A trial on the CPU has its node for itself in any case.
        profile: Shapes of inputs with free dimensions besides the batch, as ``NAME=MIN,OPT,MAX``; OPT is run.
        data: Dataset whose rows throughput is measured on, as a scoring job would score them; none for
            synthetic batches.
        emit: As in ``ScoreSpec``; like ``FeedSpec``, of use with ``data`` alone.
        torch: By name or path of a model, ``package.module:function`` that returns the same network as a
            ``torch.nn.Module``; under an empty name for all models.
        baseline: The backend that others are compared with; tried besides ``backends`` if it is not there.
        compare: The output of an earlier sweep to compare with.
        address: Ray cluster; None takes ``RAY_ADDRESS``, else starts Ray on this machine.
        cache: Engine cache; None takes ``TRTFLEET_CACHE`` or the user's cache.
        overwrite: Start afresh where the output holds another sweep, or this one.
        log_format: ``text`` for people, or ``json``: one object a line, from the actors too.

    Raises:
        UsageError: An option is malformed or contradicts another.
    """

    models: tuple[str, ...]
    out: str
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    precisions: tuple[str, ...] = ("fp32",)
    backends: tuple[str, ...] = ("auto",)
    contexts: tuple[int, ...] = (1,)
    actors: tuple[int, ...] = (1,)
    repeats: int = 3
    mode: str = "both"
    runs: int = 50
    seconds: float = 1.0
    warm_up_s: float = 10.0
    timeout_s: float = 1800.0
    cpus_per_actor: int | None = None
    profile: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    emit: str = "raw"
    torch: Mapping[str, str] = field(default_factory=dict)
    baseline: str | None = None
    compare: str | None = None
    address: str | None = None
    cache: str | None = None
    overwrite: bool = False
    log_format: str = "text"

    def __post_init__(self) -> None:
        for name in (*_NUMBER_LISTS, *_TEXT_LISTS, "models"):
            values = getattr(self, name)
            if not values:
                raise UsageError(f"{name} is empty", _HINT)
            if len(set(values)) != len(values):
                raise UsageError(f"{name} names a value twice: {', '.join(map(str, values))}", _HINT)
        for name in _NUMBER_LISTS:
            if min(getattr(self, name)) < 1:
                raise UsageError(f"{name} must be >= 1, got {min(getattr(self, name))}", _HINT)
        _check_known("precision", self.precisions, PRECISIONS)
        _check_known("backend", self.tried, TRIAL_BACKENDS)
        _check_known("mode", [self.mode], MODES)
        check_log_format(self.log_format)
        # A rate needs the time between two batches.
        for name, least in (("runs", 2), ("repeats", 1), ("cpus_per_actor", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} must be >= {least}, got {value}", _HINT)
        for name in _NUMBERS:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{name} must be finite and >= 0, got {value:g}", _HINT)
        self._check_torch()
        self._check_data()
        # Made once here, so that a malformed profile is refused where the sweep is described.
        _ = self.build_options("fp32")

    def _check_torch(self) -> None:
        if bool(self.torch) != (TORCH in self.tried):
            raise UsageError(
                "--torch says which networks PyTorch runs, and backend or baseline torch that it does",
                "say both, or neither: --torch package.module:function --baseline torch",
            )
        for factory in self.torch.values():
            if not all(factory.partition(":")):
                raise UsageError(f"torch {factory!r} names no function", "write package.module:function")

    def _check_data(self) -> None:
        if self.data:
            if self.mode == "latency":
                raise UsageError("data is scored for throughput, mode is latency", "leave one of them out")
            _ = self.feeding(self.models[0], "fp32")
            return
        for name, value in {**feed_options(self), "emit": self.emit}.items():
            if value not in (None, (), {}, SweepSpec.__dataclass_fields__[name].default):
                raise UsageError(
                    f"{name} says how a network is fed from a dataset, and none is given",
                    f"say --data DATA, or leave --{name.replace('_', '-')} out",
                )

    @property
    def tried(self) -> tuple[str, ...]:
        """The backends that are tried: those asked for, and the baseline."""
        return tuple(dict.fromkeys([*self.backends, *([self.baseline] if self.baseline else [])]))

    @property
    def measure(self) -> Measure:
        """How its trials are measured."""
        return Measure(
            mode=self.mode,  # type: ignore[arg-type]
            runs=self.runs,
            seconds=self.seconds,
            warm_up_s=self.warm_up_s,
            timeout_s=self.timeout_s,
        )

    def build_options(self, precision: str) -> BuildOptions:
        """What TensorRT engines in a precision are built for: every batch size of the sweep."""
        return BuildOptions(
            precision=precision,  # type: ignore[arg-type]
            max_batch_size=max(self.batch_sizes),
            profiles=tuple(map(Profile.parse, self.profile)),
        )

    def feeding(self, model: str, precision: str) -> ScoreSpec:
        """The scoring job that would feed a model from the dataset in the same way."""
        return ScoreSpec(
            model=model,
            data=self.data,
            out=_NOWHERE,
            emit=self.emit,
            precision=precision,  # type: ignore[arg-type]
            max_batch_size=max(self.batch_sizes),
            profile=self.profile,
            **feed_options(self),
        )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> SweepSpec:
        """Builds a spec from plain values; a text with commas stands for a list, a single value for one.

        Raises:
            UsageError: An option is unknown or of the wrong type.
        """
        required, usage = ("models", "out"), "trtfleet sweep MODEL... -o OUT"
        return cls(**plain_values(cls, options, required=required, usage=usage, read=_read))


def _check_known(what: str, values: Sequence[str], known: Sequence[str]) -> None:
    for value in values:
        if value not in known:
            raise UsageError(f"{what} {value!r} is unknown", f"choose from {', '.join(known)}")


def _read(name: str, value: Any) -> Any:
    if name in _NUMBER_LISTS:
        return tuple(_whole(name, item) for item in _items(value))
    if name in _TEXT_LISTS:
        return tuple(str(item).strip() for item in _items(value))
    if name == "models":
        return coerce("data", value)
    if name in _INTEGERS:
        return _whole(name, value)
    if name in _NUMBERS:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"{name} must be a number, got {value!r}", _HINT)
        return float(value)
    if name == "torch":
        return dict(value) if isinstance(value, Mapping) else dict(map(_factory, coerce("data", value)))
    return coerce(name, value)


def _factory(text: str) -> tuple[str, str]:
    model, _, factory = text.rpartition("=")
    return model, factory


def _items(value: Any) -> Sequence[Any]:
    if isinstance(value, str):
        return [item for item in value.split(",") if item.strip()]
    return value if isinstance(value, Sequence) else [value]


def _whole(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool) or int(value) != float(value):
            raise ValueError
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{name} must hold whole numbers, got {value!r}", "for example 1,8,32") from error
