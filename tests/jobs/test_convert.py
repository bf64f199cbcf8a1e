"""Whole conversions: names, resuming, what is refused, and that a converted dataset scores the same."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper
from trtfleet.datasets.discovery import discover
from trtfleet.datasets.output import Output
from trtfleet.datasets.records import JobRecord
from trtfleet.datasets.shards import plan_shards
from trtfleet.datasets.storage import Storage
from trtfleet.errors import DatasetError, EmptyDatasetError, MismatchError, OutputError, UsageError
from trtfleet.jobs.commands.convert import convert
from trtfleet.jobs.convert import ConvertSpec, run_convert
from trtfleet.jobs.plan import make_plan
from trtfleet.jobs.spec import ScoreSpec
from trtfleet.jobs.task import score_task
from trtfleet.trt_actors.scorer import Scorer


def images(count: int, seed: int = 0) -> pa.Table:
    """Flat lists of 3x4x4 bytes, as ``image``, and a key."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 48), dtype=np.uint8)
    rows = pa.ListArray.from_arrays(pa.array(np.arange(count + 1) * 48, pa.int32()), pixels.reshape(-1))
    return pa.table({"id": np.arange(count), "image": rows})


def write(place: str, path: str, table: pa.Table, **how: Any) -> None:
    """Writes a Parquet file to a folder or bucket."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **how)
    Storage(place).put(path, sink.getvalue().to_pybytes())


def read(place: str, path: str) -> pa.Table:
    """Reads it back."""
    with Storage(place).open_input(path) as source:
        return pq.ParquetFile(source).read()


def pixels_of(table: pa.Table, name: str = "image") -> bytes:
    """All bytes of a column, one row behind the other."""
    rows = table[name].to_pylist()
    return b"".join(row if isinstance(row, bytes) else bytes(row) for row in rows)


def visible(place: str) -> list[str]:
    """The files of a place."""
    return [entry.path for entry in Storage(place).list()]


def spec(place: str, **options: Any) -> ConvertSpec:
    return ConvertSpec(data=(f"{place}/in",), out=f"{place}/out", **options)


def test_files_keep_their_names_and_rows(place: str) -> None:
    tables = {"a.parquet": images(70), "k=1/b.parquet": images(5, 1), "k=2/empty.parquet": images(0)}
    for path, table in tables.items():
        write(f"{place}/in", path, table, row_group_size=20)
    summary = run_convert(spec(place))
    assert visible(f"{place}/out") == sorted(tables)
    for path, table in tables.items():
        found = read(f"{place}/out", path)
        assert found.schema.field("image").type == pa.binary(48)
        assert pixels_of(found) == pixels_of(table)
        assert found["id"].equals(table["id"])
    assert (summary.files, summary.files_skipped, summary.rows) == (3, 0, 75)
    assert summary.bytes_before == sum(file.size_bytes for file in discover([f"{place}/in"]))
    assert summary.bytes_after == sum(file.size_bytes for file in discover([f"{place}/out"]))
    assert summary.lines()[:2] == [
        "image: list<uint8> -> uint8[48]",
        f"3 files with 75 rows in {place}/out",
    ]
    assert json.loads(json.dumps(summary.as_json()))["columns"] == [
        {"name": "image", "stored": "list<uint8>", "dtype": "uint8", "shape": [48]}
    ]


def test_a_second_call_does_only_what_is_new(place: str) -> None:
    write(f"{place}/in", "a.parquet", images(7))
    run_convert(spec(place))
    again = run_convert(spec(place))
    assert (again.files, again.files_skipped, again.rows) == (0, 1, 0)
    assert again.lines() == [f"nothing to do: all 1 files are in {place}/out already"]
    write(f"{place}/in", "b.parquet", images(3))
    more = run_convert(spec(place))
    assert (more.files, more.files_skipped, more.rows) == (1, 1, 3)
    assert "1 were there already" in more.lines()[1]


def test_changed_sources_and_options_are_noticed(place: str) -> None:
    write(f"{place}/in", "a.parquet", images(7))
    run_convert(spec(place))
    with pytest.raises(OutputError, match="with these options") as caught:
        run_convert(spec(place, compression="lz4"))
    assert "--overwrite" in caught.value.hint
    write(f"{place}/in", "a.parquet", images(9))
    with pytest.raises(OutputError, match="is there, but not made of"):
        run_convert(spec(place))
    assert read(f"{place}/out", "a.parquet").num_rows == 7
    assert run_convert(spec(place, overwrite=True)).rows == 9
    assert read(f"{place}/out", "a.parquet").num_rows == 9
    assert visible(f"{place}/out") == ["a.parquet"]


def test_files_of_somebody_else_are_not_replaced(place: str) -> None:
    write(f"{place}/in", "a.parquet", images(7))
    write(f"{place}/out", "a.parquet", images(1))
    with pytest.raises(OutputError, match=r"a\.parquet is there"):
        run_convert(spec(place))
    assert read(f"{place}/out", "a.parquet").num_rows == 1


def test_nothing_is_visible_until_all_is_well_and_finished_files_are_kept(place: str) -> None:
    ragged = pa.table({"id": [1], "image": pa.array([[1, 2]], pa.list_(pa.uint8()))})
    write(f"{place}/in", "a.parquet", images(7))
    write(f"{place}/in", "b.parquet", ragged)
    with pytest.raises(
        DatasetError, match=r"in/b\.parquet, row 0, column image: expected 48 elements, got 2"
    ):
        run_convert(spec(place, threads=1))
    (staged,) = visible(f"{place}/out")
    assert staged.startswith("_trtfleet/convert/")
    assert staged.endswith("/a.parquet")
    with pytest.raises(EmptyDatasetError):
        discover([f"{place}/out"])
    # Marks the file, so that it is seen to be the same one afterwards.
    marked = read(f"{place}/out", staged)
    with Storage(f"{place}/out").open_input(staged) as source:
        metadata = pq.ParquetFile(source).metadata.metadata
    marked = marked.slice(0, 6).replace_schema_metadata({**metadata, b"mark": b"1"})
    write(f"{place}/out", staged, marked)
    write(f"{place}/in", "b.parquet", images(2))
    assert run_convert(spec(place)).files == 2
    assert visible(f"{place}/out") == ["a.parquet", "b.parquet"]
    assert read(f"{place}/out", "a.parquet").schema.metadata[b"mark"] == b"1"


def test_what_a_killed_run_left_incomplete_is_done_again(tmp_path: Path) -> None:
    place = str(tmp_path)
    write(f"{place}/in", "a.parquet", images(7))
    run_convert(spec(place))
    whole = (tmp_path / "out" / "a.parquet").read_bytes()
    os.unlink(tmp_path / "out" / "a.parquet")
    for run, data in {"r1": whole[:-1], "r2": b"", "r3": whole[:100]}.items():
        Storage(f"{place}/out").put(f"_trtfleet/convert/{run}/a.parquet", data)
    run_convert(spec(place))
    assert pixels_of(read(f"{place}/out", "a.parquet")) == pixels_of(images(7))
    assert [str(path.relative_to(tmp_path)) for path in (tmp_path / "out").iterdir()] == ["out/a.parquet"]


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    place = str(tmp_path)
    write(f"{place}/in", "a.parquet", images(40), row_group_size=10)
    stale = discover([f"{place}/in"])
    os.utime(tmp_path / "in" / "a.parquet", (1, 1))

    def found(data: Any) -> Any:
        return stale

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trtfleet.jobs.convert.discover", found)
        with pytest.raises(DatasetError, match="changed while it was converted"):
            run_convert(spec(place))
    assert not (tmp_path / "out" / "a.parquet").exists()


def test_arrow_files_become_parquet(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    table = images(10)
    for name, opened in (("a.arrow", pa.ipc.new_file), ("b.arrows", pa.ipc.new_stream)):
        with pa.OSFile(str(tmp_path / "in" / name), "wb") as sink, opened(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    summary = run_convert(spec(str(tmp_path)))
    assert visible(str(tmp_path / "out")) == ["a.parquet", "b.parquet"]
    assert summary.rows == 20
    assert pixels_of(read(f"{tmp_path}/out", "b.parquet")) == pixels_of(table)


def test_only_the_columns_asked_for(tmp_path: Path) -> None:
    table = images(4).append_column("words", pa.array([[1], [2, 3], [], [4]]))
    write(f"{tmp_path}/in", "a.parquet", table)
    with pytest.raises(DatasetError, match="row 1, column words"):
        run_convert(spec(str(tmp_path)))
    run_convert(spec(str(tmp_path), column=("image",)))
    assert read(f"{tmp_path}/out", "a.parquet")["words"].equals(table["words"])


def test_all_files_get_the_first_one_s_shape(tmp_path: Path) -> None:
    write(f"{tmp_path}/in", "a.parquet", images(0))
    write(f"{tmp_path}/in", "b.parquet", images(2))
    write(f"{tmp_path}/in", "c.parquet", pa.table({"image": pa.array([[1] * 3] * 2, pa.list_(pa.uint8()))}))
    with pytest.raises(DatasetError, match=r"c\.parquet, row 0, column image: expected 48 elements, got 3"):
        run_convert(spec(str(tmp_path)))


def test_datasets_without_anything_to_convert_are_refused(tmp_path: Path) -> None:
    write(f"{tmp_path}/in", "a.parquet", pa.table({"id": [1], "photo": [b"\xff\xd8\xff"]}))
    with pytest.raises(MismatchError, match="no column can be converted among: id int64, photo binary") as e:
        run_convert(spec(str(tmp_path)))
    assert "--resize" in e.value.hint
    write(f"{tmp_path}/in", "a.parquet", images(0))
    with pytest.raises(EmptyDatasetError):
        run_convert(spec(str(tmp_path)))


def test_old_and_new_files_do_not_mix(tmp_path: Path) -> None:
    place = str(tmp_path)
    write(f"{place}/in", "a.parquet", images(1))
    write(f"{place}/more", "a.pq", images(1))
    for out in ("in", "in/new"):
        with pytest.raises(UsageError, match="lies inside the data"):
            run_convert(ConvertSpec(data=(f"{place}/in",), out=f"{place}/{out}"))
    with pytest.raises(UsageError, match="would replace the data"):
        run_convert(ConvertSpec(data=(f"{place}/in/a.parquet",), out=f"{place}/in"))
    with pytest.raises(UsageError, match="would both become"):
        run_convert(ConvertSpec(data=(f"{place}/in", f"{place}/more"), out=f"{place}/out"))
    with pytest.raises(OutputError, match="is a file"):
        run_convert(ConvertSpec(data=(f"{place}/in",), out=f"{place}/more/a.pq"))


@pytest.mark.parametrize(
    "options",
    [
        {"data": ()},
        {"column": ("a", "a")},
        {"resize": (0, 4)},
        {"channels": 2},
        {"compression": "gzip"},
        {"threads": 0},
    ],
)
def test_malformed_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ConvertSpec(**{"data": ("in",), "out": "out", **options})


@pytest.fixture
def channel_means(tmp_path: Path) -> Path:
    """A model of images: float32[N, 3, 4, 4] to each channel's mean, times its number."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [1, 3], [1, 2, 3])
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["image"], ["m"], axes=[2, 3], keepdims=0),
            helper.make_node("Mul", ["m", "w"], ["y"]),
        ],
        "means",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [weights],
    )
    path = tmp_path / "means.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def score(model: Path, data: str, out: Path, **options: Any) -> pa.Table:
    """Scores in this process, without Ray."""
    plan = make_plan(ScoreSpec.of({"model": model, "data": data, "out": out, "keep": "id", **options}))
    shards = plan_shards(plan.dataset.files, 1 << 30)
    record = JobRecord(
        fingerprint=plan.fingerprint, resolved={"shard_bytes": 1 << 30}, shards=len(shards), rows=1
    )
    output = Output.create(plan.storage, record)
    parts = []
    with Scorer(score_task(plan, output)) as scorer:
        for shard in shards:
            part = scorer.score(shard, "a-1").record.part
            assert part is not None
            parts.append(pq.read_table(output.storage.describe(part)))
    return pa.concat_tables(parts)


@pytest.mark.parametrize("options", [{}, {"normalize": "imagenet"}, {"layout": "nhwc"}])
def test_a_converted_dataset_scores_the_same(
    tmp_path: Path, channel_means: Path, options: dict[str, Any]
) -> None:
    write(f"{tmp_path}/in", "a.parquet", images(100), row_group_size=30)
    run_convert(spec(str(tmp_path)))
    how = {"batch_size": 16, **options}
    before = score(channel_means, f"{tmp_path}/in", tmp_path / "before", **how)
    after = score(channel_means, f"{tmp_path}/out", tmp_path / "after", **how)
    assert before.num_rows == 100
    assert after.equals(before)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = images(3).append_column("words", pa.array([[1], [2, 3], []]))
    write("in", "a.parquet", table)
    arguments = ["in", "out", "--column", "image", "--compression", "lz4", "--threads", "1", "--json"]
    done = CliRunner().invoke(convert, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["rows"] == 3
    assert done.stderr == ""
    footer = pq.read_metadata(tmp_path / "out" / "a.parquet")
    assert footer.row_group(0).column(1).compression == "LZ4"
    again = CliRunner().invoke(convert, arguments[:-1], catch_exceptions=False)
    assert again.stdout == f"nothing to do: all 1 files are in {tmp_path}/out already\n"
    refused = CliRunner().invoke(convert, [*arguments, "--resize", "large"])
    assert isinstance(refused.exception, UsageError)


def test_progress_is_told_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtfleet.jobs.convert._SAY_EVERY_S", 0.0)
    write(f"{tmp_path}/in", "a.parquet", images(20), row_group_size=10)
    said: list[str] = []
    run_convert(spec(str(tmp_path)), said.append)
    assert said[-1] == "100.0%  20 of 20 rows"
