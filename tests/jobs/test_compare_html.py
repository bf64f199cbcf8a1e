"""The report of a comparison, in a real browser."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from trtfleet.errors import OutputError
from trtfleet.jobs.compare_html import write_comparison_html
from trtfleet.jobs.compare_summary import CompareSummary
from trtfleet.jobs.sample_books import Outcome
from trtfleet.tests.jobs.test_partition_html import HOSTILE, browser
from trtfleet.trt_actors.comparison.comparison import Comparison
from trtfleet.trt_actors.comparison.exclusion_search import Contribution, Suggestion
from trtfleet.trt_actors.comparison.layers import Layer
from trtfleet.trt_actors.comparison.outputs import OutputPair
from trtfleet.trt_actors.comparison.parity import Parity
from trtfleet.trt_actors.comparison.worst import WorstRow

__all__ = ["browser"]


def layer(name: str, error: float, before: float = 0.0) -> Layer:
    return Layer(
        tensor=name,
        node=name,
        op_type="Conv",
        relative_error=error,
        before=before,
        largest=error,
        sqnr_db=-20 * math.log10(error) if 0 < error < math.inf else math.inf,
        suspects=(name,),
    )


def summary() -> CompareSummary:
    random = np.random.default_rng(0)
    a = random.normal(size=(300, 5)).astype(np.float32)
    b = (a + 0.2 * random.normal(size=a.shape)).astype(np.float32)
    b[0, 0] = math.nan
    found, _ = Comparison.of_batch([OutputPair(a=HOSTILE, b="y", answers="top-1")], {HOSTILE: a}, {"y": b})
    row = WorstRow(
        position=0,
        file=f"{HOSTILE}.parquet",
        row=7,
        key={"id": HOSTILE, "size": 1234},
        output=HOSTILE,
        error=math.inf,
        agrees=False,
        answers=(1, 0),
    )
    parity = Parity(top1_agreement=0.9, relative_error=0.3, rows=300)
    return CompareSummary(
        names=(HOSTILE, "b.onnx in int8"),
        model_a=f"{HOSTILE}.onnx",
        model_b="b.onnx",
        precision_b="int8",
        table="table.json",
        notes=(HOSTILE,),
        samples=300,
        seed=0,
        batch_size=32,
        comparison=replace(found, worst=(row,)),
        layers=(layer("conv1", 0.01), layer(HOSTILE, math.inf), layer("fc", 0.0)),
        suggestion=Suggestion(
            exclude=(HOSTILE,),
            passes=True,
            max_drop=0.01,
            before=parity,
            after=replace(parity, top1_agreement=1.0),
            contributions=(Contribution(node=HOSTILE, op_type="Conv", parity=parity),),
            trials=4,
        ),
        max_drop=0.01,
        outcome=Outcome(
            rows=300,
            bad_rows=0,
            bad=(),
            units=2,
            units_before=0,
            actors=1,
            backend="onnxruntime-cpu",
            failures=0,
        ),
        report=None,
        seconds=1.0,
    )


def test_the_page_shows_what_was_found_and_runs_nothing(browser: webdriver.Chrome, tmp_path: Path) -> None:
    write_comparison_html(summary(), tmp_path / "page.html")
    browser.get((tmp_path / "page.html").as_uri())
    assert browser.find_element(By.TAG_NAME, "h1").text == f"b.onnx in int8 against {HOSTILE}"
    titles = [one.text for one in browser.find_elements(By.TAG_NAME, "h2")]
    assert titles == [
        f"Output {HOSTILE}",
        "Inner tensors, in the order of the network",
        "What to exclude",
        "Worst rows",
    ]
    assert len(browser.find_elements(By.CSS_SELECTOR, "rect.bar")) > 20
    cells = [one.text for one in browser.find_elements(By.CSS_SELECTOR, "section:last-child td")]
    assert cells[:6] == [HOSTILE, "1,234", "inf", HOSTILE, "1 and 0", "no"]
    assert browser.get_log("browser") == []


def test_the_same_comparison_is_the_same_page(tmp_path: Path) -> None:
    for name in ("one.html", "other.html"):
        write_comparison_html(summary(), tmp_path / name)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "other.html").read_bytes()


def test_a_page_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"page.html cannot be written"):
        write_comparison_html(summary(), tmp_path / "no" / "page.html")


def test_the_same_in_words() -> None:
    text = "\n".join(summary().lines())
    assert "1 of 1,500 values are NaN or infinite in one of both" in text
    assert shlex.join(["--exclude", HOSTILE]) in text
    assert "the first that differs is conv1" in text
    assert summary().as_json()["relative_error"] is None
