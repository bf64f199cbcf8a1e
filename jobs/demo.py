"""``trtfleet demo``: a real dataset through a real model on two actors, in well under half a minute."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from .progress import Reporter
from .score import run_score
from .spec import ScoreSpec
from .summary import Summary

__all__ = ["DemoResult", "run_demo"]

_ACTORS = 2


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo found.

    Attributes:
        summary: Of the scoring job.
        held_out_rows: Rows the model was not trained on.
        held_out_accuracy: Share of them whose digit was recognized.
    """

    summary: Summary
    held_out_rows: int
    held_out_accuracy: float


@contextlib.contextmanager
def demo_files() -> Iterator[tuple[Path, Path]]:
    """The demo's model and dataset as files."""
    folder = files("trtfleet.jobs") / "demo_data"
    with as_file(folder / "digits.onnx") as model, as_file(folder / "digits.parquet") as data:
        yield model, data


def run_demo(out: str | None, reporter: Reporter) -> DemoResult:
    """Scores 1,797 handwritten digits and compares the answers with the labels.

    Args:
        out: Where results go; a new temporary folder by default. An earlier demo there is replaced.
        reporter: Where progress is shown.

    Raises:
        TrtfleetError: The job failed.
    """
    target = out or tempfile.mkdtemp(prefix="trtfleet-demo-")
    with demo_files() as (model, data):
        spec = ScoreSpec(
            model=str(model),
            data=(str(data),),
            out=target,
            keep=("id", "label", "split"),
            normalize="0:16",
            emit="argmax",
            actors=_ACTORS,
            overwrite=True,
        )
        summary = run_score(spec, reporter)
    table = pq.read_table(target)
    held_out = table.filter(pc.field("split") == "held-out")
    right = pc.sum(pc.equal(held_out["logits_argmax"], held_out["label"])).as_py()
    return DemoResult(
        summary=summary, held_out_rows=held_out.num_rows, held_out_accuracy=right / held_out.num_rows
    )
