"""An engine published, a calibration, a sweep: each without Ray, against any storage."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pyarrow.parquet as pq
from trtfleet.datasets.output import Output
from trtfleet.datasets.records import JobRecord
from trtfleet.datasets.storage import Storage
from trtfleet.jobs import calibrate
from trtfleet.jobs.calibrate_books import Collected, collected
from trtfleet.jobs.calibrate_plan import CalibratePlan
from trtfleet.jobs.calibrate_spec import CalibrateSpec
from trtfleet.jobs.progress import Reporter, Silent
from trtfleet.jobs.sample_books import SampleBooks
from trtfleet.jobs.sweep.books import Ran
from trtfleet.jobs.sweep.grid import Trial
from trtfleet.jobs.sweep.results import CSV, PARQUET, write_rows
from trtfleet.tests.faults.protocol import Protocol, digests, replaced
from trtfleet.trt_actors.building.options import BuildOptions
from trtfleet.trt_actors.cache.identity import Identity
from trtfleet.trt_actors.cache.obtain import Built, obtain
from trtfleet.trt_actors.cache.store import EngineCache
from trtfleet.trt_actors.calibration.calibrator import Calibrator
from trtfleet.trt_actors.calibration.table_store import TableStore
from trtfleet.trt_actors.trial.task import Measurement

__all__ = ["Calibrate", "Publish", "Sweep"]

# --- the engine cache ---


class Publish(Protocol):
    """An engine that is built and published under a lease."""

    name = "cache publish"
    files: ClassVar[dict[str, bytes]] = {"a.plan": b"plan" * 1000, "layout": b"{}"}
    identity: ClassVar[Identity] = Identity(
        model="a" * 64,
        network="b" * 64,
        options=BuildOptions().as_identity(),
        flavour="tensorrt-rtx",
        version="1.7.1.31",
        compute_capability="8.9",
        gpu="NVIDIA L4",
    )
    ttl_s = 0.3

    def run(self, place: str, builds: Callable[[], object] = lambda: None) -> None:
        def build() -> Built:
            builds()
            return Built(files=self.files)

        # On disk it is where it is; from a bucket it is copied into a folder that nobody else uses.
        folder = self.assets / f"staged-{hashlib.sha256(place.encode()).hexdigest()[:12]}"
        staged = obtain(EngineCache(place), self.identity, build, ttl_s=self.ttl_s, staging=folder)
        assert {name: staged.read(name) for name in self.files} == self.files

    def check(self, place: str) -> None:
        cache = EngineCache(place)
        contents = cache.contents()
        assert not contents.unreadable
        for entry in contents.entries:
            assert cache.verify(entry) == []

    def result(self, place: str) -> Mapping[str, Any]:
        cache = EngineCache(place)
        (entry,) = cache.entries()
        return {name: cache.read(entry, name) for name in entry.files}

    def units(self, place: str) -> list[Any]:
        return [name for entry in EngineCache(place).entries() for name in sorted(entry.files)]

    def hidden(self, place: str) -> Mapping[str, Any]:
        return {"blobs": len(EngineCache(place).objects.paths("blobs"))}


# --- calibration ---


class Calibrate(Protocol):
    """A calibration: units observed and committed, a table stored, the work forgotten."""

    name = "calibration commit"

    def run(self, place: str, builds: Callable[[], object] = lambda: None) -> None:
        spec = CalibrateSpec(
            model=str(self.assets / "net.onnx"),
            data=(str(self.assets / "x.parquet"),),
            cache=place,
            samples=96,
            batch_size=16,
            backend="onnxruntime-cpu",
        )
        with replaced(calibrate, "collect", _collect_here):
            calibrate.run_calibrate(spec)

    def check(self, place: str) -> None:
        store = TableStore(place)
        for model in Storage(place).children("calibration")[0]:
            assert len(store.all(model)) <= 1

    def result(self, place: str) -> Mapping[str, Any]:
        storage = Storage(place)
        found = [entry.path for entry in storage.list("calibration") if "/work/" not in entry.path]
        return digests(storage, found)

    def units(self, place: str) -> list[Any]:
        return list(self.result(place).values())

    def hidden(self, place: str) -> Mapping[str, Any]:
        left = [entry.path for entry in Storage(place).list()]
        return {"work": [path for path in left if "/work/" in path]}


def _collect_here(plan: CalibratePlan, shown: Reporter) -> Collected:
    """What ``collect`` does, with the one actor in this process."""
    output = Output.latest(plan.work)
    if output is None:
        record = JobRecord(fingerprint=plan.fingerprint, resolved={"unit_batches": 2}, shards=3, rows=96)
        output = Output.create(plan.work, record)
    output.require(plan.fingerprint)
    books = SampleBooks(plan, output, shown)
    if not books.is_complete:
        with Calibrator(plan.task(1)) as calibrator:
            books.actor_started("here", calibrator.info)
            for key, unit in books.units.items():
                if key not in books.records:
                    books.unit_done("here", key, calibrator.observe(unit))
    return collected(books)


# --- sweeps ---


class Sweep(Protocol):
    """A sweep whose trials take no time: a record for each measurement, then the results."""

    name = "sweep record"

    def run(self, place: str, builds: Callable[[], object] = lambda: None) -> None:
        trials = [
            Trial(
                model="net",
                precision="fp32",
                backend="onnxruntime-cpu",
                batch_size=size,
                contexts=1,
                actors=1,
                device="cpu",
            )
            for size in (1, 2, 4)
        ]
        storage = Storage(place)
        output = Output.latest(storage)
        if output is None:
            job = JobRecord(fingerprint={"sweep": 1}, resolved={"devices": ["cpu"]}, shards=6, rows=6)
            output = Output.create(storage, job)
        ran = Ran(output, trials, 2, Silent())
        for key, trial in ran.pending.items():
            # What is measured differs from run to run; here it depends on the trial, so that results compare.
            ran.done(key, Measurement(host_p50_ms=float(trial.batch_size), rows_per_s=1000.0 + len(key)))
        write_rows(storage, ran.rows)

    def check(self, place: str) -> None:
        storage = Storage(place)
        if storage.get(PARQUET) is not None:
            with storage.open_input(PARQUET) as source:
                assert pq.read_table(source).num_rows == 3

    def result(self, place: str) -> Mapping[str, Any]:
        return digests(Storage(place), [PARQUET, CSV])

    def units(self, place: str) -> list[Any]:
        with Storage(place).open_input(PARQUET) as source:
            found: list[int] = pq.read_table(source)["batch_size"].to_pylist()
        return found

    def hidden(self, place: str) -> Mapping[str, Any]:
        storage = Storage(place)
        output = Output.latest(storage)
        assert output is not None
        return {"commits": sorted(output.committed())}
