"""What the soak scores, what must come of it, and what did."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper

__all__ = ["MODELS", "ROW_BYTES", "Data", "Verdict", "is_whole"]

MODELS = {
    "one.onnx": np.arange(8, dtype=np.float32).reshape(4, 2) / 8,
    "two.onnx": np.arange(8, 0, -1, dtype=np.float32).reshape(4, 2) / 4,
}
ROW_BYTES = 8 + 4 * 4
_FILES = 4
# Of so many rows one has no value, and of so many the hook refuses one.
_NULL_EVERY, _REFUSED_EVERY = 2503, 20011
_HOOK = '''
import os, pathlib, time

ATTEMPTS = pathlib.Path(__file__).parent / "attempts"


def gently(batch):
    """Takes a while, notes each attempt at a shard, and refuses a few rows."""
    if batch.num_rows == {rows}:
        handle = os.open(ATTEMPTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, b"%d\\n" % batch["id"][0].as_py())
        os.close(handle)
        time.sleep({seconds})
    if any(number % {refused} == 0 for number in batch["id"].to_pylist()):
        raise ValueError("refused")
    return batch
'''


@dataclass
class Verdict:
    """How a result differs from the truth.

    Attributes:
        lost: Rows that are not where they belong: among the answers with the right values, or in quarantine.
        duplicated: Rows, answered or quarantined, that are there more often than they should.
        wrong: What else is wrong, in words.
    """

    lost: int = 0
    duplicated: int = 0
    wrong: list[str] = field(default_factory=list)


class Data:
    """A dataset in Parquet, two models and a hook, in a folder; each row group becomes a shard.

    Args:
        folder: Where they are written.
        shards: How many.
        shard_rows: Rows of each.
        hook_s: What an attempt at a shard takes, in seconds.
    """

    def __init__(self, folder: Path, *, shards: int, shard_rows: int, hook_s: float) -> None:
        self.shards = shards
        self.rows = shards * shard_rows
        self._attempts = folder / "attempts"
        self._x = np.random.default_rng(self.rows).random((self.rows, 4), dtype=np.float32)
        ids = np.arange(1, self.rows + 1)
        is_null = ids % _NULL_EVERY == 0
        is_bad = is_null | (ids % _REFUSED_EVERY == 0)
        self._good = ids[~is_bad]
        self._bad: set[tuple[str, int]] = set()
        (folder / "data").mkdir()
        for number, of in enumerate(np.array_split(np.arange(shards), _FILES)):
            name = f"rows-{number}.parquet"
            part = slice(of[0] * shard_rows, (of[-1] + 1) * shard_rows)
            values = pa.FixedSizeListArray.from_arrays(
                pa.array(self._x[part].reshape(-1)), 4, mask=pa.array(is_null[part])
            )
            table = pa.table({"id": ids[part], "x": values})
            pq.write_table(table, folder / "data" / name, row_group_size=shard_rows)
            self._bad.update((name, int(row)) for row in np.flatnonzero(is_bad[part]))
        for name, weights in MODELS.items():
            _write_model(folder / name, weights)
        hook = _HOOK.format(rows=shard_rows, seconds=hook_s, refused=_REFUSED_EVERY)
        (folder / "soak_hook.py").write_text(hook)

    @property
    def bad_rows(self) -> int:
        """Rows that belong into quarantine."""
        return len(self._bad)

    @property
    def attempts(self) -> int:
        """How many attempts at shards have begun until now."""
        return self._attempts.read_bytes().count(b"\n") if self._attempts.exists() else 0

    def judge(self, out: Path, model: str) -> Verdict:
        """Compares what a reader sees of a finished output with what numpy computes."""
        verdict = Verdict()
        success = json.loads((out / "_SUCCESS").read_text())
        _expect(verdict, "rows", success["rows"], len(self._good))
        _expect(verdict, "bad rows", success["bad_rows"], self.bad_rows)
        names = {"_SUCCESS", "_trtfleet", *(part["name"] for part in success["parts"])}
        _expect(verdict, "visible names", {path.name for path in out.iterdir()}, names)
        if not is_whole(out, success):
            verdict.wrong.append("files are not those of _SUCCESS")
        table = pq.read_table(out)
        ids = table["id"].to_numpy()
        answers = np.array(table["y"].to_pylist(), np.float32).reshape(-1, 2)
        known = (ids >= 1) & (ids <= self.rows)
        right = known.copy()
        right[known] = np.isclose(answers[known], self._x[ids[known] - 1] @ MODELS[model], rtol=1e-5).all(1)
        verdict.lost += len(np.setdiff1d(self._good, ids[right]))
        # A row that should not be there at all is one too many as well.
        found, times = np.unique(ids, return_counts=True)
        verdict.duplicated += int(times.sum() - np.isin(found, self._good).sum())
        if not np.array_equal(ids, self._good):
            verdict.wrong.append("rows are not those of the dataset, in its order")
        return verdict

    def judge_hidden(self, out: Path) -> Verdict:
        """Looks at quarantine and leftovers of an output whose drivers and actors have all ended."""
        verdict = Verdict()
        generation = json.loads((out / "_SUCCESS").read_text())["generation"]
        home = out / "_trtfleet" / generation
        rows: list[tuple[str, int]] = []
        for path in sorted(home.glob("quarantine/*.parquet")):
            table = pq.read_table(path, columns=["file", "row"]).to_pydict()
            rows += [(Path(file).name, row) for file, row in zip(table["file"], table["row"], strict=True)]
        verdict.lost += len(self._bad - set(rows))
        verdict.duplicated += len(rows) - len(self._bad & set(rows))
        left = [path for path in (out / "_trtfleet").rglob("*") if path.is_file()]
        # What no listing shows does not count: a process killed while it creates a file leaves such a name.
        left = [path for path in left if "#" not in path.name]
        stray = [
            str(path.relative_to(out))
            for path in left
            if home not in path.parents or path.relative_to(home).parts[0] in ("parts", "merged")
        ]
        _expect(verdict, "leftovers", stray, [])
        _expect(verdict, "commits", len(list(home.glob("commits/*.json"))), self.shards)
        return verdict


def is_whole(out: Path, success: dict[str, Any]) -> bool:
    """Whether every file that a success record names is there with its bytes."""
    for part in success["parts"]:
        try:
            data = (out / part["name"]).read_bytes()
        except FileNotFoundError:
            return False
        if hashlib.sha256(data).hexdigest() != part["sha256"]:
            return False
    return True


def _expect(verdict: Verdict, what: str, found: object, wanted: object) -> None:
    if found != wanted:
        verdict.wrong.append(f"{what}: {found}, not {wanted}")


def _write_model(path: Path, weights: np.ndarray) -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
