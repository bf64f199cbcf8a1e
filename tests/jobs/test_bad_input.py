"""Whatever is wrong with a job's input ends in one line, a hint and the documented exit code."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper

MODEL, DATA, OUTPUT, MISMATCH = 3, 4, 7, 6
USAGE, EMPTY, CLUSTER, BACKEND, HOOK = 2, 5, 9, 11, 12


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


@dataclass
class Place:
    """A folder with a good model and good data, to be spoilt."""

    folder: Path
    linear_model: Callable[..., Path]
    vectors: Callable[..., Path]
    command: Callable[..., Any]
    model: Path = field(init=False)
    data: Path = field(init=False)
    out: Path = field(init=False)

    def __post_init__(self) -> None:
        self.model = self.linear_model()
        self.data = self.vectors(rows=60, row_group_rows=20)
        self.out = self.folder / "out"

    def fails(
        self, code: int, fact: str, *flags: str, model: Path | None = None, data: Any = None, out: Any = None
    ) -> None:
        """Runs ``trtfleet score`` and checks how it fails."""
        target = out or self.out
        before = visible(Path(target))
        sources = data if isinstance(data, list) else [data or self.data]
        # Later flags win.
        arguments = [model or self.model, *sources, target, "--actors", "1", *flags]
        check(self.command("score", *arguments), code, fact)
        assert visible(Path(target)) == before


def visible(out: Path) -> set[str]:
    return {entry.name for entry in out.iterdir()} - {"_trtfleet"} if out.is_dir() else set()


def check(ran: Any, code: int, fact: str) -> None:
    lines = ran.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    hints = [line for line in lines if line.startswith("hint: ") and len(line) > len("hint: ")]
    assert (ran.code, len(errors), len(hints)) == (code, 1, 1), ran
    assert fact in errors[0]
    assert lines[-2:] == [errors[0], hints[0]]
    assert "Traceback" not in ran.stderr
    assert ran.stdout == ""


@pytest.fixture
def place(
    tmp_path: Path,
    linear_model: Callable[..., Path],
    vectors: Callable[..., Path],
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, linear_model, vectors, command)


class TestModels:
    def test_not_onnx(self, place: Place) -> None:
        path = place.folder / "bad.onnx"
        for content, fact in (
            (b"", "is empty (0 bytes)"),
            (b"weights of a model\n" * 50, "is not an ONNX model"),
            (place.data.read_bytes(), "is a Parquet file, not an ONNX model"),
        ):
            path.write_bytes(content)
            place.fails(MODEL, f"{path}: {fact}", model=path)

    def test_truncated(self, place: Place) -> None:
        path = place.folder / "cut.onnx"
        whole = place.model.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        place.fails(MODEL, f"{path}: is not an ONNX model or is truncated", model=path)

    def test_missing(self, place: Place) -> None:
        path = place.folder / "nowhere.onnx"
        place.fails(MODEL, f"{path}: does not exist", model=path)
        place.fails(MODEL, f"{place.folder}: is a directory", model=place.folder)

    def test_external_data_outside_the_models_folder(self, place: Place) -> None:
        folder = place.folder / "model"
        folder.mkdir()
        proto = onnx.load(place.model)
        (tensor,) = proto.graph.initializer
        (place.folder / "weights.bin").write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../weights.bin")
        path = folder / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        place.fails(MODEL, "../weights.bin", model=path)

    def test_unknown_operator(self, place: Place) -> None:
        proto = onnx.load(place.model)
        proto.graph.node[0].op_type = "MatMull"
        path = place.folder / "odd.onnx"
        path.write_bytes(proto.SerializeToString())
        place.fails(MODEL, "MatMull", model=path)

    @pytest.mark.usefixtures("ray_session")
    def test_a_model_that_the_runtime_refuses(self, place: Place) -> None:
        path = place.folder / "custom.onnx"
        graph = helper.make_graph(
            [helper.make_node("Nothing", ["x"], ["y"], domain="com.example")],
            "custom",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
        place.fails(MODEL, "cannot load the model", model=path)


class TestData:
    def test_missing(self, place: Place) -> None:
        missing = place.folder / "nowhere.parquet"
        place.fails(DATA, f"{missing} does not exist", data=missing)
        place.fails(EMPTY, "no Parquet or Arrow file in", data=str(place.folder / "*.pq"))

    def test_truncated_parquet(self, place: Place) -> None:
        whole = place.data.read_bytes()
        for size in (0, 3, 100, len(whole) // 2, len(whole) - 5):
            place.data.write_bytes(whole[:size])
            place.fails(DATA, str(place.data))

    def test_truncated_parquet_in_the_middle_of_a_folder(self, place: Place) -> None:
        paths = [place.vectors(rows=20, name=f"folder/{i}.parquet") for i in range(5)]
        paths[2].write_bytes(paths[2].read_bytes()[:-20])
        place.fails(DATA, str(paths[2]), data=place.folder / "folder")

    @pytest.mark.usefixtures("ray_session")
    def test_a_damaged_column_is_only_seen_while_reading(self, place: Place) -> None:
        metadata = pq.read_metadata(place.data)
        column = metadata.row_group(1).column(1)
        content = bytearray(place.data.read_bytes())
        start = column.dictionary_page_offset or column.data_page_offset
        content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
        place.data.write_bytes(content)
        place.fails(DATA, f"cannot read {place.data}, row group 1", "--shard-bytes", "300")

    def test_other_formats(self, place: Place) -> None:
        csv = place.folder / "data.csv"
        csv.write_text("id,x\n1,2\n")
        place.fails(DATA, f"{csv} is neither Parquet nor Arrow IPC", data=csv)
        fake = place.folder / "data.parquet"
        fake.write_text("id,x\n1,2\n")
        place.fails(DATA, str(fake), data=fake)
        for name in ("data.arrow", "data.arrows"):
            (place.folder / name).write_text("id,x\n1,2\n")
            place.fails(DATA, name, data=place.folder / name)

    def test_the_same_file_twice(self, place: Place) -> None:
        place.fails(DATA, "is in the dataset twice", data=[place.data, place.data])

    def test_files_that_differ_in_type(self, place: Place) -> None:
        other = place.folder / "other.parquet"
        pq.write_table(pa.table({"id": ["a"], "x": [[1.0, 2.0, 3.0, 4.0]]}), other)
        place.fails(MISMATCH, f"{other} holds column 'x' as", data=[place.data, other])
        pq.write_table(pa.table({"id": ["a"]}), other)
        place.fails(MISMATCH, f"{other} lacks column 'x'", data=[place.data, other])

    def test_no_rows(self, place: Place) -> None:
        pq.write_table(pq.read_table(place.data).slice(0, 0), place.folder / "empty.parquet")
        place.fails(EMPTY, "the dataset has no rows", data=place.folder / "empty.parquet")
        (place.folder / "folder").mkdir()
        place.fails(EMPTY, "no Parquet or Arrow file in", data=place.folder / "folder")

    @pytest.mark.usefixtures("ray_session")
    def test_no_row_passes_the_filter(self, place: Place) -> None:
        place.fails(EMPTY, "id > 1000", "--filter", "id > 1000")
        assert not place.out.exists()
        place.fails(EMPTY, "id > 5 and id < 6", "--filter", "id > 5 and id < 6")
        # The attempt is on record, and repeating it changes nothing.
        place.fails(EMPTY, "id > 5 and id < 6", "--filter", "id > 5 and id < 6")


class TestColumns:
    def test_missing(self, place: Place) -> None:
        place.fails(MISMATCH, "input x wants column vec, which the data lacks", "--input", "x=vec")
        place.fails(MISMATCH, "--keep names column 'key', which the data lacks", "--keep", "key")
        place.fails(MISMATCH, "--filter names column 'label', which the data lacks", "--filter", "label == 3")
        place.fails(MISMATCH, "--input maps z, but the model's inputs are x", "--input", "z=x")
        place.fails(MISMATCH, "--mask names input 'm', the model has x", "--mask", "m")
        place.fails(MISMATCH, "the model has no output 'logits'", "--output", "logits")

    def test_wrong_rank_and_size(self, place: Place) -> None:
        place.fails(MISMATCH, "input x wants float32[N, 4], column id holds int64", "--input", "x=id")
        wide = place.vectors(rows=5, features=7, name="wide.parquet")
        place.fails(MISMATCH, "input x wants float32[N, 4], column x holds", data=wide)
        nested = place.folder / "nested.parquet"
        pq.write_table(pa.table({"x": pa.array([[[1.0, 2.0], [3.0, 4.0]]])}), nested)
        place.fails(MISMATCH, "input x wants float32[N, 4], column x holds", data=nested)

    def test_wrong_type(self, place: Place) -> None:
        path = place.folder / "texts.parquet"
        pq.write_table(pa.table({"x": ["a", "b"]}), path)
        place.fails(MISMATCH, "input x wants float32[N, 4], column x holds string", data=path)
        whole = place.folder / "whole.onnx"
        graph = helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            "whole",
            [helper.make_tensor_value_info("x", TensorProto.INT64, ["N", 4])],
            [helper.make_tensor_value_info("y", TensorProto.INT64, ["N", 4])],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), whole)
        place.fails(MISMATCH, "input x wants int64[N, 4], column x holds", model=whole)
        place.fails(
            MISMATCH,
            "--emit argmax needs a floating output",
            "--emit",
            "argmax",
            "--input",
            "x=id,id,id,id",
            model=whole,
        )

    def test_a_filter_that_does_not_fit(self, place: Place) -> None:
        place.fails(MISMATCH, "--filter 'id == \"a\"' does not fit the data", "--filter", 'id == "a"')

    def test_a_kept_column_named_as_an_output(self, place: Place) -> None:
        path = place.folder / "y.parquet"
        table = pq.read_table(place.data)
        pq.write_table(table.append_column("y", table["id"]), path)
        place.fails(MISMATCH, "'y' is a kept column and a model output", "--keep", "y", data=path)

    def test_a_batch_larger_than_the_models(self, place: Place) -> None:
        fixed = place.linear_model(batch=4, name="fixed.onnx")
        place.fails(
            MISMATCH,
            "--batch-size 8 exceeds the model's fixed batch size 4",
            "--batch-size",
            "8",
            model=fixed,
        )


class TestOutputs:
    def test_a_file(self, place: Place) -> None:
        place.out.write_text("mine")
        place.fails(OUTPUT, f"{place.out} is a file")
        assert place.out.read_text() == "mine"

    def test_unwritable(self, place: Place) -> None:
        below = place.data / "out"
        place.fails(OUTPUT, f"cannot write to {below}", out=below)
        place.fails(OUTPUT, "/proc/trtfleet", out="/proc/trtfleet")

    def test_files_of_another_program(self, place: Place) -> None:
        place.out.mkdir()
        (place.out / "notes.txt").write_text("mine")
        place.fails(OUTPUT, f"{place.out} is not empty: it holds notes.txt, which trtfleet did not write")
        place.fails(OUTPUT, "notes.txt, which trtfleet did not write", "--overwrite")
        assert [entry.name for entry in place.out.iterdir()] == ["notes.txt"]

    def test_records_of_a_later_version(self, place: Place) -> None:
        record = place.out / "_trtfleet" / "g0001" / "job.json"
        record.parent.mkdir(parents=True)
        for content, fact in ((b'{"format": 99}', "has format 99"), (b"{", "is damaged")):
            record.write_bytes(content)
            place.fails(OUTPUT, f"{record} {fact}")

    def test_status_of_nothing(self, place: Place) -> None:
        for path in (place.folder / "nowhere", place.folder, place.data):
            check(place.command("status", path), OUTPUT, f"{path} holds no output of trtfleet")


class TestOptions:
    @pytest.mark.parametrize(
        ("flags", "fact"),
        [
            (["--backend", "tpu"], "'tpu' is not one of"),
            (["--batch-size", "many"], "'many' is neither a whole number nor 'auto'"),
            (["--batch-size", "0"], "batch_size must be >= 1, got 0"),
            (["--no-such-flag"], "--no-such-flag"),
            (["--normalize", "a:b"], "normalize 'a:b' has a part that is not a number"),
            (["--normalize", "1:0"], "normalize needs stds > 0, got 0"),
            (["--emit", "top5"], "emit 'top5' is not known"),
            (["--emit", "topk:x"], "emit 'topk:x' has the count 'x'"),
            (["--resize", "224"], "resize '224' is no size"),
            (["--filter", "id ="], "--filter 'id =' cannot be parsed"),
            (["--filter", "open('x')"], "--filter does not know"),
            (["--filter", "id"], "--filter"),
            (["--input", "x"], "input 'x' is mapped to '', no column"),
            (["--compression", "rar"], "'rar' is not one of"),
            (["--max-bad-rows", "-1"], "max_bad_rows must be >= 0"),
            (["--keep", "id", "--keep", "id"], "a column is kept twice"),
        ],
    )
    def test_malformed(self, flags: Sequence[str], fact: str, place: Place) -> None:
        place.fails(MISMATCH if flags == ["--filter", "id"] else USAGE, fact, *flags)

    def test_nothing_named(self, place: Place) -> None:
        check(place.command("score"), USAGE, "model is missing")
        check(place.command("score", place.model), USAGE, "is missing")
        check(place.command("score", place.model, place.out), USAGE, "data is missing")
        check(place.command("scroe"), USAGE, "No such command 'scroe'")
        check(place.command("status"), USAGE, "Missing argument 'OUT'")

    def test_unsupported_places(self, place: Place) -> None:
        place.fails(USAGE, "gs:// is not supported", out="gs://bucket/out")
        place.fails(USAGE, "gs:// is not supported", data="gs://bucket/data")
        place.fails(USAGE, "names no bucket", out="s3:///out")

    def test_topk_of_more_than_there_is(self, place: Place) -> None:
        place.fails(MISMATCH, "5", "--emit", "topk:5")

    @pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime-cuda"])
    @pytest.mark.usefixtures("ray_session")
    def test_a_backend_that_is_not_here(self, backend: str, place: Place) -> None:
        expected = (BACKEND, f"backend {backend} is not available: the cluster has no GPU")
        place.fails(*expected, "--backend", backend)

    @pytest.mark.usefixtures("ray_session")
    def test_more_cpus_than_a_node_has(self, place: Place) -> None:
        place.fails(CLUSTER, "an actor wants 5000 CPUs", "--cpus-per-actor", "5000")

    @pytest.mark.parametrize(
        ("content", "fact"),
        [
            ("model: [", "is not YAML"),
            ("- model", "holds no options"),
            ("modell: m.onnx", "unknown option 'modell'"),
            ("normalize: 127:58", "normalize must be a text, got 7678"),
        ],
    )
    def test_job_files(self, content: str, fact: str, place: Place) -> None:
        path = place.folder / "job.yaml"
        path.write_text(content)
        place.fails(USAGE, fact, "--spec", str(path))

    def test_a_job_file_that_is_not_there(self, place: Place) -> None:
        path = place.folder / "nowhere.yaml"
        place.fails(USAGE, f"cannot read {path}: No such file", "--spec", str(path))


class TestHooks:
    @pytest.fixture
    def hooks(self, place: Place, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
        """A module of hooks in the working folder; its name."""
        name = f"hooks_of_{abs(hash(request.node.nodeid))}"
        source = """
            import numpy as np
            def fewer(batch): return batch.slice(0, batch.num_rows - 1)
            def wrong_name(batch): return {"z": np.zeros((batch.num_rows, 4), np.float32)}
            def wrong_shape(batch): return {"x": np.zeros((batch.num_rows, 5), np.float32)}
            def nothing(batch): return None
            def more(outputs, kept): return {"y": np.zeros(kept.num_rows + 1)}
            def taken(outputs, kept): return {"id": outputs["y"]}
            def unwritable(outputs, kept): return {"y": np.array([object()] * kept.num_rows)}
            number = 3
        """
        (place.folder / f"{name}.py").write_text(textwrap.dedent(source))
        monkeypatch.setattr(sys, "path", list(sys.path))
        return name

    def test_missing(self, place: Place, hooks: str) -> None:
        place.fails(HOOK, "cannot import nowhere for hook nowhere:f", "--preprocess", "nowhere:f")
        place.fails(HOOK, f"{hooks} has no function f", "--preprocess", f"{hooks}:f")
        place.fails(HOOK, f"{hooks} has no function number", "--postprocess", f"{hooks}:number")
        place.fails(HOOK, "'nothing' names no hook", "--postprocess", "nothing")

    def test_a_module_that_does_not_import(self, place: Place) -> None:
        (place.folder / "broken_hooks.py").write_text("def f(:\n")
        place.fails(HOOK, "cannot import broken_hooks", "--preprocess", "broken_hooks:f")
        (place.folder / "exiting_hooks.py").write_text("import sys\nsys.exit(3)\n")
        place.fails(HOOK, "cannot import exiting_hooks", "--preprocess", "exiting_hooks:f")

    @pytest.mark.parametrize(
        ("role", "function", "code", "fact"),
        [
            ("preprocess", "fewer", HOOK, "the preprocess hook returned 59 rows in its batch, got 60"),
            ("preprocess", "wrong_name", HOOK, "the preprocess hook returned ['z'], the model wants x"),
            (
                "preprocess",
                "wrong_shape",
                HOOK,
                "the preprocess hook returned float32[60, 5], the model wants x",
            ),
            ("preprocess", "nothing", HOOK, "the preprocess hook returned NoneType"),
            ("postprocess", "more", HOOK, "the postprocess hook returned 61 rows in y, got 60"),
            ("postprocess", "taken", HOOK, "output column 'id' is also a kept column"),
            ("postprocess", "unwritable", HOOK, "the postprocess hook's arrays cannot be written"),
        ],
    )
    @pytest.mark.usefixtures("ray_session")
    def test_one_that_breaks_its_contract(
        self, role: str, function: str, code: int, fact: str, place: Place, hooks: str
    ) -> None:
        data = place.vectors(rows=60, row_group_rows=60, name="one_group.parquet")
        flags = [f"--{role}", f"{hooks}:{function}", "--keep", "id", "--batch-size", "64"]
        place.fails(code, fact, *flags, data=data)


def test_a_cluster_that_is_not_there(
    tmp_path: Path, linear_model: Callable[..., Path], vectors: Callable[..., Path]
) -> None:
    out = tmp_path / "out"
    arguments = ["score", linear_model(), vectors(rows=20), out, "--address", "127.0.0.1:1"]
    start_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", "from trtfleet.jobs.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        timeout=120,
        check=False,
    )
    check(Ran(done.returncode, done.stdout, done.stderr), CLUSTER, "127.0.0.1:1")
    assert time.monotonic() - start_s < 30
    assert visible(out) == set()


def test_an_output_inside_the_data_is_refused(place: Place) -> None:
    folder = place.data.parent
    place.fails(USAGE, "lies inside the data", data=folder, out=folder / "scores")
    assert not (folder / "scores").exists()
