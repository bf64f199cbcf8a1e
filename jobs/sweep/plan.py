"""Preflight of a sweep: models are loaded and brought to each precision before any trial starts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...datasets.signature import TensorSpec
from ...datasets.storage import Storage
from ...errors import MismatchError, UsageError
from ...trt_actors.building.options import Profile
from ...trt_actors.model import Model, load_model
from ...trt_actors.trial.task import TORCH, Order
from .dataset import SweepData
from .grid import CPU, Trial
from .networks import Network, make_network, torch_network
from .spec import SweepSpec

__all__ = ["SweepPlan", "make_sweep_plan"]


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A checked sweep.

    Attributes:
        spec: What was asked.
        models: The loaded models by name.
        networks: By model, precision, and whether PyTorch runs it.
        data: What throughput is measured on; None for synthetic batches.
        fingerprint: Everything that decides the results, but for the devices.
    """

    spec: SweepSpec
    models: Mapping[str, Model]
    networks: Mapping[tuple[str, str, bool], Network]
    data: SweepData | None
    fingerprint: Mapping[str, Any]

    @property
    def storage(self) -> Storage:
        """Where results go."""
        return Storage(self.spec.out)

    def network(self, trial: Trial) -> Network:
        """What a trial runs."""
        return self.networks[trial.model, trial.precision, trial.backend == TORCH]

    def problem(self, trial: Trial) -> str:
        """Why a trial need not be tried at all; empty when it may go well."""
        fixed = self.models[trial.model].batch
        if fixed is not None and trial.batch_size > fixed:
            return f"batch size {trial.batch_size} exceeds the model's fixed batch size {fixed}"
        return self.network(trial).problem

    def order(self, trial: Trial, threads: int) -> Order:
        """What whoever runs a trial is told.

        Args:
            trial: One without a problem.
            threads: CPU threads of each of its actors.
        """
        network, spec = self.network(trial), self.spec
        assert network.prepared is not None
        measure, rows = spec.measure, None
        if self.data is not None and network.feeding is not None:
            contexts = trial.contexts * trial.actors
            rows = self.data.rows(network.feeding, contexts, on_gpu=trial.device != CPU)
        elif self.data is not None:
            # A rate of synthetic batches could not be held against one of a dataset.
            measure = replace(measure, mode="latency")
        return Order(
            network=network.prepared,
            settings=network.settings,
            backend=trial.backend,
            batch_size=trial.batch_size,
            row_shapes=_shapes(trial.model, network.prepared.inputs, spec) if _is_fed(spec) else {},
            contexts=trial.contexts,
            actors=trial.actors,
            threads=threads,
            measure=measure,
            rows=rows,
            torch=network.torch,
        )


def make_sweep_plan(spec: SweepSpec) -> SweepPlan:
    """Loads the models and makes every network of the sweep.

    A model that cannot be had in one of the precisions fails those trials alone.

    Raises:
        TrtfleetError: A model cannot be loaded, the size of its inputs is not known, or the dataset does not
            fit it.
    """
    names = _names(spec.models)
    models = {name: load_model(path) for name, path in zip(names, spec.models, strict=True)}
    known = {i.name for model in models.values() for i in model.inputs}
    for profile in map(Profile.parse, spec.profile):
        if profile.name not in known:
            raise UsageError(f"--profile names input {profile.name!r}, which no model has", "check its name")
    for name in spec.torch:
        if name and name not in (*names, *spec.models):
            raise UsageError(f"--torch names model {name!r}", f"name one of {', '.join(names)}")
    if _is_fed(spec):
        for name, model in models.items():
            _shapes(name, model.inputs, spec)
    data = SweepData(spec) if spec.data else None
    if data is not None:
        data.check(spec, list(models.values()))
    networks: dict[tuple[str, str, bool], Network] = {}
    for name, path in zip(names, spec.models, strict=True):
        for precision in spec.precisions:
            networks[name, precision, False] = make_network(spec, models[name], path, precision, data)
            if TORCH in spec.tried:
                networks[name, precision, True] = torch_network(spec, models[name], name, path, precision)
    return SweepPlan(
        spec=spec, models=models, networks=networks, data=data, fingerprint=_fingerprint(spec, models, data)
    )


def _fingerprint(spec: SweepSpec, models: Mapping[str, Model], data: SweepData | None) -> dict[str, Any]:
    lists = ("batch_sizes", "precisions", "contexts", "actors", "profile")
    plain = ("cpus_per_actor", "repeats", "mode", "runs", "seconds", "warm_up_s")
    return {
        "models": {name: model.digest for name, model in models.items()},
        "backends": list(spec.tried),
        "torch": dict(spec.torch),
        **{name: list(getattr(spec, name)) for name in lists},
        **{name: getattr(spec, name) for name in plain},
        **({} if data is None else data.identity(spec)),
    }


def _is_fed(spec: SweepSpec) -> bool:
    """Whether synthetic batches are fed, for which all sizes must be known."""
    return not spec.data or spec.mode != "throughput"


def _names(paths: Sequence[str]) -> list[str]:
    """File names where they tell the models apart, else paths."""
    short = [os.path.basename(os.path.normpath(path)) for path in paths]
    return [path if short.count(name) > 1 else name for name, path in zip(short, paths, strict=True)]


def _shapes(name: str, inputs: Sequence[TensorSpec], spec: SweepSpec) -> dict[str, tuple[int, ...]]:
    """The shape of a row of each input of a model."""
    profiles = {profile.name: profile for profile in map(Profile.parse, spec.profile)}
    found = {}
    for one in inputs:
        given = profiles.get(one.name)
        shape: Sequence[int | str] = one.row_shape if given is None else given.opt[1:]
        sizes = tuple(dim for dim in shape if isinstance(dim, int))
        if len(sizes) != len(one.row_shape):
            raise MismatchError(
                f"{name}: input {one} has dimensions of unknown size",
                f"say which: --profile {one.name}=MIN,OPT,MAX, for example 1x16,8x64,32x256",
            )
        found[one.name] = sizes
    return found
