"""What every actor of a job is told, once, and what it answers about each shard."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..datasets.bindings import BindingOptions, ColumnBinding
from ..datasets.reading import Projection
from ..datasets.records import CommitRecord, JobRecord
from ..datasets.signature import TensorSpec
from .building.options import BuildOptions
from .cache.signing import key_id
from .pipeline_stats import PipelineStats
from .prepared import Prepared
from .stages import StageStats

__all__ = [
    "IMAGE_DECODERS",
    "ActorInfo",
    "EngineFacts",
    "FeedTask",
    "Receipt",
    "ScoreTask",
    "SegmentFacts",
    "TensorRTSettings",
]

IMAGE_DECODERS = ("auto", "cpu", "gpu")
"""Where JPEG images may be decoded; ``auto`` is the GPU where that is possible."""


@dataclass(frozen=True, kw_only=True)
class TensorRTSettings:
    """What a job says about its TensorRT engines.

    Attributes:
        options: What they are built for.
        model_digest: Digest of the model's file and weights.
        cache: Where engines are kept; None for the default.
        use_static: Whether they are kept at all.
        calibration: What a model in single precision was quantized with: digest of the calibration table, and
            what was excluded; None where nothing was quantized.
        cache_key_id: Id of the key for the cache's signatures where the job was started; an actor must have
            the same one. Empty without a key.
    """

    options: BuildOptions
    model_digest: str
    cache: str | None = None
    use_static: bool = True
    calibration: str | None = None
    cache_key_id: str = field(default_factory=key_id)


@dataclass(frozen=True, kw_only=True)
class FeedTask:
    """What it takes to make the inputs of a network from a dataset.

    Attributes:
        network: The model with pre- and post-processing built in.
        projection: Columns to read, and the row filter.
        bindings: Which columns feed which input; None when a preprocess hook decides at run time.
        given: Columns the user named per input, for binding after a preprocess hook.
        binding_options: What the user said about the columns.
        masks: Inputs that get the attention mask of the ragged ones.
        keep: Columns carried along with the rows.
        preprocess: Hook name or None.
        hook_folder: Where hooks may lie besides ``sys.path``.
        threads: CPU threads of this actor's engine and readers.
        batch_timeout_s: What one step of a batch may take before the actor gives itself up.
        prefetch_bytes: What may be read ahead for each shard.
    """

    network: Prepared
    projection: Projection
    bindings: tuple[ColumnBinding, ...] | None
    given: tuple[tuple[str, tuple[str, ...]], ...] = ()
    binding_options: BindingOptions = field(default_factory=BindingOptions)
    masks: tuple[TensorSpec, ...] = ()
    keep: tuple[str, ...] = ()
    preprocess: str | None = None
    hook_folder: str | None = None
    threads: int = 1
    batch_timeout_s: float = float("inf")
    prefetch_bytes: int = 64 << 20

    @property
    def fed(self) -> tuple[TensorSpec, ...]:
        """The inputs that columns feed: all but the masks."""
        masked = {spec.name for spec in self.masks}
        return tuple(spec for spec in self.network.inputs if spec.name not in masked)


@dataclass(frozen=True, kw_only=True)
class ScoreTask(FeedTask):
    """One scoring job, as an actor needs it.

    Attributes:
        postprocess: Hook name or None.
        output_url: Root of the output.
        generation: Its generation.
        job: Its job record.
        compression: Parquet codec of the output.
        batch_size: Rows a batch; None measures.
        backend: ``auto`` or one backend's name.
        tensorrt: How TensorRT engines are built and where they are kept.
        slots: Batches in flight inside the actor.
        image_decoder: One of ``IMAGE_DECODERS``.
        traced: Whether the actor keeps a trace.
        run: The run's name, for the actor's own log.
        log_format: Of that log, one of ``LOG_FORMATS``.
        memory_limit_bytes: What the actor's process may use before it gives itself up; None for any amount.
    """

    postprocess: str | None = None
    output_url: str
    generation: str
    job: JobRecord
    compression: str
    batch_size: int | None
    backend: str = "auto"
    tensorrt: TensorRTSettings
    slots: int = 4
    image_decoder: str = "auto"
    traced: bool = False
    run: str = ""
    log_format: str = "text"
    memory_limit_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class SegmentFacts:
    """A part of a network that one runtime executes.

    Attributes:
        name: ``tensorrt-0``, ``native-1``, ...; ``whole`` where nothing was cut.
        kind: ``tensorrt`` or ``native``, which is ONNX Runtime.
        nodes: Its operators; None where nobody counted them.
        multiply_adds: What they cost; None where nobody counted.
    """

    name: str
    kind: str
    nodes: int | None = None
    multiply_adds: int | None = None


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What executes a network; small, however the network was cut.

    Attributes:
        runtimes: Names and versions.
        segments: In the order in which they run; the first ones where there are many.
        segments_total: How many there are.
        native: Why operators stay out of TensorRT, each reason with their number; some of the reasons.
        origin: How the engine was come by: ``found`` in the cache, ``built``, ``waited`` for while another
            built it; empty where nothing is built.
    """

    runtimes: tuple[str, ...] = ()
    segments: tuple[SegmentFacts, ...] = ()
    segments_total: int = 0
    native: tuple[tuple[str, int], ...] = ()
    origin: str = ""


@dataclass(frozen=True, kw_only=True)
class ActorInfo:
    """What an actor found when it started.

    Attributes:
        backend: The backend it took.
        device: The class of its device: ``CPU``, or a GPU's name with its compute capability.
        not_taken: Why it took none of the better ones, if any.
        batch_size: Rows a batch.
        batch_origin: Whether that is ``given``, ``measured`` or ``remembered``; empty for a default.
        notes: What a user should know of the start.
        node: Host name.
        pid: Process id.
        start_s: Seconds it needed to load the network.
        engine: What executes it.
    """

    backend: str
    not_taken: str
    batch_size: int
    batch_origin: str = ""
    notes: tuple[str, ...] = ()
    node: str
    pid: int
    start_s: float
    device: str = "CPU"
    engine: EngineFacts = field(default_factory=EngineFacts)


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What became of a shard.

    Attributes:
        record: The commit record that stands, this attempt's or another's.
        won: Whether it is this attempt's.
        seconds: What this attempt took.
        stats: The actor's account so far.
        stages: What its threads did so far.
        notes: What a user should know of the actor's work so far.
    """

    record: CommitRecord
    won: bool
    seconds: float
    stats: PipelineStats
    stages: StageStats
    notes: tuple[str, ...] = ()
