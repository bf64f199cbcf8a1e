"""The report of a calibration, in a real browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select
from trtfleet.errors import OutputError
from trtfleet.jobs.calibration_html import write_calibration_html
from trtfleet.tests.jobs.test_partition_html import HOSTILE, browser
from trtfleet.trt_actors.calibration.statistics import TensorStatistics
from trtfleet.trt_actors.calibration.table import CalibrationTable
from trtfleet.trt_actors.calibration.thresholds import Method

__all__ = ["browser"]


def table(method: str = "percentile:90") -> CalibrationTable:
    random = np.random.default_rng(0)
    values = {
        "alpha": random.normal(size=10_000),
        "beta": np.maximum(random.normal(size=10_000), 0),
        "gamma": np.concatenate([random.random(9_999), [1000.0]]),
        HOSTILE: np.zeros(5),
    }
    return CalibrationTable.from_statistics(
        {name: TensorStatistics.of(array.astype(np.float32)) for name, array in values.items()},
        model="ab" * 32,
        model_name=f"{HOSTILE}.onnx",
        method=Method.parse(method),
        samples=500,
        seed=3,
        batch_size=32,
        feed={"normalize": "imagenet", "layout": None},
        excluded=("Gemm",),
    )


@pytest.fixture
def page(browser: webdriver.Chrome, tmp_path: Path) -> webdriver.Chrome:
    path = tmp_path / "report.html"
    write_calibration_html(table(), path)
    browser.get_log("browser")
    browser.get(path.as_uri())
    return browser


def order(page: webdriver.Chrome) -> list[str]:
    return [
        found.get_attribute("data-name") or ""
        for found in page.find_elements(By.CSS_SELECTOR, "article:not([hidden])")
    ]


def test_shows_every_tensor_the_worst_clipped_first(page: webdriver.Chrome) -> None:
    found = table()
    assert order(page) == sorted(
        found.tensors, key=lambda name: (-found.tensors[name].clipped, list(found.tensors).index(name))
    )
    text = page.find_element(By.TAG_NAME, "body").text
    for fact in ("4 tensors", "method percentile:90", "500 rows, seed 3, batch size 32", "excluded Gemm"):
        assert fact in text
    assert 'normalize "imagenet"' in text
    assert page.get_log("browser") == []


def test_sorts_and_searches(page: webdriver.Chrome) -> None:
    select = Select(page.find_element(By.ID, "sort"))
    select.select_by_value("name")
    assert order(page) == list(table().tensors)
    select.select_by_value("kept")
    assert order(page)[0] == "gamma"
    page.find_element(By.ID, "search").send_keys("ALPH")
    assert order(page) == ["alpha"]
    assert page.find_element(By.ID, "shown").text == "1 of 4"


def test_draws_bars_and_the_threshold(page: webdriver.Chrome) -> None:
    found = table().tensors["alpha"]
    article = page.find_element(By.CSS_SELECTOR, "article[data-name=alpha]")
    bars = article.find_elements(By.CSS_SELECTOR, "rect")
    assert len(bars) == sum(number > 0 for number in found.histogram)
    line = article.find_element(By.CSS_SELECTOR, ".threshold")
    at = float(line.get_attribute("x1") or 0)
    beyond = [float(bar.get_attribute("x") or 0) for bar in article.find_elements(By.CSS_SELECTOR, ".beyond")]
    within = [float(bar.get_attribute("x") or 0) for bar in article.find_elements(By.CSS_SELECTOR, ".bar")]
    assert max(within) < at <= min(beyond) + 0.01
    assert "clipped" in article.text


def test_shows_names_as_text(page: webdriver.Chrome) -> None:
    assert not page.execute_script("return window.broken")
    assert page.title == f"Calibration of {HOSTILE}.onnx"
    assert HOSTILE in order(page)
    assert "All values are zero." in page.find_element(By.TAG_NAME, "body").text


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_calibration_html(table("minmax"), tmp_path / "nowhere" / "report.html")
