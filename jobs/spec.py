"""What a scoring job is asked to do: the options of ``trtfleet score`` as one dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import yaml

from ..datasets.filters import Filter
from ..datasets.parts import COMPRESSIONS
from ..errors import UsageError
from ..trt_actors.backends import check_backend
from ..trt_actors.building.options import BuildOptions, Precision, Profile
from ..trt_actors.emit import Emit
from ..trt_actors.event_log import check_log_format
from ..trt_actors.normalize import Normalize
from ..trt_actors.task import IMAGE_DECODERS
from .coerce import coerce, hint_for, plain_values
from .feed_spec import FeedSpec
from .plain_yaml import read_yaml

__all__ = ["ON_DROP", "OnDrop", "ScoreSpec", "check_int8_options", "feed_options", "load_spec"]

OnDrop = Literal["refuse", "warn", "ignore"]
ON_DROP: tuple[str, ...] = get_args(OnDrop)

_MOST_SPEC_BYTES = 256 << 10


@dataclass(frozen=True, kw_only=True)
class ScoreSpec(FeedSpec):
    """One scoring job.

    Attributes:
        model: ONNX file.
        data: Files, globs, folders or ``s3://`` prefixes of Parquet or Arrow IPC data, in dataset order.
        out: Folder or ``s3://`` prefix for the results.
        keep: Columns carried into the output.
        batch_size: Rows a batch; None measures the smallest that is nearly as fast as the best.
        actors: Ray actors; None takes as many as fit on the cluster, and more when it grows.
        cpus_per_actor: CPUs of each actor, which are also its engine's and decoders' threads; None takes an
            actor's share of its node where it has a GPU, else one.
        gpus_per_actor: GPUs of each actor of a GPU backend; below 1, actors share one.
        memory_per_actor: Bytes that an actor's process may use by itself before it is replaced; None for any
            number.
        batch_timeout: Seconds that a hook or the engine may take for one batch before the actor is replaced;
            infinity for any time.
        wait_for_nodes: Seconds that a job without any actor waits for a node that fits one; None for 600, but
            when it begins only where the cluster's autoscaler tells that it could bring such a node.
        backend: ``auto``, ``tensorrt``, ``onnxruntime-cuda`` or ``onnxruntime-cpu``.
        image_decoder: Where JPEG images are decoded: ``cpu``, ``gpu``, or ``auto``, which takes the GPU that
            scores them where nvImageCodec is installed.
        emit: ``raw``, ``softmax``, ``argmax`` or ``topk:K``; done inside the network.
        output: Model outputs to write; all when empty.
        postprocess: ``package.module:function`` after the network; see ``trt_actors/hooks.py``.
        filter: Row filter, see ``datasets/filters.py``.
        shard_bytes: Uncompressed bytes of a shard; None follows the dataset and the actors, at most 64 MiB.
        max_bad_rows: Rows that may be quarantined before the job fails; None for any number.
        compression: Parquet codec of the output.
        address: Ray cluster; None takes ``RAY_ADDRESS``, else starts Ray on this machine.
        overwrite: Replace an output of another job once this one is complete.
        precision: ``fp32``, ``fp16`` or ``int8``; the same on every backend. For ``int8`` a model in single
            precision is quantized with its calibration table.
        table: File of the calibration table; None finds the one kept beside the engine cache.
        use_calib_mode: Whether a table that is not found is made first, by a calibration with its defaults.
        exclude: Nodes, operators or patterns of these that are not quantized.
        max_drop: How much worse than in single precision a network in int8 may answer: the share of a
            sample's rows with another answer, or the relative error where outputs are no answers.
        on_drop: What happens beyond ``max_drop``: ``refuse`` the job, ``warn``, or ``ignore`` it unmeasured.
        max_batch_size: Largest batch of TensorRT engines; None takes ``batch_size``, else 64.
        workspace_size: Bytes of device memory that TensorRT's kernels may use beside tensors.
        min_subgraph_size: TensorRT segments with fewer nodes stay native.
        profile: Shapes of inputs with free dimensions besides the batch, as ``NAME=MIN,OPT,MAX``.
        optimization_level: TensorRT's builder optimization level, 0 to 5.
        exclude_op: Operators that stay native.
        cache: Engine cache, a folder or ``s3://`` prefix; None takes ``TRTFLEET_CACHE`` or the user's cache.
        use_static: Whether engines are kept in the cache and taken from there.
        trace: Local file for a trace of one actor's threads and streams, in the Trace Event Format.
        log_format: ``text`` for people, or ``json``: one object a line, from the actors too.
        report: Whether an HTML report of the run is written beside the job's other records.

    Raises:
        UsageError: An option is malformed or contradicts another.
        BackendError: The backend is not available in this version.
    """

    model: str
    data: tuple[str, ...]
    out: str
    keep: tuple[str, ...] = ()
    batch_size: int | None = None
    actors: int | None = None
    cpus_per_actor: int | None = None
    gpus_per_actor: float = 1.0
    memory_per_actor: int | None = None
    batch_timeout: float = 600.0
    wait_for_nodes: float | None = None
    backend: str = "auto"
    image_decoder: str = "auto"
    emit: str = "raw"
    output: tuple[str, ...] = ()
    postprocess: str | None = None
    filter: str | None = None
    shard_bytes: int | None = None
    max_bad_rows: int | None = 0
    compression: str = "snappy"
    address: str | None = None
    overwrite: bool = False
    precision: Precision = "fp32"
    table: str | None = None
    use_calib_mode: bool = False
    exclude: tuple[str, ...] = ()
    max_drop: float = 0.01
    on_drop: OnDrop = "refuse"
    max_batch_size: int | None = None
    workspace_size: int | None = None
    min_subgraph_size: int = 3
    profile: tuple[str, ...] = ()
    optimization_level: int | None = None
    exclude_op: tuple[str, ...] = ()
    cache: str | None = None
    use_static: bool = True
    trace: str | None = None
    log_format: str = "text"
    report: bool = True

    def __post_init__(self) -> None:
        if not self.data:
            raise UsageError("no data was named", "name a file, a folder or a glob")
        for name in ("batch_size", "actors", "cpus_per_actor", "memory_per_actor", "pad_to", "shard_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be >= 1, got {value}", hint_for(name))
        if not 0 < self.gpus_per_actor <= 1:
            raise UsageError(
                f"gpus_per_actor must be above 0 and at most 1, got {self.gpus_per_actor:g}",
                "an actor runs on one GPU, or shares one",
            )
        if not self.batch_timeout > 0:
            raise UsageError(
                f"batch_timeout must be above 0, got {self.batch_timeout:g}", hint_for("batch_timeout")
            )
        if self.wait_for_nodes is not None and not 0 <= self.wait_for_nodes < float("inf"):
            raise UsageError(
                f"wait_for_nodes must be finite and >= 0, got {self.wait_for_nodes:g}",
                hint_for("wait_for_nodes"),
            )
        if self.max_bad_rows is not None and self.max_bad_rows < 0:
            raise UsageError(f"max_bad_rows must be >= 0, got {self.max_bad_rows}", "or say unlimited")
        if self.resize is not None and min(self.resize) < 1:
            raise UsageError(
                f"resize must be at least 1x1, got {self.resize[0]}x{self.resize[1]}", hint_for("resize")
            )
        if self.layout not in (None, "nhwc", "nchw"):
            raise UsageError(f"layout must be nhwc or nchw, got {self.layout!r}", hint_for("layout"))
        if self.image_decoder not in IMAGE_DECODERS:
            raise UsageError(
                f"image_decoder must be one of {', '.join(IMAGE_DECODERS)}, got {self.image_decoder!r}",
                "auto takes the GPU where it can",
            )
        if self.compression not in COMPRESSIONS:
            known = ", ".join(COMPRESSIONS)
            raise UsageError(f"compression {self.compression!r} is unknown", f"choose one of {known}")
        check_log_format(self.log_format)
        if len(set(self.keep)) != len(self.keep):
            raise UsageError(f"a column is kept twice: {', '.join(self.keep)}", "name each once")
        if self.columns and not self.preprocess:
            raise UsageError("columns are only chosen for a preprocess hook", "leave --columns out")
        if self.mask and self.preprocess:
            raise UsageError("a preprocess hook makes the mask itself", "leave --mask or --preprocess out")
        if self.max_batch_size is not None and (self.batch_size or 0) > self.max_batch_size:
            raise UsageError(
                f"batch_size {self.batch_size} exceeds max_batch_size {self.max_batch_size}",
                f"raise --max-batch-size to {self.batch_size} or lower --batch-size",
            )
        self._check_int8()
        # Made once here, so that a malformed profile is refused where the job is described.
        _ = self.build_options
        check_backend(self.backend)
        Emit.parse(self.emit)
        if self.normalize is not None:
            Normalize.parse(self.normalize)
        if self.filter is not None:
            Filter(self.filter)

    def _check_int8(self) -> None:
        options = {name: getattr(self, name) for name in ("table", "use_calib_mode", "exclude")}
        check_int8_options(self.precision, options)
        if not self.max_drop >= 0:
            raise UsageError(f"max_drop must be >= 0, got {self.max_drop:g}", hint_for("max_drop"))
        if self.on_drop not in ON_DROP:
            raise UsageError(f"on_drop {self.on_drop!r} is unknown", f"choose one of {', '.join(ON_DROP)}")

    @property
    def build_options(self) -> BuildOptions:
        """What TensorRT engines of this job are built for."""
        return BuildOptions(
            precision=self.precision,
            max_batch_size=self.max_batch_size or self.batch_size or BuildOptions.max_batch_size,
            workspace_size=self.workspace_size,
            min_subgraph_size=self.min_subgraph_size,
            profiles=tuple(map(Profile.parse, self.profile)),
            optimization_level=self.optimization_level,
            exclude_ops=self.exclude_op,
        )

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> ScoreSpec:
        """Builds a spec from plain values, as they come from YAML or from keyword arguments.

        Single values stand for lists of one, ``AxB`` for a size, ``NAME=COLUMN`` for a mapping.

        Raises:
            UsageError: An option is unknown or of the wrong type.
        """
        required, usage = ("model", "data", "out"), "trtfleet score MODEL DATA OUT"
        return cls(**plain_values(cls, options, required=required, usage=usage, read=_read))


def feed_options(spec: FeedSpec) -> dict[str, Any]:
    """The options of a job's spec that decide how a network is fed, which all kinds of jobs share."""
    return {one.name: getattr(spec, one.name) for one in fields(FeedSpec)}


def check_int8_options(precision: str, options: Mapping[str, Any]) -> None:
    """Refuses options that say how a network is quantized where none is.

    Args:
        precision: That was asked for.
        options: Their values by name.

    Raises:
        UsageError: The precision is another one.
    """
    for name, value in options.items():
        if value and precision != "int8":
            raise UsageError(
                f"{name} is of use in int8 only, precision is {precision}",
                f"say --precision int8, or leave --{name.replace('_', '-')} out",
            )


def load_spec(path: str) -> dict[str, Any]:
    """Reads a job file: YAML with the names of the command line's options, of at most 256 KiB.

    Raises:
        UsageError: It cannot be read or holds something else.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(_MOST_SPEC_BYTES + 1)
        if len(text) > _MOST_SPEC_BYTES:
            raise UsageError(f"{path} is larger than {_MOST_SPEC_BYTES:,} bytes", "is it a job file?")
        values = read_yaml(text)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "check the path of --spec") from error
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        line = " ".join(str(error).split())[:200]
        raise UsageError(f"{path} is not YAML: {line}", "write one `option: value` a line") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UsageError(f"{path} holds no options", "write for example: model: model.onnx")
    return values


def _read(name: str, value: Any) -> Any:
    """As ``coerce``; other commands take a path for ``report``."""
    if name != "report":
        return coerce(name, value)
    if not isinstance(value, bool):
        raise UsageError(f"report must be true or false, got {value!r}", "leave out the quotes")
    return value
