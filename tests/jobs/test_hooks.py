"""Users' functions around the network, from files in the working folder, through whole jobs."""

from __future__ import annotations

import secrets
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trtfleet
from trtfleet.errors import FingerprintError, HookError, MismatchError
from trtfleet.jobs.summary import Summary

pytestmark = pytest.mark.usefixtures("ray_session")

WEIGHTS = np.arange(8, dtype=np.float32).reshape(4, 2) / 8
"""Those of ``linear_model``."""


@dataclass(frozen=True)
class Workshop:
    """A working folder with a module of hooks, ``y = x @ W`` and 200 vectors."""

    folder: Path
    module: str
    model: Path
    data: Path
    out: Path

    def write(self, source: str) -> None:
        """Writes the module of hooks."""
        header = "import numpy as np\nimport pyarrow as pa\nimport pyarrow.compute as pc\n"
        (self.folder / f"{self.module}.py").write_text(header + textwrap.dedent(source))

    def score(self, *, pre: str | None = None, post: str | None = None, **options: Any) -> Summary:
        """Scores with hooks, named by their functions."""
        names = {"preprocess": pre, "postprocess": post}
        hooks = {role: f"{self.module}:{name}" for role, name in names.items() if name}
        defaults = {"batch_size": 32, "actors": 1, "keep": "id"}
        return trtfleet.score(self.model, self.data, self.out, **{**defaults, **hooks, **options})

    def stored(self) -> tuple[pa.Table, np.ndarray]:
        """The data, and what the model makes of it."""
        table = pq.read_table(self.data)
        return table, lists(table["x"]) @ WEIGHTS

    def found(self) -> pa.Table:
        """The result."""
        return pq.read_table(self.out)


@pytest.fixture
def workshop(
    tmp_path: Path,
    linear_model: Callable[..., Path],
    vectors: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Workshop:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = f"hooks_{secrets.token_hex(4)}"
    data = vectors(rows=200, row_group_rows=50)
    return Workshop(folder, module, linear_model(), data, tmp_path / "out")


def lists(column: pa.ChunkedArray) -> np.ndarray:
    return np.array(column.to_pylist(), np.float32)


def test_preprocess_to_columns(workshop: Workshop) -> None:
    workshop.write("""
        def doubled(batch):
            flat = batch.column("x").flatten()
            flat = pc.multiply(flat, np.float32(2))
            return pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(flat, 4)})
    """)
    summary = workshop.score(pre="doubled", filter="id >= 20")
    table, expected = workshop.stored()
    assert (summary.rows, summary.bad_rows) == (180, 0)
    assert workshop.found()["id"].equals(table["id"].slice(20))
    np.testing.assert_allclose(lists(workshop.found()["y"]), expected[20:] * 2, rtol=1e-5)


def test_preprocess_to_arrays_gets_the_columns_it_asked_for(workshop: Workshop) -> None:
    workshop.write("""
        def rows(batch):
            assert batch.schema.names == ["x", "id"], batch.schema.names
            assert batch.num_rows <= 32
            values = np.stack(batch.column("x").to_numpy(zero_copy_only=False))
            return {"x": values.astype(np.float64) + 1, "unused": values}
    """)
    workshop.score(pre="rows", columns="x")
    table, expected = workshop.stored()
    assert workshop.found()["id"].equals(table["id"])
    np.testing.assert_allclose(lists(workshop.found()["y"]), expected + WEIGHTS.sum(axis=0), rtol=1e-5)


def test_the_columns_of_a_preprocess_hook_are_mapped_as_stored_ones_are(workshop: Workshop) -> None:
    workshop.write("""
        def split(batch):
            values = np.stack(batch.column("x").to_numpy(zero_copy_only=False))
            return pa.record_batch({name: values[:, i].copy() for i, name in enumerate("abcd")})
    """)
    workshop.score(pre="split", input="x=d,c,b,a")
    table, _ = workshop.stored()
    np.testing.assert_allclose(lists(workshop.found()["y"]), lists(table["x"])[:, ::-1] @ WEIGHTS, rtol=1e-5)


def test_postprocess_to_arrays(workshop: Workshop) -> None:
    workshop.write("""
        def labels(outputs, kept):
            assert kept.schema.names == ["id"]
            best = outputs["y"].argmax(axis=1)
            return {
                "label": np.array(["left", "right"])[best],
                "score": outputs["y"].max(axis=1),
                "twice": kept.column("id").to_numpy() * 2,
                "pair": outputs["y"][:, ::-1],
            }
    """)
    workshop.score(post="labels")
    table, expected = workshop.stored()
    found = workshop.found()
    assert found.column_names == ["id", "label", "score", "twice", "pair"]
    assert found["label"].to_pylist() == [("left", "right")[i] for i in expected.argmax(axis=1)]
    np.testing.assert_allclose(found["score"], expected.max(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(found["twice"], table["id"].to_numpy() * 2)
    np.testing.assert_allclose(lists(found["pair"]), expected[:, ::-1], rtol=1e-5)


def test_both_hooks_and_a_record_batch(workshop: Workshop) -> None:
    workshop.write("""
        def same(batch):
            return batch
        def told(outputs, kept):
            pairs = zip(kept["id"].to_pylist(), outputs["y"])
            texts = [None if i % 7 == 0 else f"{i}:{y[0]:.3f}" for i, y in pairs]
            return pa.record_batch({"text": pa.array(texts, pa.string())})
    """)
    workshop.score(pre="same", post="told")
    _, expected = workshop.stored()
    texts = [None if i % 7 == 0 else f"{i}:{y[0]:.3f}" for i, y in enumerate(expected)]
    assert workshop.found()["text"].to_pylist() == texts


def test_the_outputs_belong_to_the_hook(workshop: Workshop) -> None:
    workshop.write("""
        held = []
        def hold(outputs, kept):
            outputs["y"] += 1
            held.append(outputs["y"])
            return {"y": outputs["y"]}
    """)
    workshop.score(post="hold", batch_size=8)
    _, expected = workshop.stored()
    np.testing.assert_allclose(lists(workshop.found()["y"]), expected + 1, rtol=1e-5)


@pytest.mark.parametrize("role", ["pre", "post"])
def test_a_row_that_a_hook_cannot_take_is_quarantined(role: str, workshop: Workshop) -> None:
    workshop.write("""
        def pre(batch):
            if set(batch.column("id").to_pylist()) & {7, 60, 61, 199}:
                raise ValueError("not\\nthis one")
            return batch
        def post(outputs, kept):
            pre(kept)
            return outputs
    """)
    summary = workshop.score(**{role: role}, max_bad_rows=4)
    assert (summary.rows, summary.bad_rows) == (196, 4)
    bad = sorted(trtfleet.status(workshop.out).quarantine, key=lambda row: row["row"])
    reason = f"{role}process: ValueError: not"
    assert [row["row"] for row in bad] == [7, 60, 61, 199]
    assert {(row["file"], row["column"], row["reason"]) for row in bad} == {
        (str(workshop.data), None, reason)
    }
    _, expected = workshop.stored()
    good = np.delete(np.arange(200), [7, 60, 61, 199])
    assert workshop.found()["id"].to_pylist() == good.tolist()
    np.testing.assert_allclose(lists(workshop.found()["y"]), expected[good], rtol=1e-5)


def test_types_must_not_change_between_batches(workshop: Workshop) -> None:
    workshop.write("""
        def fickle(outputs, kept):
            first = kept.column("id")[0].as_py() < 100
            return {"y": outputs["y"].astype(np.float32 if first else np.float64)}
    """)
    with pytest.raises(HookError, match=r"output columns changed from .*float.* to .*double"):
        workshop.score(post="fickle", shard_bytes=1 << 20)


def test_types_must_not_change_between_shards(workshop: Workshop) -> None:
    workshop.write("""
        def fickle(outputs, kept):
            first = kept.column("id")[0].as_py() < 100
            return {"y": outputs["y"].astype(np.float32 if first else np.float64)}
    """)
    with pytest.raises(HookError, match=r"output columns changed from .*float.* to .*double"):
        workshop.score(post="fickle", shard_bytes=1000)
    assert [path.name for path in workshop.out.iterdir()] == ["_trtfleet"]


def test_an_edited_hook_is_another_job(workshop: Workshop) -> None:
    workshop.write("def post(outputs, kept): return outputs")
    workshop.score(post="post")
    assert workshop.score(post="post").already_finished
    workshop.write("def post(outputs, kept): return {'z': outputs['y']}")
    with pytest.raises(FingerprintError, match="postprocess was"):
        workshop.score(post="post")


def test_what_a_preprocess_hook_returns_must_fit_the_model(workshop: Workshop) -> None:
    workshop.write("""
        def other(batch):
            return pa.record_batch({"z": pa.array(["text"] * batch.num_rows)})
    """)
    with pytest.raises(MismatchError, match="no column given for input x"):
        workshop.score(pre="other")
