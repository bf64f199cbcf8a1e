"""What a trial is: a network in one setting on one device; and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ...datasets.shards import Shard
from ..backends import BACKENDS
from ..prepared import Prepared
from ..task import FeedTask, TensorRTSettings

__all__ = [
    "LOG",
    "MODES",
    "TORCH",
    "TRIAL_BACKENDS",
    "HostInfo",
    "HostTask",
    "Measure",
    "Measurement",
    "Mode",
    "Order",
    "Rows",
    "TorchModule",
]

Mode = Literal["latency", "throughput", "both"]
MODES = ("both", "latency", "throughput")

TORCH = "torch"
TRIAL_BACKENDS = (*BACKENDS, TORCH)
"""What a trial may ask for: what jobs run on, and PyTorch to compare with."""


LOG = "log"
"""The file, in its folder, that a process of a trial logs to."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How a trial is measured.

    Attributes:
        mode: What is measured.
        runs: Least batches of each context that count, for latency and for throughput.
        seconds: Least seconds of each of the two.
        warm_up_s: Most seconds of warming up; it ends before that when the device runs steadily.
        timeout_s: Most seconds of a trial, the build of its engine included.
    """

    mode: Mode = "both"
    runs: int = 50
    seconds: float = 1.0
    warm_up_s: float = 10.0
    timeout_s: float = 1800.0


@dataclass(frozen=True, kw_only=True)
class TorchModule:
    """What PyTorch runs in the place of a network.

    Attributes:
        factory: ``package.module:function`` that returns it as a ``torch.nn.Module``.
        folder: Where that may lie besides ``sys.path``.
        precision: What it computes in: ``fp32`` or ``fp16``.
    """

    factory: str
    folder: str
    precision: str


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of a dataset to score, again and again.

    Attributes:
        feeding: How the network is fed from them.
        shards: Which rows.
    """

    feeding: FeedTask = field(repr=False)
    shards: tuple[Shard, ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Order:
    """One trial, as whoever runs it needs it.

    Attributes:
        name: What the actor's log calls it.
        network: What runs.
        settings: How its TensorRT engines are built.
        backend: ``auto`` or one backend's name.
        batch_size: Rows a batch.
        row_shapes: The shape of one row of each input.
        contexts: Engines in one process, each with its own thread and streams.
        actors: Such processes at once, each with a device of its own.
        threads: CPU threads of each of these processes.
        measure: How it is measured.
        rows: What throughput is measured on; None for the synthetic batches that latency is measured on.
        torch: For the backend ``torch``: what it runs; ``network`` says only what that is fed.
    """

    name: str = ""
    network: Prepared = field(repr=False)
    settings: TensorRTSettings
    backend: str
    batch_size: int
    row_shapes: Mapping[str, tuple[int, ...]]
    contexts: int = 1
    actors: int = 1
    threads: int = 1
    measure: Measure = field(default_factory=Measure)
    rows: Rows | None = None
    torch: TorchModule | None = None


@dataclass(frozen=True, kw_only=True)
class HostTask:
    """What whoever runs trials is told, once.

    Attributes:
        run: The run's name, for the actor's own log.
        log_format: Of that log, one of ``LOG_FORMATS``.
    """

    run: str = ""
    log_format: str = "text"


@dataclass(frozen=True, kw_only=True)
class HostInfo:
    """Who runs trials.

    Attributes:
        node: Host name.
        device: The name of its GPU, or of its CPU where it has none.
        gpus: How many GPUs it has.
        pid: Process id.
    """

    node: str
    device: str
    gpus: int
    pid: int


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What came of a trial; None where it was not measured or cannot be known.

    ``host`` times go from the caller's arrays to arrays of the results, ``engine`` times are what the device
    executes by its own clock, or on the CPU the execution alone. ``low`` and ``high`` are the ends of a 95%
    interval.

    Attributes:
        error: Why the trial failed, in one line.
        executed: The backend that ran.
        not_taken: Why it was none of the better ones.
        node: Host name.
        device_name: Of the GPU, or of the CPU.
        host_p50_ms: Median of a batch, like the following in milliseconds.
        host_p50_low_ms: Of the medians of consecutive blocks of runs.
        host_p50_high_ms: Likewise.
        host_p90_ms: The time that 90% of batches did not exceed.
        host_p99_ms: The time that 99% of batches did not exceed.
        host_p99_low_ms: By order statistics.
        host_p99_high_ms: Likewise; None when there were too few runs to tell.
        engine_p50_ms: As ``host_p50_ms``, like the following.
        engine_p50_low_ms: Likewise.
        engine_p50_high_ms: Likewise.
        engine_p90_ms: Likewise.
        engine_p99_ms: Likewise.
        engine_p99_low_ms: Likewise.
        engine_p99_high_ms: Likewise.
        latency_runs: Batches whose latency counts, of all contexts and actors.
        rows_per_s: Of all contexts and actors together, host to host.
        rows_per_s_low: Of the rates of consecutive blocks of batches.
        rows_per_s_high: Likewise.
        throughput_runs: Batches that count.
        bad_rows: Rows of a dataset that could not be scored, which are no part of the rate; None without one.
        load_s: Seconds until the engine was there; of the slowest context.
        warm_up_s: Seconds of warming up, of the slowest context.
        warm_up_runs: Runs of it.
        is_steady: Whether every context ran steadily when it ended.
        gpu_clock_mhz: Median while it was measured.
        memory_clock_mhz: Likewise.
        temperature_c: The highest.
        power_w: The mean.
        throttled: What held the clocks back at any time, in words; empty when nothing did.
        seconds: Of the whole trial.
    """

    error: str | None = None
    executed: str | None = None
    not_taken: str | None = None
    node: str | None = None
    device_name: str | None = None
    host_p50_ms: float | None = None
    host_p50_low_ms: float | None = None
    host_p50_high_ms: float | None = None
    host_p90_ms: float | None = None
    host_p99_ms: float | None = None
    host_p99_low_ms: float | None = None
    host_p99_high_ms: float | None = None
    engine_p50_ms: float | None = None
    engine_p50_low_ms: float | None = None
    engine_p50_high_ms: float | None = None
    engine_p90_ms: float | None = None
    engine_p99_ms: float | None = None
    engine_p99_low_ms: float | None = None
    engine_p99_high_ms: float | None = None
    latency_runs: int | None = None
    rows_per_s: float | None = None
    rows_per_s_low: float | None = None
    rows_per_s_high: float | None = None
    throughput_runs: int | None = None
    bad_rows: int | None = None
    load_s: float | None = None
    warm_up_s: float | None = None
    warm_up_runs: int | None = None
    is_steady: bool | None = None
    gpu_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    throttled: str | None = None
    seconds: float | None = None
