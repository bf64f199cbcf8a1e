"""What a plan means for its actors."""

from __future__ import annotations

import os

from ..datasets.output import Output
from ..trt_actors.task import ScoreTask, TensorRTSettings
from .plan import Plan

__all__ = ["score_task"]


def score_task(plan: Plan, output: Output, *, threads: int = 1) -> ScoreTask:
    """The task of a checked job that writes to an opened output, for actors of so many threads."""
    spec = plan.spec
    return ScoreTask(
        network=plan.fitted.network,
        projection=plan.projection,
        bindings=plan.fitted.bindings,
        given=tuple(spec.input.items()),
        binding_options=plan.fitted.options,
        masks=plan.fitted.masks,
        keep=spec.keep,
        preprocess=spec.preprocess,
        postprocess=spec.postprocess,
        hook_folder=os.getcwd(),
        output_url=output.storage.url,
        generation=output.generation,
        job=output.job,
        compression=spec.compression,
        batch_size=spec.batch_size,
        backend=spec.backend,
        tensorrt=TensorRTSettings(
            options=spec.build_options,
            model_digest=plan.model.digest,
            cache=spec.cache,
            use_static=spec.use_static,
        ),
        threads=threads,
        traced=spec.trace is not None,
    )
