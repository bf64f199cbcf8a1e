"""What a plan means for its actors."""

from __future__ import annotations

from ..datasets.output import Output
from ..trt_actors.task import ScoreTask, TensorRTSettings
from .plan import Plan

__all__ = ["SHARDS_IN_FLIGHT", "engine_settings", "score_task"]

SHARDS_IN_FLIGHT = 2
"""Shards that an actor holds at once."""


def engine_settings(plan: Plan) -> TensorRTSettings:
    """How the TensorRT engines of a checked job are built and kept."""
    spec, quantized = plan.spec, plan.quantized
    return TensorRTSettings(
        options=spec.build_options,
        model_digest=plan.model.digest,
        cache=spec.cache,
        use_static=spec.use_static,
        calibration=None if quantized is None else quantized.found.identity,
    )


def score_task(plan: Plan, output: Output, *, threads: int = 1, run: str = "") -> ScoreTask:
    """The task of a run of a checked job that writes to an opened output, for actors of so many threads."""
    spec = plan.spec
    return ScoreTask(
        **plan.fitted.feeding(spec, plan.projection, threads),
        keep=spec.keep,
        postprocess=spec.postprocess,
        output_url=output.storage.url,
        generation=output.generation,
        job=output.job,
        compression=spec.compression,
        batch_size=spec.batch_size,
        backend=spec.backend,
        tensorrt=engine_settings(plan),
        image_decoder=spec.image_decoder,
        traced=spec.trace is not None,
        run=run,
        log_format=spec.log_format,
        batch_timeout_s=spec.batch_timeout,
        memory_limit_bytes=spec.memory_per_actor,
    )
