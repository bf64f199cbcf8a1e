"""The dataset of a sweep: how networks are fed from it, and which of its rows a trial scores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...datasets.discovery import discover, snapshot_digest
from ...datasets.footers import Dataset, inspect, read_schema
from ...datasets.reading import Projection
from ...datasets.shards import DEFAULT_SHARD_BYTES, plan_shards, suggest_shard_bytes
from ...errors import EmptyDatasetError, MismatchError
from ...trt_actors.hooks import load_hook
from ...trt_actors.model import Model
from ...trt_actors.task import FeedTask
from ...trt_actors.trial.task import Rows
from ..network import fit
from ..plan import feed_identity
from .spec import SweepSpec

__all__ = ["SweepData"]

_DEVICE_SHARD_BYTES = 512 << 20
_SHARDS_A_CONTEXT = 64


class SweepData:
    """The dataset.

    Args:
        spec: The sweep, which names it.

    Raises:
        DatasetError: It cannot be read.
    """

    def __init__(self, spec: SweepSpec) -> None:
        self._files = discover(spec.data)
        self._schema = read_schema(self._files)
        self._inspected: dict[tuple[str, ...], Dataset] = {}

    def identity(self, spec: SweepSpec) -> dict[str, Any]:
        """What decides the rows that are scored, as plain values."""
        return {
            "data": f"{len(self._files)} files, snapshot {snapshot_digest(self._files)[:16]}",
            "input": {name: list(columns) for name, columns in spec.input.items()},
            "columns": list(spec.columns),
            "emit": spec.emit,
            **feed_identity(spec.feeding(spec.models[0], "fp32")),
        }

    def feeding(self, spec: SweepSpec, model: Model, path: str, precision: str) -> FeedTask:
        """How a model in a precision is fed, and the network that takes the rows as they are stored.

        Raises:
            MismatchError: Its inputs and the columns do not fit.
            TrtfleetError: The model cannot be brought to the precision.
        """
        names = {i.name for i in model.inputs}
        job = spec.feeding(path, precision)
        job = replace(
            job,
            # Several models may each have inputs that the others lack.
            input={name: columns for name, columns in job.input.items() if name in names},
            mask=tuple(name for name in job.mask if name in names),
            profile=tuple(one for one in job.profile if one.rpartition("=")[0] in names),
        )
        fitted = fit(job, model, self._schema)
        projection = Projection(columns=fitted.columns, partitions=self._dataset(fitted.columns).partitions)
        return FeedTask(**fitted.feeding(job, projection, 1))

    def check(self, spec: SweepSpec, models: Sequence[Model]) -> None:
        """Refuses what the dataset cannot be asked for.

        Raises:
            MismatchError: An input is named that no model has, or a model and the dataset do not fit.
            EmptyDatasetError: There is no row.
        HookError: The preprocess hook cannot be imported.
        """
        if spec.preprocess is not None:
            load_hook(spec.preprocess, os.getcwd())
        known = {i.name for model in models for i in model.inputs}
        for flag, names in (("--input", spec.input), ("--mask", spec.mask)):
            for name in names:
                if name not in known:
                    raise MismatchError(f"{flag} names input {name!r}, which no model has", "check its name")
        for path, model in zip(spec.models, models, strict=True):
            feeding = self.feeding(spec, model, path, "fp32")
            if not self._dataset(feeding.projection.columns).rows:
                raise EmptyDatasetError("the dataset has no rows", "check its path")

    def rows(self, feeding: FeedTask, contexts: int, *, on_gpu: bool) -> Rows:
        """What a trial scores: shards as a job of so many actors would have, the first ones of many.

        Args:
            feeding: How its network is fed.
            contexts: Of all its actors together.
            on_gpu: Whether it runs on GPUs.
        """
        dataset = self._dataset(feeding.projection.columns)
        most = _DEVICE_SHARD_BYTES if on_gpu else DEFAULT_SHARD_BYTES
        shards = plan_shards(dataset.files, suggest_shard_bytes(dataset.size_bytes, contexts, most))
        return Rows(feeding=feeding, shards=tuple(shards[: _SHARDS_A_CONTEXT * contexts]))

    def _dataset(self, columns: tuple[str, ...]) -> Dataset:
        if columns not in self._inspected:
            self._inspected[columns] = inspect(self._files, columns, None)
        return self._inspected[columns]
