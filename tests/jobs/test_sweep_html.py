"""The page of a sweep, in a real browser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from trtfleet.jobs.sweep.compare import changes
from trtfleet.jobs.sweep.page import sweep_page
from trtfleet.jobs.sweep.results import Row
from trtfleet.tests.jobs.test_partition_html import HOSTILE, browser
from trtfleet.tests.jobs.test_sweep_compare import TRIAL, failed, row

__all__ = ["browser"]


def rows() -> list[Row]:
    made = []
    for model in ("a.onnx", HOSTILE):
        for actors in (1, 2):
            for size in (1, 8, 64):
                trial = replace(TRIAL, model=model, batch_size=size, actors=actors)
                made.append(row(0.1 * size / actors, trial=trial))
    return [*made, failed(replace(TRIAL, model=HOSTILE, backend="tensorrt"))]


def test_the_page_draws_every_number_and_runs_nothing(browser: webdriver.Chrome, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_bytes(sweep_page(rows(), None, None))
    browser.get_log("browser")
    browser.get(page.as_uri())
    assert browser.find_element(By.TAG_NAME, "h1").text == f"Sweep of a.onnx, {HOSTILE}"
    charts = browser.find_elements(By.CSS_SELECTOR, "svg.chart")
    drawn = [len(chart.find_elements(By.CSS_SELECTOR, "circle[class^=s]")) for chart in charts]
    # Latency, throughput and both together of each model, in two settings of three sizes; then scaling.
    assert drawn == [6] * 6 + [4]
    for chart in charts:
        for dot in chart.find_elements(By.CSS_SELECTOR, "circle"):
            assert 50 < float(dot.get_attribute("cx")) < 520
            assert 0 < float(dot.get_attribute("cy")) < 280
    assert len(browser.find_elements(By.CSS_SELECTOR, "polyline.trace")) == 2 * 2 * 2 + 2
    assert len(browser.find_elements(By.CSS_SELECTOR, "#trials tbody tr")) == 12
    assert browser.find_element(By.CSS_SELECTOR, "#failed tbody td:last-child").text == "no memory"
    scaling = [
        cell.text for cell in browser.find_elements(By.CSS_SELECTOR, "#scaling tbody tr:first-child td")
    ]
    assert scaling == ["cpu, fp32, onnxruntime-cpu", "a.onnx", "1", "2", "2.00", "100%"]
    assert browser.execute_script("return window.broken") is None
    assert browser.get_log("browser") == []


def test_the_front_is_ringed_and_marked(browser: webdriver.Chrome, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    sizes = [replace(TRIAL, batch_size=size) for size in (1, 8, 64)]
    found = [row(1.0, trial=sizes[0]), row(2.0, trial=sizes[1]), row(20.0, trial=sizes[2])]
    page.write_bytes(sweep_page(found, None, None))
    browser.get(page.as_uri())
    assert [one.text for one in browser.find_elements(By.CSS_SELECTOR, "text.label")] == [
        "batch 1",
        "batch 8",
    ]
    assert len(browser.find_elements(By.CSS_SELECTOR, "circle.ring")) == 2
    assert len(browser.find_element(By.CSS_SELECTOR, "polyline.front").get_attribute("points").split()) == 2
    marks = [one.text for one in browser.find_elements(By.CSS_SELECTOR, "#trials td:nth-child(4)")]
    assert marks == ["◉", "◉", ""]


def test_times_stand_against_the_baseline(browser: webdriver.Chrome, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    other = replace(TRIAL, backend="torch")
    page.write_bytes(
        sweep_page([row(1.0), row(4.0, trial=other), failed(replace(TRIAL, model="b"))], None, "torch")
    )
    browser.get(page.as_uri())
    cells = browser.find_elements(By.CSS_SELECTOR, "#grids td")
    assert [cell.text for cell in cells] == ["1.000\n×4.00", "failed", "4.000"]
    assert cells[0].get_attribute("class") == "number most-faster"


def test_the_page_fits_its_window(browser: webdriver.Chrome, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_bytes(sweep_page(rows(), None, "onnxruntime-cpu"))
    browser.get(page.as_uri())
    script = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(script) == 0


def test_regressions_stand_first(browser: webdriver.Chrome, tmp_path: Path) -> None:
    earlier = [row(1.0), row(1.0, trial=replace(TRIAL, batch_size=9))]
    later = [row(0.5), row(2.0, trial=replace(TRIAL, batch_size=9))]
    page = tmp_path / "report.html"
    page.write_bytes(sweep_page(later, changes(earlier, later), None))
    browser.get(page.as_uri())
    told = [one.text for one in browser.find_elements(By.CSS_SELECTOR, "#changes tbody td:first-child")]
    assert told == ["slower", "slower", "faster", "faster"]


def test_trials_that_all_failed_still_make_a_page(browser: webdriver.Chrome, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_bytes(sweep_page([failed()], None, None))
    browser.get(page.as_uri())
    assert browser.find_elements(By.CSS_SELECTOR, "svg.chart") == []
    assert "1 failed" in browser.find_element(By.CLASS_NAME, "facts").text
