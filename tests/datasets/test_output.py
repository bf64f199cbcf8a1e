"""Generations, fingerprints, and shards committed exactly once."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trtfleet.datasets.naming import HIDDEN, SUCCESS, final_name, finals, superseded_finals
from trtfleet.datasets.output import Output
from trtfleet.datasets.permits import STAGED, disarm_earlier, revoke, take_permit
from trtfleet.datasets.records import FORMAT, CommitRecord, JobRecord, RunRecord, SuccessRecord
from trtfleet.datasets.storage import Storage
from trtfleet.errors import FingerprintError, OutputError, RecordsGoneError

JOB = JobRecord(fingerprint={"model": "m1", "emit": "raw"}, resolved={"shard_bytes": 1}, shards=3, rows=30)


def commit(shard: str, attempt: str, rows: int = 1) -> CommitRecord:
    return CommitRecord(
        shard=shard,
        attempt=attempt,
        rows=rows,
        bad_rows=0,
        part=f"p-{attempt}",
        part_bytes=9,
        sha256="0",
        quarantine=None,
    )


def success(generation: str = "g0001") -> SuccessRecord:
    return SuccessRecord(generation=generation, rows=1, bad_rows=0, parts=[])


def together(count: int, work: Any) -> list[Any]:
    barrier = threading.Barrier(count)

    def one(number: int) -> Any:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def paths(storage: Storage) -> list[str]:
    return [entry.path for entry in storage.list()]


class TestCommit:
    def test_exactly_once_under_racing_threads(self, place: str) -> None:
        output = Output.create(Storage(place), JOB)
        for shard in ("s1", "s2", "s3"):
            standing = together(
                16,
                lambda n, shard=shard: Output(Storage(place), "g0001", JOB).commit(commit(shard, f"a{n}", n)),
            )
            assert len(set(standing)) == 1
            assert output.committed()[shard] == standing[0]
            assert output.commit(commit(shard, "late", 99)) == standing[0]
        assert len(output.committed()) == 3

    def test_a_fault_is_no_commit(self, tmp_path: Path) -> None:
        output = Output.create(Storage(tmp_path), JOB)
        (tmp_path / HIDDEN / "g0001" / "commits").touch()
        with pytest.raises(OutputError, match="cannot commit to"):
            output.commit(commit("s1", "a"))

    def test_many(self, place: str) -> None:
        output = Output.create(Storage(place), JOB)
        records = {f"s{n}": output.commit(commit(f"s{n}", f"a{n}", n)) for n in range(40)}
        assert output.committed() == records
        assert Output(Storage(place), "g0002", JOB).committed() == {}

    @pytest.mark.parametrize("count", [0, 2, 3, 4, 7])
    def test_records_are_read_some_at_a_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
    ) -> None:
        monkeypatch.setattr("trtfleet.datasets.output._READ_AT_ONCE", 3)
        output = Output.create(Storage(tmp_path), JOB)
        records = {f"s{n}": output.commit(commit(f"s{n}", "a", n)) for n in range(count)}
        assert output.committed() == records


class TestGenerations:
    def test_an_empty_place_has_none(self, place: str) -> None:
        assert Output.latest(Storage(place)) is None
        assert Output.latest(Storage(f"{place}/none")) is None

    def test_the_newest_is_found(self, place: str) -> None:
        storage = Storage(place)
        first = Output.create(storage, JOB)
        second = Output.create(storage, replace(JOB, rows=31), after=first)
        assert (first.generation, second.generation) == ("g0001", "g0002")
        found = Output.latest(storage)
        assert found is not None
        assert (found.generation, found.job.rows) == ("g0002", 31)

    def test_they_are_compared_as_numbers(self, place: str) -> None:
        storage = Storage(place)
        for number in (2, 9999, 10_000):
            storage.put(f"{HIDDEN}/g{number:04d}/job.json", JOB.encode())
        latest = Output.latest(storage)
        assert latest is not None
        assert latest.generation == "g10000"
        assert Output.create(storage, JOB, after=latest).generation == "g10001"

    def test_one_without_its_record_does_not_count(self, place: str) -> None:
        storage = Storage(place)
        Output.create(storage, JOB)
        storage.put(f"{HIDDEN}/g0002/parts/x", b"")
        latest = Output.latest(storage)
        assert latest is not None
        assert latest.generation == "g0001"

    def test_drivers_that_start_at_once_share_one(self, place: str) -> None:
        outputs = together(
            8, lambda n: Output.create(Storage(place), replace(JOB, resolved={"shard_bytes": n}))
        )
        assert {output.generation for output in outputs} == {"g0001"}
        assert len({output.job.resolved["shard_bytes"] for output in outputs}) == 1

    def test_of_two_different_jobs_at_once_one_is_refused(self, place: str) -> None:
        def start(number: int) -> str:
            try:
                return Output.create(Storage(place), replace(JOB, fingerprint={"model": number})).generation
            except FingerprintError as error:
                return error.fact

        facts = together(2, start)
        assert sorted(fact == "g0001" for fact in facts) == [False, True]
        assert "holds another job: model was" in max(facts, key=len)

    def test_a_place_in_use_is_refused(self, place: str) -> None:
        storage = Storage(place)
        storage.put("thesis.doc", b"")
        storage.put("sub/x", b"")
        with pytest.raises(
            OutputError, match=r"not empty: it holds thesis.doc, which trtfleet did not write"
        ) as raised:
            Output.create(storage, JOB)
        assert raised.value.hint
        assert paths(storage) == ["sub/x", "thesis.doc"]


class TestRequire:
    def output(self, **fingerprint: Any) -> Output:
        return Output(Storage("/x"), "g0001", replace(JOB, fingerprint=fingerprint))

    def test_the_same(self) -> None:
        self.output(a=1, b=[1, {"c": None}]).require({"b": [1, {"c": None}], "a": 1})

    @pytest.mark.parametrize(
        ("theirs", "ours", "words"),
        [
            ({"a": 1}, {"a": 2}, "a was 1, now 2"),
            ({"a": 1, "b": 1, "c": 3}, {"a": 1, "b": 2, "c": 4}, r"b was 1, now 2 \(and c\)"),
            ({"a": 1}, {"a": 1, "new": 5}, "new was None, now 5"),
            ({"a": 1, "old": 5}, {"a": 1}, "old was 5, now None"),
            ({"a": "x"}, {"a": None}, "a was 'x', now None"),
        ],
    )
    def test_the_difference_is_named(self, theirs: Any, ours: Any, words: str) -> None:
        with pytest.raises(FingerprintError, match=rf"^/x holds another job: {words}") as raised:
            self.output(**theirs).require(ours)
        assert "--overwrite" in raised.value.hint

    def test_a_job_that_ended_and_was_removed_meanwhile_is_said_to_be_gone(
        self, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # As when another creates it first, ends and cleans up, all between two requests of this one.
        monkeypatch.setattr(Storage, "put_new", lambda *_: False)
        with pytest.raises(RecordsGoneError, match=r"g0001/job\.json is gone: another command finished"):
            Output.create(Storage(place), JOB)

    def test_an_output_is_for_one_kind_of_job_even_when_it_is_overwritten(self, place: str) -> None:
        words = "holds a scoring job, and this is a sweep"
        output = Output.create(Storage(place), JOB)
        sweep = replace(JOB, fingerprint={"models": {"m.onnx": "digest"}})
        with pytest.raises(FingerprintError, match=words):
            output.require(sweep.fingerprint)
        with pytest.raises(FingerprintError, match=words) as raised:
            Output.create(Storage(place), sweep, after=output)
        assert "overwrite" not in raised.value.hint

    def test_a_record_read_back_agrees_with_what_was_written(self, place: str) -> None:
        fingerprint = {"a": None, "b": ["x"], "c": {"d": 1.5}, "ä": "日"}
        Output.create(Storage(place), replace(JOB, fingerprint=fingerprint))
        latest = Output.latest(Storage(place))
        assert latest is not None
        latest.require(fingerprint)


class TestAgree:
    def test_the_first_proposal_stands(self, place: str) -> None:
        output = Output.create(Storage(place), JOB)
        found = together(8, lambda n: output.agree("batch", lambda: {"n": n}))
        assert len({json.dumps(each) for each in found}) == 1
        assert output.agree("batch", lambda: pytest.fail("it is agreed already")) == found[0]

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
    def test_damaged(self, tmp_path: Path, content: bytes) -> None:
        output = Output.create(Storage(tmp_path), JOB)
        output.storage.put(f"{HIDDEN}/g0001/batch.json", content)
        with pytest.raises(OutputError, match=r"batch\.json is damaged"):
            output.agree("batch", dict)


class TestRecords:
    DAMAGED = (b"", b"{", b"[]", b"1", b'"x"', b"{}", b'{"format": 1}', b"\xff\xfe", b"[" * 100_000)

    @pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
    @pytest.mark.parametrize("name", ["job", "commit", "run", "success"])
    def test_damaged(self, tmp_path: Path, name: str, content: bytes) -> None:
        storage = Storage(tmp_path)
        output = Output.create(storage, JOB)
        path, read = {
            "job": (f"{HIDDEN}/g0001/job.json", lambda: Output.latest(storage)),
            "commit": (output.path("commits", "s.json"), output.committed),
            "run": (output.path("runs", "r.json"), output.runs),
            "success": (f"{HIDDEN}/g0001/success.json", output.success),
        }[name]
        storage.put(path, content)
        with pytest.raises(OutputError, match=rf"{path} is damaged") as raised:
            read()
        assert raised.value.hint
        assert "\n" not in raised.value.fact

    @pytest.mark.parametrize("version", [FORMAT + 1, 0, "1", None])
    def test_other_formats(self, tmp_path: Path, version: Any) -> None:
        storage = Storage(tmp_path)
        values = {**json.loads(JOB.encode()), "format": version, "unheard": "of"}
        storage.put(f"{HIDDEN}/g0001/job.json", json.dumps(values).encode())
        with pytest.raises(OutputError, match=rf"has format {version}, this trtfleet reads format {FORMAT}"):
            Output.latest(storage)
        with pytest.raises(OutputError, match="has format"):
            CommitRecord.decode(json.dumps({"format": version}).encode(), "x")

    def test_a_future_record_of_this_format_may_say_more(self) -> None:
        values = {**json.loads(JOB.encode()), "more": 1}
        assert JobRecord.decode(json.dumps(values).encode(), "x") == JOB

    def test_the_record_of_a_commit_must_be_whole_when_another_won(self, tmp_path: Path) -> None:
        output = Output.create(Storage(tmp_path), JOB)
        output.storage.put(output.path("commits", "s.json"), b"")
        with pytest.raises(OutputError, match="is damaged"):
            output.commit(commit("s", "a"))

    def test_runs_oldest_first_and_replaced(self, place: str) -> None:
        output = Output.create(Storage(place), JOB)
        for run, started in (("b", 2.0), ("a", 3.0), ("c", 1.0)):
            output.report_run(RunRecord(run=run, state="running", started_s=started))
        output.report_run(RunRecord(run="b", state="finished", started_s=2.0))
        assert [(run.run, run.state) for run in output.runs()] == [
            ("c", "running"),
            ("b", "finished"),
            ("a", "running"),
        ]


class TestFinish:
    def test_success_is_of_one_generation(self, place: str) -> None:
        storage = Storage(place)
        first = Output.create(storage, JOB)
        assert first.success() is None
        assert first.finish(success()) == success_of(storage) == first.success()
        second = Output.create(storage, JOB, after=first)
        assert second.success() is None

    def test_the_first_record_stands_and_heals(self, place: str) -> None:
        output = Output.create(Storage(place), JOB)
        record = output.finish(success())
        assert output.finish(replace(success(), seconds=5.0)) == record
        output.storage.delete([SUCCESS])
        assert output.finish(record) == record
        assert success_of(output.storage) == record

    def test_it_forgets_parts_and_earlier_generations_only(self, place: str) -> None:
        storage = Storage(place)
        first = Output.create(storage, JOB)
        second = Output.create(storage, JOB, after=first)
        third = Output.create(storage, JOB, after=second)
        for output in (first, second, third):
            output.commit(commit("s", "a"))
            for name in ("parts", "merged", "quarantine"):
                storage.put(output.path(name, "x.parquet"), b"x")
        storage.put("part-00000-g0003.parquet", b"x")
        second.finish(success("g0002"))
        kept = [
            f"{HIDDEN}/g0002/{n}"
            for n in ("commits/s.json", "job.json", "quarantine/x.parquet", "success.json")
        ]
        later = ["commits/s.json", "job.json", "merged/x.parquet", "parts/x.parquet", "quarantine/x.parquet"]
        kept += [f"{HIDDEN}/g0003/{name}" for name in later]
        assert paths(storage) == [*kept, "part-00000-g0003.parquet"]

    @pytest.mark.parametrize("names", [["part-00000.parquet"], ["part-00000-g0002.parquet"]])
    def test_healing_keeps_its_own_files_whatever_their_names(self, place: str, names: list[str]) -> None:
        """Outputs of format 1 have the same names in every generation."""
        storage = Storage(place)
        second = Output.create(storage, JOB, after=Output.create(storage, JOB))
        parts = [{"name": name, "rows": 1, "size_bytes": 1, "sha256": "0"} for name in names]
        later = "part-00000-g0003.parquet"
        for name in (*names, "part-00009.parquet", "part-00009-g0002.parquet", later):
            storage.put(name, b"x")
        second.finish(replace(success("g0002"), parts=parts))
        assert finals(storage) == sorted([*names, later])

    def test_the_success_of_a_later_generation_stays(self, place: str) -> None:
        storage = Storage(place)
        first = Output.create(storage, JOB)
        second = Output.create(storage, JOB, after=first)
        record = second.finish(success("g0002"))
        first.finish(success())
        assert success_of(storage) == record

    def test_success_is_what_was_written_first_byte_for_byte(self, place: str) -> None:
        storage = Storage(place)
        output = Output.create(storage, JOB)
        before = json.dumps({**json.loads(success().encode()), "format": 1, "unheard": "of"}).encode()
        storage.put(f"{HIDDEN}/g0001/success.json", before)
        output.finish(success())
        assert storage.get(SUCCESS) == before


class TestNames:
    @pytest.mark.parametrize(
        ("number", "generation", "name"),
        [
            (0, "g0001", "part-00000.parquet"),
            (7, "g0002", "part-00007-g0002.parquet"),
            (123_456, "g10000", "part-123456-g10000.parquet"),
        ],
    )
    def test_final_files(self, number: int, generation: str, name: str) -> None:
        assert final_name(number, generation) == name
        SuccessRecord.decode(replace(success(), parts=[{"name": name}]).encode(), "x")

    def test_only_final_files_are_told(self, place: str) -> None:
        storage = Storage(place)
        wanted = ["part-00000-g0002.parquet", "part-00000.parquet", "part-123456.parquet"]
        others = ["part-1.parquet", "part-00000-g2.parquet", "sub/part-00000.parquet", "x"]
        for name in (*wanted, *others):
            storage.put(name, b"")
        assert finals(storage) == wanted
        assert superseded_finals(storage, "g0001", wanted[1:2]) == wanted[2:]
        assert superseded_finals(storage, "g0002", []) == wanted


class TestPermits:
    def test_a_revoked_one_cannot_be_moved_into(self, tmp_path: Path) -> None:
        storage = Storage(tmp_path)
        mine, other = take_permit(storage, "g0001"), take_permit(storage, "g0002")
        storage.put("a", b"")
        # What a process leaves that dies while it writes is listed nowhere.
        (tmp_path / mine / "half#1").touch()
        revoke(storage, "g0001")
        with pytest.raises(FileNotFoundError):
            storage.publish("a", f"{mine}/taken")
        storage.publish("a", f"{other}/taken")
        assert paths(storage) == [f"{other}/permit", f"{other}/taken"]

    def test_those_of_one_generation_are_revoked(self, place: str) -> None:
        storage = Storage(place)
        revoke(storage, "g0001")
        for generation in ("g0001", "g0001", "g0002"):
            kept = take_permit(storage, generation)
        revoke(storage, "g0001")
        assert paths(storage) == [f"{kept}/permit"]

    def test_what_earlier_generations_have_staged_goes_with_their_permits(self, place: str) -> None:
        storage = Storage(place)
        for generation in ("g0001", "g0002", "g0003"):
            take_permit(storage, generation)
            storage.put(f"{HIDDEN}/{generation}/{STAGED}/run/x", b"")
            storage.put(f"{HIDDEN}/{generation}/parts/x", b"")
        disarm_earlier(storage, "g0002")
        left = {path.split("/")[1] for path in paths(storage) if "/parts/" not in path}
        assert left == {"g0002", "g0003"}
        assert len(paths(storage)) == 7


def success_of(storage: Storage) -> SuccessRecord:
    return SuccessRecord.decode(storage.get(SUCCESS) or b"", SUCCESS)
