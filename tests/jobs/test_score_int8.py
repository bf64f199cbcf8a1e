"""Scoring in INT8 as a user sees it, on a real Ray cluster: the table, the quantized network, the gate."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import trtfleet
from trtfleet.errors import CalibrationError, FingerprintError, ModelError, ParityError, UsageError
from trtfleet.jobs.int8_score import calibrate_command, same_feed
from trtfleet.jobs.plan import Plan, feed_identity, make_plan
from trtfleet.jobs.progress import Silent, Snapshot
from trtfleet.jobs.score import run_score
from trtfleet.jobs.spec import ScoreSpec
from trtfleet.jobs.summary import Summary
from trtfleet.jobs.task import engine_settings
from trtfleet.tests.jobs.conftest import Ran
from trtfleet.tests.trt_actors.calibration.samples import linear, save
from trtfleet.trt_actors.calibration.table import CalibrationTable
from trtfleet.trt_actors.calibration.table_store import TableStore
from trtfleet.trt_actors.calibration.thresholds import scale_of
from trtfleet.trt_actors.model import load_model
from trtfleet.trt_actors.quantization.quantize import quantize

NORMALIZE = "0:16"
INPUT = "image"


class Told(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def has(self, words: str) -> bool:
        return any(words in line for line in self.lines)


class StopsAfter(Silent):
    """Interrupts the job, as Ctrl-C does, once a shard is finished."""

    def update(self, snapshot: Snapshot) -> None:
        if snapshot.shards_done >= 1:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def table(digits: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> bytes:
    """What ``calibrate`` writes for the digits, fed with NORMALIZE."""
    folder = tmp_path_factory.mktemp("calibrated")
    model, data = digits
    trtfleet.calibrate(
        model, data, folder / "table.json", normalize=NORMALIZE, actors=1, cache=str(folder / "cache")
    )
    return (folder / "table.json").read_bytes()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with an empty engine cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRTFLEET_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def stored(place: Path, table: bytes) -> str:
    """URL of the digits' table in the cache of ``place``."""
    return TableStore().put(CalibrationTable.decode(table, "table"))


@pytest.fixture
def spec(digits: tuple[Path, Path], place: Path) -> Callable[..., ScoreSpec]:
    """Makes the job that scores the digits in int8 on one actor."""

    def make(**options: Any) -> ScoreSpec:
        values = {
            "model": digits[0],
            "data": digits[1],
            "out": place / "out",
            "normalize": NORMALIZE,
            "emit": "argmax",
            "keep": ["id", "label", "split"],
            "precision": "int8",
            "actors": 1,
            "batch_size": 64,
            **options,
        }
        return ScoreSpec.of(values)

    return make


def changed(table: bytes, **values: Any) -> CalibrationTable:
    return replace(CalibrationTable.decode(table, "table"), **values)


def absurd(table: bytes) -> CalibrationTable:
    """The table with one threshold a thousand times too small."""
    found = CalibrationTable.decode(table, "table")
    before = found.tensors[INPUT]
    small = replace(before, threshold=before.threshold / 1000, scale=scale_of(before.threshold / 1000))
    return replace(found, tensors={**found.tensors, INPUT: small})


def right(out: Path) -> float:
    """The share of the rows that took no part in training which are answered right."""
    found = pq.read_table(out)
    held_out = found.filter(pc.field("split") == "held-out")
    return float(pc.mean(pc.equal(held_out["logits_argmax"], held_out["label"]).cast(pa.float64())).as_py())


def quantizers(plan: Plan) -> int:
    network = onnx.load_from_string(plan.fitted.network.model_bytes)
    return sum(node.op_type == "QuantizeLinear" for node in network.graph.node)


class TestTheTable:
    def test_it_is_found_by_itself(self, spec: Callable[..., ScoreSpec], stored: str) -> None:
        plan = make_plan(spec())
        assert plan.quantized is not None
        assert plan.quantized.found.url == stored
        assert plan.quantized.found.sentence == f"int8 ranges by entropy from 500 rows: {stored}"
        assert quantizers(plan) == 3
        digest = plan.quantized.found.table.digest
        assert plan.fingerprint["calibration"] == digest
        settings = engine_settings(plan)
        assert (settings.calibration, settings.model_digest) == (digest, plan.model.digest)

    def test_exclusions_are_not_quantized_and_make_another_engine_of_the_same_table(
        self, spec: Callable[..., ScoreSpec], stored: str
    ) -> None:
        plain, less = make_plan(spec()), make_plan(spec(exclude="Gemm"))
        assert quantizers(less) == quantizers(plain) - 1
        assert less.fingerprint["calibration"] == plain.fingerprint["calibration"]
        assert less.fingerprint != plain.fingerprint
        assert engine_settings(less).calibration != engine_settings(plain).calibration

    def test_without_one_the_hint_is_the_command_that_makes_it(
        self, spec: Callable[..., ScoreSpec], place: Path, digits: tuple[Path, Path]
    ) -> None:
        with pytest.raises(CalibrationError, match="has no calibration table in ") as raised:
            make_plan(spec())
        words = f"trtfleet calibrate {digits[0]} {digits[1]} --normalize {NORMALIZE}"
        assert raised.value.hint == f"make one: {words}; or say --use-calib-mode"
        assert not (place / "out").exists()

    @pytest.mark.usefixtures("ray_session")
    def test_that_command_makes_it(
        self, spec: Callable[..., ScoreSpec], place: Path, command: Callable[..., Ran]
    ) -> None:
        flags = ("--precision", "int8", "--normalize", NORMALIZE)
        wanted = spec()
        ran = command("score", wanted.model, *wanted.data, place / "out", *flags)
        assert ran.code == CalibrationError.exit_code
        hint = next(line for line in ran.stderr.splitlines() if line.startswith("hint: make one: "))
        made = command(*shlex.split(hint.removeprefix("hint: make one: ").partition(";")[0])[1:])
        assert made.code == 0, made.stderr
        assert make_plan(wanted).quantized is not None

    def test_one_for_other_values_is_named_with_the_difference(
        self, spec: Callable[..., ScoreSpec], stored: str
    ) -> None:
        with pytest.raises(CalibrationError, match="the one there") as raised:
            make_plan(spec(normalize="0:255"))
        assert f"{stored}, differs: normalize is {NORMALIZE} there, 0:255 is wanted" in raised.value.fact

    def test_a_given_one_is_taken_whatever_is_kept(
        self, spec: Callable[..., ScoreSpec], stored: str, place: Path, table: bytes
    ) -> None:
        file = place / "given.json"
        file.write_bytes(changed(table, seed=7).encode())
        plan = make_plan(spec(table=file))
        assert plan.quantized is not None
        assert plan.quantized.found.url == str(file)
        assert plan.quantized.found.table.seed == 7
        assert plan.quantized.found.notes == ()

    def test_a_given_one_for_other_values_is_taken_and_told(
        self, spec: Callable[..., ScoreSpec], place: Path, table: bytes
    ) -> None:
        file = place / "given.json"
        file.write_bytes(table)
        plan = make_plan(spec(table=file, normalize="0:255"))
        assert plan.quantized is not None
        (note,) = plan.quantized.found.notes
        assert note.endswith(f"normalize is {NORMALIZE} there, 0:255 is wanted")

    def test_a_given_one_of_another_model_is_refused_naming_both(
        self, spec: Callable[..., ScoreSpec], place: Path, table: bytes
    ) -> None:
        other, file = linear(place / "other.onnx"), place / "table.json"
        digest = load_model(other).digest
        file.write_bytes(table)
        with pytest.raises(CalibrationError) as raised:
            make_plan(spec(model=other, table=file))
        assert digest[:12] in raised.value.fact
        assert CalibrationTable.decode(table, "table").model[:12] in raised.value.fact

    def test_one_that_is_not_there_is_an_error(self, spec: Callable[..., ScoreSpec], place: Path) -> None:
        with pytest.raises(CalibrationError, match="cannot be read"):
            make_plan(spec(table=place / "none.json"))

    def test_an_exclusion_that_names_no_node_is_refused(
        self, spec: Callable[..., ScoreSpec], stored: str
    ) -> None:
        with pytest.raises(UsageError, match="Softmax"):
            make_plan(spec(exclude="Softmax"))

    def test_a_model_without_products_is_refused_by_name(
        self, spec: Callable[..., ScoreSpec], place: Path, table: bytes
    ) -> None:
        node = onnx.helper.make_node("Relu", ["x"], ["y"])
        model = save(place / "relu.onnx", [node], {}, ["N", 1, 8, 8], ["N", 1, 8, 8])
        file = place / "table.json"
        file.write_bytes(changed(table, model=load_model(model).digest).encode())
        with pytest.raises(ModelError, match=r"relu\.onnx: ") as raised:
            make_plan(spec(model=model, input={"x": "image"}, table=file))
        assert raised.value.fact.count("relu.onnx") == 1


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"precision": "fp16", "table": "t.json"}, "table is of use in int8 only, precision is fp16"),
            ({"precision": "fp32", "use_calib_mode": True}, "use_calib_mode is of use in int8 only"),
            ({"precision": "fp32", "exclude": ["Conv"]}, "exclude is of use in int8 only"),
            ({"max_drop": -0.1}, "max_drop must be >= 0, got -0.1"),
            ({"max_drop": "little"}, "max_drop must be a number"),
            ({"on_drop": "cry"}, "on_drop 'cry' is unknown"),
            ({"use_calib_mode": "yes"}, "use_calib_mode must be true or false"),
        ],
    )
    def test_what_cannot_be(
        self, spec: Callable[..., ScoreSpec], options: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(UsageError, match=words):
            spec(**options)

    def test_the_calibration_is_fed_as_the_job_is(self, spec: Callable[..., ScoreSpec], place: Path) -> None:
        job = spec(
            preprocess="hooks:pre",
            columns=["image", "label"],
            resize="4x6",
            layout="nhwc",
            fill_null=0.5,
            pad_to=9,
            pad_value=3,
            input={"image": ["a", "b c"]},
            backend="tensorrt",
            cache=str(place / "its cache"),
        )
        made = same_feed(job)
        assert feed_identity_of(made.feeding) == feed_identity_of(job)
        assert (made.columns, made.input, made.backend) == (job.columns, job.input, "auto")

        words = calibrate_command(job)
        assert shlex.split(shlex.join(words)) == words
        for pair in (
            ["--preprocess", "hooks:pre"],
            ["--columns", "label"],
            ["--resize", "4x6"],
            ["--layout", "nhwc"],
            ["--fill-null", "0.5"],
            ["--pad-to", "9"],
            ["--pad-value", "3"],
            ["--input", "image=a,b c"],
            ["--cache", str(place / "its cache")],
        ):
            assert any(words[at : at + 2] == pair for at in range(len(words))), pair


def feed_identity_of(spec: ScoreSpec) -> dict[str, Any]:
    return feed_identity(replace(spec, preprocess=None, columns=()))


@pytest.mark.usefixtures("ray_session")
class TestJobs:
    def test_the_digits_are_as_right_as_in_single_precision(
        self, spec: Callable[..., ScoreSpec], stored: str, place: Path, command: Callable[..., Ran]
    ) -> None:
        job = spec()
        flags = ["--normalize", NORMALIZE, "--emit", "argmax", "--actors", "1"]
        flags += ["--keep", "id", "--keep", "label", "--keep", "split"]
        ran = command("score", job.model, *job.data, job.out, *flags, "--precision", "int8", "--json")
        assert ran.code == 0, ran.stderr
        summary = json.loads(ran.stdout)
        assert summary["calibration"] == f"int8 ranges by entropy from 500 rows: {stored}"
        assert "of 256 rows have the same answer" in summary["parity"]
        assert stored in ran.stderr
        assert "comparing int8 with fp32 on 256 rows" in ran.stderr
        assert right(place / "out") >= 0.975

        again = command("score", job.model, *job.data, job.out, *flags, "--precision", "int8")
        assert "already finished" in again.stdout

    def test_calibration_mode_calibrates_and_scores_in_one_job(
        self, spec: Callable[..., ScoreSpec], place: Path, table: bytes
    ) -> None:
        told = Told()
        summary = run_score(spec(use_calib_mode=True), told)
        model = load_model(spec().model)
        ((url, made),) = TableStore().all(model.digest)
        assert made.encode() == table
        assert url in summary.calibration
        assert told.has("calibrating first")
        assert right(place / "out") >= 0.975

        # What was made serves other jobs.
        assert run_score(spec(use_calib_mode=True, out=place / "more")).calibration == summary.calibration
        assert len(TableStore().all(model.digest)) == 1

    def test_wrong_options_are_said_before_anything_is_calibrated(
        self, spec: Callable[..., ScoreSpec], place: Path
    ) -> None:
        told = Told()
        with pytest.raises(trtfleet.errors.MismatchError):
            run_score(spec(use_calib_mode=True, output="nothing"), told)
        assert not told.has("calibrating")
        assert not (place / "cache").exists()

    def test_a_network_that_answers_otherwise_is_refused_before_it_scores(
        self, spec: Callable[..., ScoreSpec], place: Path, table: bytes, command: Callable[..., Ran]
    ) -> None:
        file = place / "absurd.json"
        file.write_bytes(absurd(table).encode())
        job = spec(table=file)
        with pytest.raises(ParityError, match=r"the network in int8 loses 0\.\d+, more than --max-drop 0.01"):
            run_score(job)
        assert not (place / "out").exists() or not list((place / "out").glob("_trtfleet/g*"))

        told = Told()
        summary = run_score(replace(job, on_drop="warn"), told)
        assert told.has("warning: the network in int8 loses")
        assert any("more than --max-drop 0.01" in note for note in summary.notes)
        assert summary.rows == 1797
        assert "of 256 rows have the same answer" in summary.parity
        assert right(place / "out") < 0.9

        # What was measured holds for the job, and what it may be is said anew each time.
        with pytest.raises(ParityError):
            run_score(replace(job, out=str(place / "other")))
        ignored = run_score(replace(job, out=str(place / "other"), on_drop="ignore"))
        assert (ignored.rows, ignored.parity) == (1797, "")

    def test_a_resumed_job_keeps_its_table_and_is_not_compared_again(
        self, spec: Callable[..., ScoreSpec], stored: str, table: bytes, place: Path
    ) -> None:
        job = spec(shard_bytes=8000)
        with pytest.raises(KeyboardInterrupt):
            run_score(job, StopsAfter())
        newer = TableStore().put(changed(table, seed=9))

        told = Told()
        summary = run_score(job, told)
        assert not told.has("comparing")
        assert stored in summary.calibration
        assert any(newer in note for note in summary.notes)
        assert "of 256 rows have the same answer" in summary.parity
        assert 0 < summary.rows_scored < summary.rows == 1797

        fresh = run_score(replace(job, out=str(place / "fresh")))
        assert newer in fresh.calibration

    def test_an_output_begun_with_another_table_is_another_job(
        self, spec: Callable[..., ScoreSpec], stored: str, table: bytes, place: Path
    ) -> None:
        run_score(spec(on_drop="ignore"))
        file = place / "given.json"
        file.write_bytes(changed(table, seed=9).encode())
        with pytest.raises(FingerprintError, match="calibration was"):
            run_score(spec(table=file))

    def test_a_filter_does_not_keep_the_sample_from_being_drawn(
        self, spec: Callable[..., ScoreSpec], stored: str
    ) -> None:
        summary = run_score(spec(filter='split == "held-out"'))
        assert summary.rows == 359
        assert "of 256 rows have the same answer" in summary.parity

    def test_a_quantized_model_needs_no_table(
        self, spec: Callable[..., ScoreSpec], table: bytes, place: Path
    ) -> None:
        made = quantize(load_model(spec().model).proto, CalibrationTable.decode(table, "table"))
        onnx.save(made, str(place / "int8.onnx"))
        summary: Summary = run_score(spec(model=place / "int8.onnx"))
        assert (summary.calibration, summary.parity) == ("", "")
        assert right(place / "out") >= 0.975
        with pytest.raises(UsageError, match=r"already quantized, node .*: --table says nothing to it"):
            make_plan(spec(model=place / "int8.onnx", table=place / "t.json"))
