"""What a sweep may be asked, the combinations it makes of that, and what they need of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trtfleet.cluster.session import Resources
from trtfleet.errors import MismatchError, ModelError, UsageError
from trtfleet.jobs.sweep.grid import devices_of, grid
from trtfleet.jobs.sweep.groups import groups_of, units_of
from trtfleet.jobs.sweep.plan import make_sweep_plan
from trtfleet.jobs.sweep.spec import SweepSpec

MIXED = [
    Resources(cpus=32, gpus=4, accelerator="H100"),
    Resources(cpus=16, gpus=2, accelerator="H100"),
    Resources(cpus=8, gpus=1, accelerator="L4"),
    Resources(cpus=64, gpus=0),
]


def spec(**options: Any) -> SweepSpec:
    return SweepSpec.of({"models": ("a.onnx",), "out": "out", **options})


def test_lists_are_texts_with_commas_or_lists() -> None:
    assert spec(batch_sizes="1,5,10").batch_sizes == (1, 5, 10)
    assert spec(batch_sizes=[1, 5]).batch_sizes == (1, 5)
    assert spec(contexts=2).contexts == (2,)
    assert spec(precisions="fp32, fp16").precisions == ("fp32", "fp16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": "0"}, "batch_sizes must be >= 1, got 0"),
        ({"batch_sizes": "1,x"}, "batch_sizes must hold whole numbers, got 'x'"),
        ({"batch_sizes": "1.5"}, "batch_sizes must hold whole numbers"),
        ({"batch_sizes": ","}, "batch_sizes is empty"),
        ({"batch_sizes": "4,4"}, "batch_sizes names a value twice"),
        ({"precisions": "fp8"}, "precision 'fp8' is unknown"),
        ({"backends": "cuda"}, "backend 'cuda' is unknown"),
        ({"mode": "fast"}, "mode 'fast' is unknown"),
        ({"repeats": 0}, "repeats must be >= 1"),
        ({"runs": 1}, "runs must be >= 2"),
        ({"seconds": float("nan")}, "seconds must be finite"),
        ({"cpus_per_actor": 0}, "cpus_per_actor must be >= 1"),
        ({"baseline": "cuda"}, "backend 'cuda' is unknown"),
        ({"baseline": "torch"}, "--torch says which networks PyTorch runs"),
        ({"torch": "package.module:make"}, "--torch says which networks PyTorch runs"),
        ({"torch": "package.module", "baseline": "torch"}, "torch 'package.module' names no function"),
        ({"data": "rows/", "mode": "latency"}, "data is scored for throughput, mode is latency"),
        ({"data": "rows/", "resize": "0x1"}, "resize must be at least 1x1"),
        ({"normalize": "imagenet"}, "normalize says how a network is fed from a dataset, and none is given"),
        ({"fill_null": 0.0}, "fill_null says how a network is fed"),
        ({"profile": "ids"}, "profile 'ids' is malformed"),
        ({"models": ()}, "models is missing"),
        ({"pace": 1}, "unknown option 'pace'"),
    ],
)
def test_malformed_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        spec(**options)


def test_the_baseline_is_tried_too() -> None:
    assert spec(backends="auto", baseline="onnxruntime-cpu").tried == ("auto", "onnxruntime-cpu")
    assert spec(backends="onnxruntime-cpu,auto", baseline="auto").tried == ("onnxruntime-cpu", "auto")


def test_modules_of_pytorch_are_named_for_one_model_or_for_all() -> None:
    asked = spec(torch=["a.onnx=nets:a", "nets:other"], baseline="torch")
    assert asked.torch == {"a.onnx": "nets:a", "": "nets:other"}
    assert {t.device for t in grid(asked, ["a.onnx"], ["H100", "cpu"]) if t.backend == "torch"} == {"H100"}
    assert {t.device for t in grid(asked, ["a.onnx"], ["cpu"]) if t.backend == "torch"} == {"cpu"}


def test_gpu_backends_run_on_every_kind_of_gpu_and_cpu_backends_once() -> None:
    asked = spec(batch_sizes="1,8", backends="tensorrt,onnxruntime-cpu,auto", contexts="1,2")
    trials = grid(asked, ["a.onnx"], list(devices_of(MIXED)))
    places = {backend: {t.device for t in trials if t.backend == backend} for backend in asked.backends}
    assert places == {"tensorrt": {"H100", "L4"}, "onnxruntime-cpu": {"cpu"}, "auto": {"H100", "L4"}}
    assert len(trials) == 4 * (2 + 1 + 2)
    assert len({trial.key for trial in trials}) == len(trials)


def test_without_a_gpu_auto_runs_on_the_cpu() -> None:
    assert {trial.device for trial in grid(spec(), ["a.onnx"], ["cpu"])} == {"cpu"}


def test_a_trial_gets_a_gpu_for_each_actor_and_their_share_of_the_cpus() -> None:
    h100 = devices_of(MIXED)["H100"]
    trial = grid(spec(actors="2"), ["a.onnx"], ["H100", "cpu"])[0]
    wanted = h100.resources(trial, None)
    assert wanted == Resources(cpus=16.0, gpus=2.0)
    assert h100.room_for(wanted) == 3
    assert h100.room_for(h100.resources(replace(trial, actors=8), None)) == 0


def test_a_trial_on_the_cpu_gets_a_whole_node() -> None:
    cpu = devices_of(MIXED)["cpu"]
    trial = grid(spec(backends="onnxruntime-cpu"), ["a.onnx"], ["cpu"])[0]
    assert cpu.resources(trial, None) == Resources(cpus=64.0, gpus=0.0)
    assert cpu.room_for(cpu.resources(trial, None)) == 1
    assert cpu.resources(trial, 4) == Resources(cpus=64.0, gpus=0.0)
    assert cpu.room_for(cpu.resources(replace(trial, actors=65), None)) == 0


def test_trials_that_need_the_same_run_together() -> None:
    devices = devices_of(MIXED)
    trials = grid(spec(batch_sizes="1,8", actors="1,2"), ["a.onnx"], list(devices))
    groups = groups_of(units_of(trials, 3), devices, None)
    told = [(group.device.name, group.wanted.gpus, len(group.units), group.at_once) for group in groups]
    assert told == [("H100", 1.0, 6, 6), ("H100", 2.0, 6, 3), ("L4", 1.0, 6, 1), ("L4", 2.0, 6, 0)]


def test_gpus_that_ray_knows_no_name_of_are_a_kind_of_their_own() -> None:
    assert list(devices_of([Resources(cpus=8, gpus=2)])) == ["gpu", "cpu"]


def test_models_of_one_name_go_by_their_paths(linear_model: Callable[..., Path], tmp_path: Path) -> None:
    first = linear_model()
    other = tmp_path / "other" / first.name
    other.parent.mkdir()
    other.write_bytes(first.read_bytes())
    assert list(make_sweep_plan(spec(models=(first,))).models) == [first.name]
    assert list(make_sweep_plan(spec(models=(first, other))).models) == [str(first), str(other)]


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        make_sweep_plan(spec(models=(tmp_path / "no.onnx",)))


def test_free_dimensions_want_a_profile(linear_model: Callable[..., Path]) -> None:
    path = linear_model()
    import onnx

    model = onnx.load(path)
    # Rows of any length: what is summed up afterwards has the length that the weights want.
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "length"
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.append(onnx.helper.make_node("Abs", ["x"], ["y"]))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "length"
    onnx.save(model, path)
    with pytest.raises(MismatchError, match=r"input x: float32\[N, length\] has dimensions of unknown size"):
        make_sweep_plan(spec(models=(path,)))
    plan = make_sweep_plan(spec(models=(path,), profile=("x=1x2,8x6,32x9",)))
    (trial, *_) = grid(plan.spec, list(plan.models), ["cpu"])
    assert plan.order(trial, threads=1).row_shapes == {"x": (6,)}
    with pytest.raises(UsageError, match="--profile names input 'z'"):
        make_sweep_plan(spec(models=(path,), profile=("z=1x2,8x6,32x9",)))


def test_a_precision_that_cannot_be_had_fails_its_trials_alone(
    linear_model: Callable[..., Path], tmp_path: Path
) -> None:
    plan = make_sweep_plan(
        spec(models=(linear_model(),), precisions="fp32,int8", cache=str(tmp_path / "cache"))
    )
    problems = {t.precision: plan.problem(t) for t in grid(plan.spec, list(plan.models), ["cpu"])}
    assert problems["fp32"] == ""
    assert "has no calibration table" in problems["int8"]


def test_batches_beyond_a_fixed_batch_size_are_known_to_fail(linear_model: Callable[..., Path]) -> None:
    plan = make_sweep_plan(spec(models=(linear_model(batch=8),), batch_sizes="8,9"))
    fits, exceeds = grid(plan.spec, list(plan.models), ["cpu"])
    assert plan.problem(fits) == ""
    assert plan.problem(exceeds) == "batch size 9 exceeds the model's fixed batch size 8"


def test_the_network_of_a_dataset_takes_rows_as_they_are_stored(digits: tuple[Path, Path]) -> None:
    model, data = digits
    plan = make_sweep_plan(spec(models=(model,), data=data, normalize="0:16", precisions="fp32,fp16"))
    (trial, *_) = grid(plan.spec, list(plan.models), ["cpu"])
    order = plan.order(replace(trial, actors=2), threads=1)
    assert order.rows is not None
    assert sum(shard.rows for shard in order.rows.shards) == 1797
    assert [i.dtype for i in order.network.inputs] == ["uint8"]
    assert order.network.inputs == order.rows.feeding.network.inputs
    half = plan.order(replace(trial, precision="fp16"), threads=1)
    assert half.rows is not None
    assert half.rows.feeding.network.model_bytes == half.network.model_bytes != order.network.model_bytes


def test_a_dataset_that_does_not_fit_is_refused(
    linear_model: Callable[..., Path], vectors: Callable[..., Path]
) -> None:
    with pytest.raises(MismatchError, match="x"):
        make_sweep_plan(spec(models=(linear_model(features=5),), data=vectors(features=4)))
    with pytest.raises(MismatchError, match="--input names input 'z', which no model has"):
        make_sweep_plan(spec(models=(linear_model(),), data=vectors(), input="z=x"))


def test_pytorch_is_not_fed_from_a_dataset(
    linear_model: Callable[..., Path], vectors: Callable[..., Path]
) -> None:
    options = {"models": (linear_model(),), "torch": "nets:make", "baseline": "torch"}
    plan = make_sweep_plan(spec(**options, data=vectors(), precisions="fp32,int8"))
    trials = [trial for trial in grid(plan.spec, list(plan.models), ["cpu"]) if trial.backend == "torch"]
    full, int8 = (next(one for one in trials if one.precision == name) for name in ("fp32", "int8"))
    order = plan.order(full, threads=1)
    assert (order.rows, order.measure.mode, order.network.model_bytes) == (None, "latency", b"")
    assert plan.problem(int8) == "PyTorch runs no network in int8 here"
    alone = make_sweep_plan(spec(**options, data=vectors(), mode="throughput"))
    assert alone.problem(full) == "PyTorch is not fed from a dataset"


def test_a_module_for_a_model_that_is_not_there_is_refused(linear_model: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"--torch names model 'b.onnx'"):
        make_sweep_plan(spec(models=(linear_model(),), torch="b.onnx=nets:make", baseline="torch"))
