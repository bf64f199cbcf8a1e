"""Scoring jobs as a user sees them: every result is compared with ONNX Runtime on the whole table."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import trtfleet
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from trtfleet.datasets.merge import plan_merge
from trtfleet.errors import BadRowsError, FingerprintError, OutputError
from trtfleet.jobs import score_output
from trtfleet.jobs.progress import Silent, Snapshot
from trtfleet.jobs.score import run_score
from trtfleet.jobs.spec import ScoreSpec
from trtfleet.jobs.summary import Summary

pytestmark = pytest.mark.usefixtures("ray_session")

FLOAT, INT64, UINT8 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8
Tensor = tuple[str, int, Sequence[int | str]]


def save_model(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    constants: Mapping[str, np.ndarray] | None = None,
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(*tensor) for tensor in inputs],
        [helper.make_tensor_value_info(*tensor) for tensor in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def run_plain(model: Path, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """ONNX Runtime by itself, all rows in one batch."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def score(model: Path, data: Any, out: Path, **options: Any) -> Summary:
    return trtfleet.score(model, data, out, **{"batch_size": 32, "actors": 1, **options})


def dense(column: pa.ChunkedArray) -> np.ndarray:
    """A column of numbers, fixed-size lists or tensors as one array."""
    array = column.combine_chunks()
    if isinstance(array.type, pa.FixedShapeTensorType):
        return np.stack(array.to_numpy_ndarray())
    if pa.types.is_fixed_size_list(array.type):
        return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), array.type.list_size)
    return array.to_numpy(zero_copy_only=False)


def inputs_of(table: pa.Table) -> np.ndarray:
    return dense(table["x"])


def top_level(out: Path) -> list[str]:
    return sorted(entry.name for entry in out.iterdir())


def final_bytes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("part-*.parquet"))}


def quarantined(out: Path) -> list[dict[str, Any]]:
    files = out.glob("_trtfleet/*/quarantine/*.parquet")
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    return sorted(rows, key=lambda row: (row["file"], row["row"]))


class StopsAfter(Silent):
    """Interrupts the job, as Ctrl-C does, once some shards are finished."""

    def __init__(self, shards: int) -> None:
        self._shards = shards

    def update(self, snapshot: Snapshot) -> None:
        if snapshot.shards_done >= self._shards:
            raise KeyboardInterrupt


class TestInputs:
    def test_files_globs_and_folders_in_the_order_given(
        self, tmp_path: Path, linear_model: Callable[..., Path], vectors: Callable[..., Path]
    ) -> None:
        names = [
            "folder/b.parquet",
            "folder/sub/a.parquet",
            "glob/2.parquet",
            "glob/1.parquet",
            "one.parquet",
        ]
        paths = {name: vectors(rows=40 + 7 * i, name=name) for i, name in enumerate(names)}
        model, out = linear_model(), tmp_path / "out"
        data = [paths["one.parquet"], str(tmp_path / "glob" / "*.parquet"), tmp_path / "folder"]
        summary = score(model, data, out, keep="id")

        order = [
            "one.parquet",
            "glob/1.parquet",
            "glob/2.parquet",
            "folder/b.parquet",
            "folder/sub/a.parquet",
        ]
        whole = pa.concat_tables([pq.read_table(paths[name]) for name in order])
        found = pq.read_table(out)
        assert found.schema.equals(
            pa.schema({"id": pa.int64(), "y": pa.list_(pa.field("element", pa.float32()), 2)})
        )
        assert found["id"].equals(whole["id"])
        np.testing.assert_allclose(
            dense(found["y"]), run_plain(model, {"x": inputs_of(whole)})["y"], rtol=1e-6
        )
        assert (summary.rows, summary.bad_rows, summary.rows_scored) == (len(whole), 0, len(whole))
        assert top_level(out) == ["_SUCCESS", "_trtfleet", "part-00000.parquet"]

    def test_hive_partition_is_kept_and_filtered_on(
        self, tmp_path: Path, linear_model: Callable[..., Path], vectors: Callable[..., Path]
    ) -> None:
        tables = []
        for day, city in ((1, "Bonn"), (2, "S%C3%A3o Paulo"), (3, "__HIVE_DEFAULT_PARTITION__")):
            path = vectors(rows=30 + day, name=f"data/day={day}/city={city}/x.parquet", row_group_rows=10)
            whole = pq.read_table(path, partitioning=None)
            name = {1: "Bonn", 2: "São Paulo", 3: None}[day]
            whole = whole.append_column("day", pa.array([day] * len(whole)))
            tables.append(whole.append_column("city", pa.array([name] * len(whole), pa.string())))
        model, out = linear_model(), tmp_path / "out"
        where = 'day >= 2 and (id < 5 or city == "São Paulo" and id >= 28 or city is None and id == 32)'
        score(model, tmp_path / "data", out, keep=["city", "id", "day"], filter=where)

        table = pa.concat_tables(tables)
        passed = table.filter(
            (pc.field("day") >= 2)
            & ((pc.field("id") < 5) | ((pc.field("day") == 2) & (pc.field("id") >= 28)))
            | ((pc.field("day") == 3) & (pc.field("id") == 32))
        )
        found = pq.read_table(out)
        assert len(found) == 5 + 4 + 5 + 1
        assert found.column_names == ["city", "id", "day", "y"]
        assert found.select(["city", "id", "day"]).equals(passed.select(["city", "id", "day"]))
        np.testing.assert_allclose(
            dense(found["y"]), run_plain(model, {"x": inputs_of(passed)})["y"], rtol=1e-6
        )

    @pytest.mark.parametrize("name", ["data.arrow", "data.arrows", "data.unknown"])
    def test_arrow_ipc(
        self, name: str, tmp_path: Path, linear_model: Callable[..., Path], vectors: Callable[..., Path]
    ) -> None:
        table = pq.read_table(vectors(rows=300))
        path, model, out = tmp_path / name, linear_model(), tmp_path / "out"
        new = pa.ipc.new_stream if name == "data.arrows" else pa.ipc.new_file
        with new(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=70)
        score(model, path, out, keep="id", filter="id != 133")

        table = table.filter(pc.field("id") != 133)
        found = pq.read_table(out)
        assert found["id"].equals(table["id"])
        np.testing.assert_allclose(
            dense(found["y"]), run_plain(model, {"x": inputs_of(table)})["y"], rtol=1e-6
        )

    def test_filter_prunes_row_groups_and_drops_rows_within(
        self, tmp_path: Path, linear_model: Callable[..., Path], vectors: Callable[..., Path]
    ) -> None:
        data, model, out = vectors(rows=1000, row_group_rows=100), linear_model(), tmp_path / "out"
        score(model, data, out, filter="id >= 250 and id < 620", keep=["id"])
        table = pq.read_table(data).slice(250, 370)
        found = pq.read_table(out)
        assert found["id"].equals(table["id"])
        np.testing.assert_allclose(
            dense(found["y"]), run_plain(model, {"x": inputs_of(table)})["y"], rtol=1e-6
        )
        assert trtfleet.status(out).rows_planned == 500

    def test_bytes_are_normalized_inside_the_network(self, digits: tuple[Path, Path], tmp_path: Path) -> None:
        model, data = digits
        score(model, data, tmp_path / "out", normalize="0:16", keep=["id", "label", "split"], batch_size=64)
        table, found = pq.read_table(data), pq.read_table(tmp_path / "out")
        images = np.frombuffer(b"".join(table["image"].to_pylist()), np.uint8).reshape(-1, 1, 8, 8)
        expected = run_plain(model, {"image": images.astype(np.float32) / 16})["logits"]
        for name in ("id", "label", "split"):
            assert found[name].equals(table[name])
        np.testing.assert_allclose(dense(found["logits"]), expected, rtol=1e-4, atol=1e-5)

    def test_nhwc_bytes_feed_an_nchw_model(self, tmp_path: Path) -> None:
        weights = np.random.default_rng(1).standard_normal((2, 3, 3, 3)).astype(np.float32)
        model = save_model(
            tmp_path / "conv.onnx",
            [helper.make_node("Conv", ["x", "w"], ["y"])],
            [("x", FLOAT, ["N", 3, 4, 5])],
            [("y", FLOAT, ["N", 2, 2, 3])],
            {"w": weights},
        )
        images = np.random.default_rng(2).integers(0, 256, (50, 4, 5, 3), np.uint8)
        column = pa.array([image.tobytes() for image in images], pa.binary(60))
        pq.write_table(pa.table({"x": column}), tmp_path / "data.parquet", row_group_size=20)
        score(model, tmp_path / "data.parquet", tmp_path / "out", layout="nhwc", normalize="1,2,3:4,5,6")
        scaled = (images - np.float32([1, 2, 3])) / np.float32([4, 5, 6])
        expected = run_plain(model, {"x": np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))})["y"]
        found = pq.read_table(tmp_path / "out")
        assert found.schema.field("y").type == pa.fixed_shape_tensor(pa.float32(), [2, 2, 3])
        np.testing.assert_allclose(dense(found["y"]), expected, rtol=1e-4, atol=1e-3)

    def test_png_images_of_many_sizes_are_resized(self, tmp_path: Path) -> None:
        model = save_model(
            tmp_path / "mean.onnx",
            [helper.make_node("ReduceMean", ["x"], ["y"], axes=[3], keepdims=0)],
            [("x", FLOAT, ["N", 3, "H", "W"])],
            [("y", FLOAT, ["N", 3, "H"])],
        )
        random = np.random.default_rng(3)
        sizes = random.integers(4, 30, (24, 2))
        images = [Image.fromarray(random.integers(0, 256, (h, w, 3), np.uint8)) for h, w in sizes.tolist()]
        encoded = []
        for image in images:
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            encoded.append(buffer.getvalue())
        pq.write_table(pa.table({"picture": encoded, "id": range(24)}), tmp_path / "data.parquet")
        score(model, tmp_path / "data.parquet", tmp_path / "out", resize="6x5", keep="id", batch_size=7)
        resized = [np.asarray(image.resize((5, 6), Image.Resampling.BILINEAR)) for image in images]
        pixels = np.stack(resized).transpose(0, 3, 1, 2).astype(np.float32)
        found = pq.read_table(tmp_path / "out")
        assert found["id"].to_pylist() == list(range(24))
        # H is free in the model, so the column's type cannot depend on it.
        assert found["y"].type == pa.list_(pa.large_list(pa.float32()), 3)
        written = np.array(found["y"].to_pylist(), np.float32)
        np.testing.assert_allclose(written, run_plain(model, {"x": pixels})["y"], rtol=1e-5)

    @pytest.mark.parametrize("is_ragged", [False, True])
    def test_kept_columns_come_out_as_they_went_in(self, is_ragged: bool, tmp_path: Path) -> None:
        rows = 90
        words = [None if i % 11 == 0 else f"word {i % 7}" for i in range(rows)]
        flat = pa.array(np.arange(rows * 6, dtype=np.int16))
        tensor = pa.fixed_shape_tensor(pa.int16(), [2, 3])
        columns = {
            "text": pa.array(words),
            "large": pa.array(words, pa.large_string()),
            "category": pa.array(words).dictionary_encode(),
            "when": pa.array(range(rows), pa.timestamp("us", "Europe/Berlin")),
            "money": pa.array([Decimal(i) / 100 for i in range(rows)], pa.decimal128(9, 2)),
            "pair": pa.array([{"a": i, "b": word} for i, word in enumerate(words)]),
            "words": pa.array([None if i % 5 == 0 else words[: i % 4] for i in range(rows)]),
            "bytes": pa.array([bytes([i, 255 - i]) for i in range(rows)], pa.binary(2)),
            "flag": pa.array([None if i % 3 == 0 else i % 2 == 0 for i in range(rows)]),
            "none": pa.nulls(rows),
            "half": pa.array(np.arange(rows, dtype=np.float16)),
            "tensor": pa.ExtensionArray.from_storage(tensor, pa.FixedSizeListArray.from_arrays(flat, 6)),
        }
        lengths = [1 + i % 4 for i in range(rows)] if is_ragged else [3] * rows
        column = pa.array([[i] * n for i, n in enumerate(lengths)], pa.list_(pa.int64()))
        table = pa.table({**columns, "ids": column})
        pq.write_table(table, tmp_path / "data.parquet", row_group_size=25)
        model = save_model(
            tmp_path / "copy.onnx",
            [helper.make_node("Identity", ["ids"], ["copy"])],
            [("ids", INT64, ["N", "L" if is_ragged else 3])],
            [("copy", INT64, ["N", "L" if is_ragged else 3])],
        )
        out = tmp_path / "out"
        summary = score(
            model, tmp_path / "data.parquet", out, keep=list(columns), shard_bytes=1500, batch_size=8
        )
        assert summary.shards > 3
        stored = pq.read_table(tmp_path / "data.parquet")
        found = pq.read_table(out)
        assert found.column_names == [*columns, "copy"]
        for name in columns:
            assert found.schema.field(name).type == stored.schema.field(name).type, name
            assert found[name].to_pylist() == stored[name].to_pylist(), name
        assert found["copy"].to_pylist() == table["ids"].to_pylist()

    def test_scalars_are_stacked_in_the_order_given(
        self, tmp_path: Path, linear_model: Callable[..., Path]
    ) -> None:
        random, model = np.random.default_rng(4), linear_model()
        columns = {
            "d": random.random(90),
            "a": random.integers(-5, 5, 90, np.int16),
            "c": random.random(90, np.float32),
            "b": random.integers(0, 2, 90).astype(bool),
        }
        pq.write_table(pa.table(columns), tmp_path / "data.parquet", row_group_size=40)
        score(model, tmp_path / "data.parquet", tmp_path / "out", input=["x=a,b,c,d"])
        stacked = np.stack([columns[name].astype(np.float32) for name in "abcd"], axis=1)
        found = pq.read_table(tmp_path / "out")
        np.testing.assert_allclose(dense(found["y"]), run_plain(model, {"x": stacked})["y"], rtol=1e-5)


class TestRagged:
    @staticmethod
    def save(path: Path) -> Path:
        """ids, mask: int64[N, L] -> their embeddings' masked mean [N, 4], and one embedding per token."""
        table = np.random.default_rng(5).standard_normal((50, 4)).astype(np.float32)
        nodes = [
            helper.make_node("Gather", ["table", "ids"], ["embedded"]),
            helper.make_node("Cast", ["mask"], ["ones"], to=FLOAT),
            helper.make_node("Unsqueeze", ["ones", "last"], ["wide"]),
            helper.make_node("Mul", ["embedded", "wide"], ["tokens"]),
            helper.make_node("ReduceSum", ["tokens", "one"], ["total"], keepdims=0),
            helper.make_node("ReduceSum", ["ones", "one"], ["count"], keepdims=1),
            helper.make_node("Div", ["total", "count"], ["mean"]),
            helper.make_node("ReduceSum", ["tokens", "last"], ["weights"], keepdims=0),
        ]
        inputs = [("ids", INT64, ["N", "L"]), ("mask", INT64, ["N", "L"])]
        outputs = [
            ("mean", FLOAT, ["N", 4]),
            ("tokens", FLOAT, ["N", "L", 4]),
            ("weights", FLOAT, ["N", "L"]),
        ]
        constants = {"table": table, "one": np.array([1]), "last": np.array([2])}
        return save_model(path, nodes, inputs, outputs, constants)

    @pytest.mark.parametrize("pad_to", [None, 24])
    def test_rows_are_padded_masked_and_put_back_in_order(self, pad_to: int | None, tmp_path: Path) -> None:
        model, random = self.save(tmp_path / "bag.onnx"), np.random.default_rng(6)
        rows = [random.integers(0, 50, n).tolist() for n in random.integers(1, 21, 200).tolist()]
        table = pa.table({"id": range(200), "ids": pa.array(rows, pa.list_(pa.int32()))})
        pq.write_table(table, tmp_path / "data.parquet", row_group_size=70)
        options: dict[str, Any] = {} if pad_to is None else {"pad_to": pad_to, "pad_value": 3}
        score(
            model,
            tmp_path / "data.parquet",
            tmp_path / "out",
            mask="mask",
            keep="id",
            batch_size=16,
            **options,
        )
        found = pq.read_table(tmp_path / "out")
        assert found["id"].to_pylist() == list(range(200))
        for row, mean, tokens, weights in zip(
            rows,
            dense(found["mean"]),
            found["tokens"].to_pylist(),
            found["weights"].to_pylist(),
            strict=True,
        ):
            ids = np.array([row], np.int64)
            expected = run_plain(model, {"ids": ids, "mask": np.ones_like(ids)})
            np.testing.assert_allclose(mean, expected["mean"][0], rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(tokens, expected["tokens"][0], rtol=1e-6)
            np.testing.assert_allclose(weights, expected["weights"][0], rtol=1e-4, atol=1e-6)

    def test_an_output_whose_free_axis_is_not_the_tokens_is_not_cut(self, tmp_path: Path) -> None:
        model = save_model(
            tmp_path / "wide.onnx",
            [
                helper.make_node("Concat", ["ids", "ids"], ["twice"], axis=1),
                helper.make_node("Cast", ["twice"], ["y"], to=FLOAT),
            ],
            [("ids", INT64, ["N", "L"])],
            [("y", FLOAT, ["N", "M"])],
        )
        pq.write_table(pa.table({"ids": [[1], [2, 3]]}), tmp_path / "data.parquet")
        score(model, tmp_path / "data.parquet", tmp_path / "out", pad_to=3)
        assert pq.read_table(tmp_path / "out")["y"].to_pylist() == [[1, 0, 0, 1, 0, 0], [2, 3, 0, 2, 3, 0]]


class TestOutputs:
    @pytest.mark.parametrize("emit", ["raw", "softmax", "argmax", "topk:2"])
    def test_emit(
        self, emit: str, tmp_path: Path, linear_model: Callable[..., Path], vectors: Callable[..., Path]
    ) -> None:
        model, data = linear_model(outputs=5), vectors(rows=150)
        score(model, data, tmp_path / "out", emit=emit)
        logits = run_plain(model, {"x": inputs_of(pq.read_table(data))})["y"]
        order = np.argsort(-logits, axis=1)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        expected = {
            "raw": {"y": logits},
            "softmax": {"y_softmax": powers / powers.sum(axis=1, keepdims=True)},
            "argmax": {"y_argmax": order[:, 0]},
            "topk:2": {
                "y_topk_indices": order[:, :2],
                "y_topk_values": np.take_along_axis(logits, order[:, :2], axis=1),
            },
        }[emit]
        found = pq.read_table(tmp_path / "out")
        assert found.column_names == list(expected)
        for name, values in expected.items():
            assert dense(found[name]).dtype == values.dtype
            np.testing.assert_allclose(dense(found[name]), values, rtol=1e-5)

    def test_outputs_are_all_written_or_chosen(self, tmp_path: Path, vectors: Callable[..., Path]) -> None:
        model = save_model(
            tmp_path / "two.onnx",
            [helper.make_node("Neg", ["x"], ["first"]), helper.make_node("Abs", ["x"], ["second"])],
            [("x", FLOAT, ["N", 4])],
            [("first", FLOAT, ["N", 4]), ("second", FLOAT, ["N", 4])],
        )
        data = vectors(rows=20)
        values = inputs_of(pq.read_table(data))
        score(model, data, tmp_path / "both")
        both = pq.read_table(tmp_path / "both")
        assert both.column_names == ["first", "second"]
        np.testing.assert_array_equal(dense(both["first"]), -values)
        score(model, data, tmp_path / "one", output="second")
        one = pq.read_table(tmp_path / "one")
        assert one.column_names == ["second"]
        np.testing.assert_array_equal(dense(one["second"]), values)

    def test_a_model_of_fixed_batch_size_scores_any_number_of_rows(
        self, tmp_path: Path, linear_model: Callable[..., Path], vectors: Callable[..., Path]
    ) -> None:
        data = vectors(rows=35, row_group_rows=18)
        score(linear_model(batch=8), data, tmp_path / "out", batch_size="auto", keep="id")
        table, found = pq.read_table(data), pq.read_table(tmp_path / "out")
        free = linear_model(name="free.onnx")
        assert found["id"].equals(table["id"])
        np.testing.assert_allclose(
            dense(found["y"]), run_plain(free, {"x": inputs_of(table)})["y"], rtol=1e-6
        )

    @pytest.mark.parametrize(("name", "codec"), [("zstd", "ZSTD"), ("none", "UNCOMPRESSED")])
    def test_compression(
        self,
        name: str,
        codec: str,
        tmp_path: Path,
        linear_model: Callable[..., Path],
        vectors: Callable[..., Path],
    ) -> None:
        score(linear_model(), vectors(rows=50), tmp_path / "out", compression=name, keep="id")
        metadata = pq.read_metadata(tmp_path / "out" / "part-00000.parquet").row_group(0)
        assert {metadata.column(i).compression for i in range(metadata.num_columns)} == {codec}

    def test_many_small_shards_keep_the_order(
        self, tmp_path: Path, linear_model: Callable[..., Path], vectors: Callable[..., Path]
    ) -> None:
        data, model = vectors(rows=1000), linear_model()
        summary = score(model, data, tmp_path / "out", shard_bytes=200, keep="id", actors=3)
        assert summary.shards > 90
        table, found = pq.read_table(data), pq.read_table(tmp_path / "out")
        assert found["id"].equals(table["id"])
        np.testing.assert_allclose(
            dense(found["y"]), run_plain(model, {"x": inputs_of(table)})["y"], rtol=1e-6
        )

    def test_the_same_job_gives_the_same_bytes_whatever_the_actors(
        self, tmp_path: Path, digits: tuple[Path, Path]
    ) -> None:
        model, data = digits
        options = {"shard_bytes": 10_000, "keep": ["id", "split"], "normalize": "0:16", "batch_size": 50}
        for name, actors in (("first", 1), ("second", 1), ("third", 3)):
            score(model, data, tmp_path / name, actors=actors, **options)
        first = final_bytes(tmp_path / "first")
        assert list(first) == ["part-00000.parquet"]
        assert final_bytes(tmp_path / "second") == first
        assert final_bytes(tmp_path / "third") == first

    def test_ragged_rows_give_the_same_bytes_whatever_the_actors(self, tmp_path: Path) -> None:
        model, random = TestRagged.save(tmp_path / "bag.onnx"), np.random.default_rng(7)
        rows = [random.integers(0, 50, n).tolist() for n in random.integers(1, 9, 300).tolist()]
        pq.write_table(pa.table({"ids": rows}), tmp_path / "data.parquet", row_group_size=100)
        for name, actors in (("one", 1), ("three", 3)):
            options = {"shard_bytes": 1000, "mask": "mask", "actors": actors}
            score(model, tmp_path / "data.parquet", tmp_path / name, **options)
        assert final_bytes(tmp_path / "one") == final_bytes(tmp_path / "three")


class TestRepeating:
    def test_a_finished_output_is_left_alone(
        self, tmp_path: Path, linear_model: Callable[..., Path], vectors: Callable[..., Path]
    ) -> None:
        model, data, out = linear_model(), vectors(), tmp_path / "out"
        first = score(model, data, out)
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
        second = score(model, data, out, actors=1)
        assert not first.already_finished
        assert second.already_finished
        assert (second.rows, second.files, second.rows_scored) == (1000, 1, 0)
        assert second.lines() == [f"{out} is already finished: 1,000 rows, 0 bad rows"]
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before

    def test_another_job_is_refused_by_the_option_that_differs(
        self, tmp_path: Path, linear_model: Callable[..., Path], vectors: Callable[..., Path]
    ) -> None:
        model, data, out = linear_model(), vectors(rows=60), tmp_path / "out"
        score(model, data, out, keep="id", fill_null=float("nan"))
        before = final_bytes(out)
        same = {"keep": "id", "fill_null": float("nan")}
        different: list[tuple[str, dict[str, Any]]] = [
            ("keep", {"keep": []}),
            ("emit", {"emit": "argmax"}),
            ("filter", {"filter": "id < 5"}),
            ("batch_size", {"batch_size": 16}),
            ("compression", {"compression": "zstd"}),
            ("fill_null", {"fill_null": None}),
            ("normalize", {"normalize": "0:2"}),
            ("shard_bytes", {"shard_bytes": 99}),
        ]
        for name, options in different:
            with pytest.raises(FingerprintError, match=f"{name} was .* now") as caught:
                score(model, data, out, **{**same, **options})
            assert "--overwrite" in caught.value.hint
        other = linear_model(outputs=3, name="other.onnx")
        with pytest.raises(FingerprintError, match="model was"):
            score(other, data, out, **same)
        # What only says how to run is no part of the job.
        assert score(model, data, out, **same, max_bad_rows=7, cpus_per_actor=2).already_finished
        assert final_bytes(out) == before

    def test_a_changed_input_file_is_refused(
        self, tmp_path: Path, linear_model: Callable[..., Path], vectors: Callable[..., Path]
    ) -> None:
        model, data, out = linear_model(), vectors(rows=60), tmp_path / "out"
        score(model, data, out)
        status = data.stat()
        os.utime(data, ns=(status.st_atime_ns, status.st_mtime_ns + 5_000_000_000))
        with pytest.raises(FingerprintError, match="data was '1 files"):
            score(model, data, out)

    def test_overwrite_replaces_every_file_of_the_old_generation(
        self,
        tmp_path: Path,
        linear_model: Callable[..., Path],
        vectors: Callable[..., Path],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        model, data, out = linear_model(), vectors(), tmp_path / "out"
        monkeypatch.setattr(score_output, "plan_merge", partial(plan_merge, file_bytes=1 << 13))
        many = score(model, data, out, shard_bytes=4000, keep="id")
        assert many.files > 2
        assert pq.read_table(out)["id"].to_pylist() == list(range(1000))
        monkeypatch.setattr(score_output, "plan_merge", plan_merge)

        again = score(model, data, out, emit="argmax", overwrite=True)
        assert not again.already_finished
        assert top_level(out) == ["_SUCCESS", "_trtfleet", "part-00000-g0002.parquet"]
        assert [path.name for path in (out / "_trtfleet").glob("g*/job.json")] == ["job.json"]
        assert (out / "_trtfleet" / "g0002" / "job.json").exists()
        assert json.loads((out / "_SUCCESS").read_bytes())["generation"] == "g0002"
        assert pq.read_table(out).column_names == ["y_argmax"]

    def test_an_interrupted_overwrite_leaves_the_old_output_and_is_resumed(
        self, tmp_path: Path, linear_model: Callable[..., Path], vectors: Callable[..., Path]
    ) -> None:
        model, data, out = linear_model(), vectors(), tmp_path / "out"
        score(model, data, out, keep="id")
        before = final_bytes(out)
        options = {"keep": "id", "emit": "argmax", "shard_bytes": 400, "overwrite": True, "actors": 1}
        spec = {"model": model, "data": data, "out": out, "batch_size": 32, **options}
        with pytest.raises(KeyboardInterrupt):
            run_score(ScoreSpec.of(spec), StopsAfter(shards=5))
        assert final_bytes(out) == before
        status = trtfleet.status(out)
        assert (status.state, status.generation) == ("stopped", "g0002")
        assert 5 <= status.shards_done < status.shards_total

        summary = score(model, data, out, **options)
        assert 0 < summary.rows_scored < 1000
        assert summary.rows == 1000
        assert json.loads((out / "_SUCCESS").read_bytes())["generation"] == "g0002"
        found = pq.read_table(out)
        assert found.column_names == ["id", "y_argmax"]
        assert found["id"].to_pylist() == list(range(1000))
        assert not (out / "_trtfleet" / "g0001").exists() or not any(
            (out / "_trtfleet" / "g0001").rglob("*.*")
        )


class TestBadRows:
    @pytest.fixture
    def holed(self, tmp_path: Path) -> tuple[list[Path], pa.Table]:
        """Two files with nulls in rows 3 and 40 of the first, 17 of the second; the last inside a list."""
        paths, tables = [], []
        for number, holes in enumerate(({3: None, 40: None}, {17: [1.0, None, 2.0, 3.0]})):
            values = np.random.default_rng(number).random((50, 4)).astype(np.float32).tolist()
            rows = [holes.get(i, row) for i, row in enumerate(values)]
            ids = np.arange(50) + 50 * number
            table = pa.table({"id": ids, "x": pa.array(rows, pa.list_(pa.float32()))})
            paths.append(tmp_path / f"{number}.parquet")
            pq.write_table(table, paths[-1], row_group_size=15)
            tables.append(table)
        return paths, pa.concat_tables(tables)

    def test_nulls_are_quarantined_by_file_row_column_and_reason(
        self, tmp_path: Path, linear_model: Callable[..., Path], holed: tuple[list[Path], pa.Table]
    ) -> None:
        (first, second), table = holed
        model, out = linear_model(), tmp_path / "out"
        summary = score(model, [first, second], out, keep="id", max_bad_rows=3, filter="id != 2")
        assert (summary.rows, summary.bad_rows) == (96, 3)
        assert quarantined(out) == [
            {"file": str(first), "row": 3, "column": "x", "reason": "null"},
            {"file": str(first), "row": 40, "column": "x", "reason": "null"},
            {"file": str(second), "row": 17, "column": "x", "reason": "null inside the row"},
        ]
        found = pq.read_table(out)
        good = [i for i in range(100) if i not in (2, 3, 40, 67)]
        assert found["id"].to_pylist() == good
        values = np.array([table["x"][i].as_py() for i in good], np.float32)
        np.testing.assert_allclose(dense(found["y"]), run_plain(model, {"x": values})["y"], rtol=1e-6)
        status = trtfleet.status(out)
        assert status.bad_rows == 3
        assert sorted(bad["row"] for bad in status.quarantine) == [3, 17, 40]

    def test_nulls_are_filled(
        self, tmp_path: Path, linear_model: Callable[..., Path], holed: tuple[list[Path], pa.Table]
    ) -> None:
        paths, table = holed
        model = linear_model()
        summary = score(model, paths, tmp_path / "out", fill_null=0.5)
        assert (summary.rows, summary.bad_rows) == (100, 0)
        rows = [[0.5] * 4 if row is None else row for row in table["x"].to_pylist()]
        values = np.array([[0.5 if value is None else value for value in row] for row in rows], np.float32)
        found = dense(pq.read_table(tmp_path / "out")["y"])
        np.testing.assert_allclose(found, run_plain(model, {"x": values})["y"], rtol=1e-6)

    def test_too_many_bad_rows_fail_the_job_with_their_number(
        self, tmp_path: Path, linear_model: Callable[..., Path], holed: tuple[list[Path], pa.Table]
    ) -> None:
        paths, _ = holed
        model, out = linear_model(), tmp_path / "out"
        with pytest.raises(BadRowsError, match="3 rows are bad, 2 allowed") as caught:
            score(model, paths, out, max_bad_rows=2)
        assert "--max-bad-rows" in caught.value.hint
        assert top_level(out) == ["_trtfleet"]
        assert trtfleet.status(out).state == "failed"
        assert score(model, paths, out, max_bad_rows="unlimited").bad_rows == 3

    def test_rows_that_break_the_engine_are_found_one_by_one(self, tmp_path: Path) -> None:
        model = save_model(
            tmp_path / "gather.onnx",
            [helper.make_node("Gather", ["table", "index"], ["y"])],
            [("index", INT64, ["N"])],
            [("y", FLOAT, ["N", 3])],
            {"table": np.arange(30, dtype=np.float32).reshape(10, 3)},
        )
        index = np.random.default_rng(8).integers(0, 10, 120)
        index[[5, 6, 77]] = 99
        table = pa.table({"id": range(120), "index": index})
        pq.write_table(table, tmp_path / "data.parquet", row_group_size=50)
        out = tmp_path / "out"
        summary = score(model, tmp_path / "data.parquet", out, keep="id", max_bad_rows=None)
        assert (summary.rows, summary.bad_rows) == (117, 3)
        bad = quarantined(out)
        assert [row["row"] for row in bad] == [5, 6, 77]
        for row in bad:
            assert row["column"] is None
            assert row["reason"].startswith("engine: ")
            assert "99" in row["reason"]
        found = pq.read_table(out)
        good = np.delete(np.arange(120), [5, 6, 77])
        np.testing.assert_array_equal(found["id"].to_numpy(), good)
        np.testing.assert_array_equal(dense(found["y"])[:, 0], index[good] * 3)

    def test_a_dataset_of_bad_rows_alone_finishes_without_a_result(
        self, tmp_path: Path, linear_model: Callable[..., Path]
    ) -> None:
        nulls = pa.array([None] * 9, pa.list_(pa.float32(), 4))
        pq.write_table(pa.table({"x": nulls}), tmp_path / "data.parquet")
        out = tmp_path / "out"
        summary = score(linear_model(), tmp_path / "data.parquet", out, max_bad_rows="unlimited")
        assert (summary.rows, summary.bad_rows, summary.files) == (0, 9, 0)
        assert top_level(out) == ["_SUCCESS", "_trtfleet"]
        assert len(quarantined(out)) == 9


@pytest.mark.usefixtures("ray_session")
class TestTraceAndLimit:
    def test_a_traced_job_writes_its_trace_and_names_its_limit(
        self, tmp_path: Path, digits: tuple[Path, Path]
    ) -> None:
        model, data = digits
        file = tmp_path / "trace.json"
        summary = trtfleet.score(model, data, tmp_path / "out", normalize="0:16", actors=1, trace=file)
        assert len(summary.limit) >= 1
        assert "limit" in summary.limit[0]
        assert summary.lines()[-len(summary.limit) :] == list(summary.limit)
        events = json.loads(file.read_text())["traceEvents"]
        tracks = {event["args"]["name"] for event in events if event.get("name") == "thread_name"}
        assert {"engine", "writer"} <= tracks
        assert any(track.startswith("feeder") for track in tracks)
        assert sum(event["ph"] == "X" for event in events) > 10

    def test_a_trace_does_not_make_another_job(self, tmp_path: Path, digits: tuple[Path, Path]) -> None:
        model, data = digits
        trtfleet.score(model, data, tmp_path / "out", normalize="0:16")
        again = trtfleet.score(model, data, tmp_path / "out", normalize="0:16", trace=tmp_path / "t.json")
        assert again.already_finished

    def test_a_trace_that_cannot_be_written_is_refused_before_the_work(
        self, tmp_path: Path, digits: tuple[Path, Path]
    ) -> None:
        model, data = digits
        with pytest.raises(OutputError):
            trtfleet.score(model, data, tmp_path / "out", trace=tmp_path / "no" / "such" / "t.json")
        assert not (tmp_path / "out").exists()
