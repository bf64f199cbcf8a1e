"""Memory that runs out during a job: smaller batches, and every row scored all the same."""

from __future__ import annotations

import itertools
import pickle
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper
from trtfleet.errors import BackendError, HookError, ModelError
from trtfleet.tests.trt_actors.runtime.device_double import DeviceDouble
from trtfleet.trt_actors.cache.batch_sizes import KeptBatchSizes
from trtfleet.trt_actors.cache.store import EngineCache
from trtfleet.trt_actors.cuda_backend import whole_on_cuda
from trtfleet.trt_actors.engine import Engine
from trtfleet.trt_actors.onnxruntime_engine import OnnxRuntimeEngine
from trtfleet.trt_actors.out_of_memory import OutOfMemoryError, free_slots, out_of_memory
from trtfleet.trt_actors.prepared import Prepared
from trtfleet.trt_actors.runtime.libcuda import GpuInfo
from trtfleet.trt_actors.scorer import Scorer
from trtfleet.trt_actors.warm_up import bind_zeros, run_alone

Planned = Callable[..., Any]

# As ONNX Runtime, CUDA and PyCUDA tell it.
TOLD = [
    MemoryError(),
    MemoryError("GPU 0 cannot give 4096 bytes: cuMemAlloc failed: out of memory"),
    RuntimeError(
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. "
        "Name:'conv' Status Message: \n/src/bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal"
        "(size_t, bool) Failed to allocate memory for requested buffer of size 939524096"
    ),
    RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size);"),
    RuntimeError("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; expr=cublasCreate(&handle);"),
    RuntimeError("Non-zero status code returned while running Gather node. Status Message: std::bad_alloc"),
    BackendError("cuGraphLaunch failed: error 2, out of memory", "see the driver's log (dmesg)"),
]


class CrampedEngine(OnnxRuntimeEngine):
    """ONNX Runtime on the CPU with so little memory that it takes few rows, filling batches up as devices do.

    Attributes:
        most_rows: Rows that there is memory for.
        after: How many batches have more room, before another process comes.
        too_large: A row whose first value is at least this large needs more memory than there is.
        executed: The rows of every batch that was executed, those it was filled up with included.
    """

    def __init__(self, network: Prepared, most_rows: int, after: int = 0, too_large: float = np.inf) -> None:
        super().__init__(network.model_bytes, inputs=network.inputs, outputs=network.outputs)
        self.most_rows, self.after, self.too_large = most_rows, after, too_large
        self.executed: list[int] = []
        self.freed = 0
        self._lock = threading.Lock()

    def enqueue(self, slot: Any, rows: int) -> None:
        assert self._lock.acquire(blocking=False), "two threads use one engine"
        try:
            self.after -= 1
            filled = max(rows, self.full_rows or rows)
            is_large = (slot.inputs["x"][:rows, 0] >= self.too_large).any()
            if (filled > self.most_rows and self.after < 0) or is_large:
                raise MemoryError(f"no room for {filled} rows")
            self.executed.append(filled)
            super().enqueue(slot, rows)
        finally:
            self._lock.release()

    def free_slots(self) -> None:
        self.freed += 1


@pytest.fixture
def job(planned: Planned, linear_model: Callable[..., Path], vectors: Callable[..., Path]) -> Planned:
    """Plans the linear model over 1,000 rows in shards of 100."""

    def plan(model: Path | None = None, data: Path | None = None, **options: Any) -> Any:
        given = {"keep": "id", "batch_size": 64, "shard_bytes": 2400, **options}
        return planned(model or linear_model(), data or vectors(), **given)

    return plan


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Prepared], Any]], list[Any]]:
    """Has scorers run on engines that a function makes; returns the list of those made."""

    def use(make: Callable[[Prepared], Any]) -> list[Any]:
        made: list[Any] = []

        def opened(backend: str, network: Prepared, **options: Any) -> tuple[Engine, str]:
            made.append(make(network).open())
            return made[-1], ""

        monkeypatch.setattr("trtfleet.trt_actors.scorer.open_engine", opened)
        return made

    return use


def expected(data: Path) -> dict[int, list[float]]:
    x = pq.read_table(data)["x"].combine_chunks().flatten().to_numpy().reshape(-1, 4)
    return dict(enumerate((x @ (np.arange(8, dtype=np.float32).reshape(4, 2) / 8)).tolist()))


def scored(planned: Any, receipts: list[Any]) -> dict[int, list[float]]:
    """The answers by row, each of which is there once."""
    tables = [planned.part(receipt.record) for receipt in receipts if receipt.record.rows]
    ids = [row for table in tables for row in table["id"].to_pylist()]
    assert len(set(ids)) == len(ids)
    return dict(zip(ids, [y for table in tables for y in table["y"].to_pylist()], strict=True))


def assert_same(found: dict[int, list[float]], wanted: dict[int, list[float]]) -> None:
    assert found.keys() == wanted.keys()
    for row, values in found.items():
        np.testing.assert_allclose(values, wanted[row], rtol=1e-5)


@pytest.mark.parametrize("error", TOLD, ids=range(len(TOLD)))
def test_what_runtimes_say_when_memory_runs_out_is_understood(error: Exception) -> None:
    told = out_of_memory(error, 256)
    assert told is not None
    assert told.fact.startswith("no memory is left for a batch of 256 rows: ")
    assert told.__cause__ is error
    assert out_of_memory(told, 1) is told
    assert pickle.loads(pickle.dumps(told)).fact == told.fact


def test_other_failures_are_not_taken_for_it() -> None:
    for error in (ValueError("indices element out of data bounds"), ModelError("no", ""), KeyError("memory")):
        assert out_of_memory(error, 8) is None


def test_batches_are_halved_until_they_fit_and_every_row_is_scored(
    job: Planned, vectors: Any, engines: Any
) -> None:
    made = engines(lambda network: CrampedEngine(network, most_rows=20))
    planned = job()
    with Scorer(planned.task) as scorer:
        assert scorer.info.batch_size == 64
        receipts = [scorer.score(shard, "a") for shard in planned.shards]
    assert len(receipts) > 5
    assert_same(scored(planned, receipts), expected(vectors()))
    assert receipts[-1].notes == ("out of memory: batch size 64 -> 32 -> 16",)
    assert set(made[0].executed) == {16}
    assert made[0].freed == 2
    assert sum(receipt.record.bad_rows for receipt in receipts) == 0
    assert planned.files("quarantine") == []
    assert len(planned.files("parts")) == len(planned.shards)


def test_memory_that_runs_out_in_the_middle_changes_no_answer(
    job: Planned, vectors: Any, engines: Any
) -> None:
    made = engines(lambda network: CrampedEngine(network, most_rows=40, after=30))
    planned = job()
    with Scorer(planned.task) as scorer:
        receipts = [scorer.score(shard, "a") for shard in planned.shards]
    assert_same(scored(planned, receipts), expected(vectors()))
    assert set(made[0].executed) == {64, 32}
    assert made[0].executed == sorted(made[0].executed, reverse=True)
    assert receipts[0].notes == ()
    assert receipts[-1].notes == ("out of memory: batch size 64 -> 32",)


def test_shards_in_flight_together_halve_once(job: Planned, vectors: Any, engines: Any) -> None:
    made = engines(lambda network: CrampedEngine(network, most_rows=33, after=3))
    planned = job()
    with Scorer(planned.task) as scorer, ThreadPoolExecutor(4) as threads:
        receipts = list(threads.map(lambda shard: scorer.score(shard, "a"), planned.shards))
        assert scorer._pipeline.batch_size == 32
        rows = scorer._pipeline.stats.rows
    assert_same(scored(planned, receipts), expected(vectors()))
    assert made[0].freed == 1
    # Those of failed batches and of the repeats are counted too.
    assert rows >= 1000


def test_the_account_goes_on_over_a_change_of_size(job: Planned, engines: Any) -> None:
    engines(lambda network: CrampedEngine(network, most_rows=40, after=30))
    planned = job()
    with Scorer(planned.task) as scorer:
        stats = [scorer.score(shard, "a").stats for shard in planned.shards]
    for earlier, later in itertools.pairwise(stats):
        assert later.rows > earlier.rows
        assert later.busy_s >= earlier.busy_s
        assert later.measuring_s >= earlier.measuring_s


def test_a_row_that_alone_is_too_large_is_bad_and_does_not_slow_the_rest(
    job: Planned, tmp_path: Path, engines: Any
) -> None:
    engines(lambda network: CrampedEngine(network, most_rows=64, too_large=100))
    values = np.random.default_rng(3).random((40, 4), dtype=np.float32)
    values[[7, 30], 0] = 100
    lists = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 4)
    data = tmp_path / "large.parquet"
    pq.write_table(pa.table({"id": np.arange(40), "x": lists}), data, row_group_size=20)
    planned = job(data=data, batch_size=8, shard_bytes=800)
    assert len(planned.shards) == 2
    with Scorer(planned.task) as scorer:
        receipts = [scorer.score(shard, "a") for shard in planned.shards]
        assert scorer._pipeline.batch_size == 8
    assert [receipt.record.bad_rows for receipt in receipts] == [1, 1]
    found = scored(planned, receipts)
    assert sorted(found) == [row for row in range(40) if row not in (7, 30)]
    (bad,) = planned.quarantine(receipts[0].record)
    assert bad["row"] == 7
    assert bad["reason"].startswith("engine: no memory is left for a batch of 1 row: ")
    halvings = "8 -> 4 -> 2 -> 1 -> 8"
    assert receipts[0].notes == (f"out of memory: batch size {halvings}",)
    assert receipts[1].notes == (f"out of memory: batch size {halvings} -> 4 -> 2 -> 1 -> 8",)


def test_a_row_that_breaks_the_engine_is_still_found_when_memory_is_short(
    job: Planned, tmp_path: Path, engines: Any
) -> None:
    engines(lambda network: CrampedEngine(network, most_rows=4))
    table = helper.make_node("Constant", [], ["table"], value_floats=[10.0, 20.0, 30.0])
    index = helper.make_node("Cast", ["x"], ["index"], to=TensorProto.INT64)
    graph = helper.make_graph(
        [table, index, helper.make_node("Gather", ["table", "index"], ["y"])],
        "picking",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1])],
    )
    model = tmp_path / "picking.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    values = np.arange(30, dtype=np.float32) % 3
    values[11] = 99
    data = tmp_path / "picks.parquet"
    pq.write_table(pa.table({"id": np.arange(30), "x": values}), data)
    planned = job(model, data, batch_size=16)
    with Scorer(planned.task) as scorer:
        receipt = scorer.score(planned.shards[0], "a")
        assert scorer._pipeline.batch_size == 4
    assert (receipt.record.rows, receipt.record.bad_rows) == (29, 1)
    assert planned.quarantine(receipt.record)[0]["row"] == 11


def test_a_fixed_batch_that_does_not_fit_is_an_error(
    job: Planned, linear_model: Callable[..., Path], engines: Any
) -> None:
    engines(lambda network: CrampedEngine(network, most_rows=4))
    planned = job(linear_model(batch=8), batch_size=None)
    with Scorer(planned.task) as scorer, pytest.raises(OutOfMemoryError, match="a batch of 8 rows") as raised:
        scorer.score(planned.shards[0], "a")
    assert "--batch-size" in raised.value.hint
    assert planned.files("commits") == []
    assert planned.files("parts") == []


def test_a_hook_that_runs_out_of_memory_is_a_rows_fault(job: Planned, hook: Any, engines: Any) -> None:
    made = engines(lambda network: CrampedEngine(network, most_rows=64))
    name = hook(
        "def post(outputs, kept):\n"
        "    if 5 in kept['id'].to_pylist():\n"
        "        raise MemoryError('too much for me')\n"
        "    return outputs\n"
    )
    planned = job(postprocess=f"{name}:post")
    with Scorer(planned.task) as scorer:
        receipt = scorer.score(planned.shards[0], "a")
    assert receipt.notes == ()
    assert planned.quarantine(receipt.record)[0]["row"] == 5
    assert made[0].freed == 0


def test_other_errors_pass_through_a_change_of_size(job: Planned, hook: Any, engines: Any) -> None:
    engines(lambda network: CrampedEngine(network, most_rows=20))
    name = hook("def post(outputs, kept):\n    return {'y': outputs['y'][:1]}\n")
    planned = job(postprocess=f"{name}:post")
    with Scorer(planned.task) as scorer:
        for attempt in ("a", "b"):
            with pytest.raises(HookError):
                scorer.score(planned.shards[0], attempt)


def device_engine(network: Prepared, device: DeviceDouble) -> Any:
    engine = whole_on_cuda(network, 1, device)
    assert engine is not None
    return engine


def test_slots_of_smaller_batches_take_less_of_the_device(job: Planned, vectors: Any, engines: Any) -> None:
    # A row takes 16 bytes in and, as ONNX Runtime owns its results here, nothing out; there are six slots.
    device = DeviceDouble(lazy=False, limit_bytes=6 * 40 * 16)
    engines(lambda network: device_engine(network, device))
    planned = job()
    with Scorer(planned.task) as scorer:
        # The device is warmed up with all of them, so that no shard has to be repeated.
        assert scorer.info.batch_size == 32
        receipts = [scorer.score(shard, "a") for shard in planned.shards]
        assert receipts[-1].stats.rows == 1000
        assert device.used_bytes <= device.limit_bytes
    assert_same(scored(planned, receipts), expected(vectors()))
    assert receipts[-1].notes == ("out of memory: batch size 64 -> 32",)
    assert device.alive == set()


def test_a_device_with_room_for_few_slots_of_one_row_is_used_nevertheless(
    job: Planned, vectors: Any, engines: Any
) -> None:
    # ONNX Runtime's runner takes 512 bytes.
    device = DeviceDouble(lazy=False, limit_bytes=512 + 2 * 16)
    engines(lambda network: device_engine(network, device))
    planned = job(batch_size=2)
    with Scorer(planned.task) as scorer:
        assert scorer.info.batch_size == 1
        receipts = [scorer.score(shard, "a") for shard in planned.shards]
    assert_same(scored(planned, receipts), expected(vectors()))
    assert receipts[0].notes == ("out of memory: batch size 2 -> 1",)


def test_a_device_without_room_for_any_row_blames_no_row(job: Planned, engines: Any) -> None:
    device = DeviceDouble(lazy=False, limit_bytes=512 + 15)
    engines(lambda network: device_engine(network, device))
    planned = job(batch_size=2)
    with Scorer(planned.task) as scorer, pytest.raises(OutOfMemoryError, match="for any single one of"):
        scorer.score(planned.shards[0], "a")
    assert planned.files("commits") == planned.files("parts") == planned.files("quarantine") == []


def test_freeing_slots_leaves_the_engine_usable(linear_model: Callable[..., Path], job: Planned) -> None:
    network = job().task.network
    device = DeviceDouble(lazy=False)
    engine = device_engine(network, device).open()
    before = len(device.alive)
    for rows in (512, 8):
        slot = engine.slot()
        bind_zeros(engine, slot, rows)
        run_alone(engine, slot, rows)
        assert slot.outputs["y"].shape == (rows, 2)
        assert device.used_bytes >= rows * 16
        free_slots(engine)
        assert len(device.alive) == before
    engine.close()
    free_slots(engine)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that can be described, as far as the batch size is remembered for its kind."""
    found = GpuInfo(
        index=0, name="Double", compute_capability=(8, 0), memory_bytes=1 << 30, cuda="13.0", driver=""
    )
    monkeypatch.setattr("trtfleet.trt_actors.remembered.gpus", lambda: [found])


@pytest.mark.usefixtures("gpu")
def test_a_size_with_which_memory_ran_out_is_forgotten(job: Planned, tmp_path: Path, engines: Any) -> None:
    device = DeviceDouble(lazy=False)
    engines(lambda network: device_engine(network, device))
    cache = tmp_path / "cache"
    planned = job(batch_size=None, cache=str(cache))
    with Scorer(planned.task) as scorer:
        assert scorer.info.batch_origin == "measured"
        size = scorer.info.batch_size
        (kept,) = KeptBatchSizes.of(EngineCache(cache).objects).sizes
        assert (kept.rows, kept.identity.gpu) == (size, "Double")
        assert scorer.score(planned.shards[0], "a").notes == ()
    shutil.rmtree(tmp_path / "out")
    planned = job(batch_size=None, cache=str(cache))
    # Not all six slots of so many rows of 16 bytes fit, those of half as many do.
    device.limit_bytes = size * 16 * 4
    with Scorer(planned.task) as scorer:
        assert (scorer.info.batch_size, scorer.info.batch_origin) == (size // 2, "remembered")
        (note,) = scorer.score(planned.shards[0], "a").notes
        assert note == f"out of memory: batch size {size:,} -> {size // 2:,}"
    assert KeptBatchSizes.of(EngineCache(cache).objects).sizes == ()
