"""The page that shows a partition, in a real browser."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from trtfleet.errors import OutputError
from trtfleet.jobs.partition_html import write_partition_html
from trtfleet.trt_actors.partition.partition import Partition
from trtfleet.trt_actors.partition.partitioner import partition_model
from trtfleet.trt_actors.partition.support import Answer, ParserProcess

HOSTILE = "</script><script>window.broken=1</script><img src=x onerror='window.broken=1'>\"&@@data@@"
BLOCKS = 500


def finished(
    nodes: list[onnx.NodeProto], constants: Mapping[str, np.ndarray], output: str
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def mixed_network(mark: str = "") -> onnx.ModelProto:
    """Matrix products before and after NonZero; a part that folding computes; a branch."""
    make = helper.make_node
    nodes = [
        make("Transpose", ["w"], ["wt"], f"turn{mark}"),
        make("MatMul", ["x", "wt"], ["a"], f"/block/first{mark}"),
        make("Relu", ["a"], ["b"], f"/block/second{mark}"),
        make("MatMul", ["b", "w"], ["c"], f"/block/third{mark}"),
        make("Add", ["c", "x"], [f"d{mark}"], f"/block/sum{mark}"),
        make("NonZero", [f"d{mark}"], ["e"], f"/find/nonzero{mark}"),
        make("Cast", ["e"], ["f"], f"/find/cast{mark}", to=TensorProto.FLOAT),
        make("ReduceSum", ["f"], ["g"], f"/find/count{mark}"),
        make("Add", [f"d{mark}", "g"], ["h"], f"/head/shift{mark}"),
        make("MatMul", ["h", "w"], ["i"], f"/head/product{mark}"),
        make("Sigmoid", ["i"], ["j"], f"/head/squash{mark}"),
        make("MatMul", ["j", "w"], ["k"], f"/head/last{mark}"),
    ]
    return finished(nodes, {"w": np.random.default_rng(0).random((8, 8), dtype=np.float32)}, "k")


def large_network() -> onnx.ModelProto:
    """3,000 nodes: residual blocks of six, every 25th with an operator that is refused."""
    nodes, last = [], "x"
    for block in range(BLOCKS):
        at, middle = f"/stage{block // 50}/block{block}", "Softsign" if block % 25 == 24 else "Relu"
        for op, takes, gives in (
            ("MatMul", [last, "w"], "a"),
            (middle, ["a"], "b"),
            ("MatMul", ["b", "w"], "c"),
            ("Sigmoid", [last], "d"),
            ("Mul", ["c", "d"], "e"),
            ("Add", ["e", last], "f"),
        ):
            names = [name if name in ("w", last) else f"{at}/{name}" for name in takes]
            nodes.append(helper.make_node(op, names, [f"{at}/{gives}"], f"{at}/{op}_{gives}"))
        last = f"{at}/f"
    return finished(nodes, {"w": np.eye(8, dtype=np.float32)}, last)


class Refusing:
    """Answers like a parser that lacks some operators."""

    def __init__(self, *ops: str) -> None:
        self._ops = ops

    def ask(self, model: onnx.ModelProto) -> Answer:
        errors = tuple(
            (place, f"no importer for {node.op_type}")
            for place, node in enumerate(model.graph.node)
            if node.op_type in self._ops
        )
        return Answer(supported=not errors, errors=errors)


@cache
def mixed() -> Partition:
    with ParserProcess("tensorrt-rtx") as parser:
        return partition_model(mixed_network(), parser, flavour="tensorrt-rtx", exclude_ops=["NonZero"])


@cache
def large() -> Partition:
    return partition_model(large_network(), Refusing("Softsign"), flavour="a parser")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    names = ("chromium", "chromium-browser", "google-chrome")
    binary = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        reason = "needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for switch in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "no-first-run",
        "window-size=1600,1000",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


class Page:
    """A page in the browser, and what a user does to it."""

    def __init__(self, browser: webdriver.Chrome, path: Path) -> None:
        self.browser = browser
        self.url = path.as_uri()
        for kind in ("browser", "performance"):
            browser.get_log(kind)
        browser.get(self.url)
        with contextlib.suppress(TimeoutException):
            WebDriverWait(browser, 10).until(lambda _: self.first_drawing_ms())
        assert self.first_drawing_ms(), self.complaints()
        self.data: dict[str, Any] = self.run("return JSON.parse(document.getElementById('data').textContent)")

    def run(self, script: str, *arguments: object) -> Any:
        return self.browser.execute_script(script, *arguments)

    def first_drawing_ms(self) -> str | None:
        return self.run("return document.documentElement.dataset.firstDrawingMs")

    def frame(self) -> None:
        """Waits until everything asked for is drawn."""
        self.browser.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
        )

    def find(self, selector: str) -> Any:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return [found.text for found in self.browser.find_elements(By.CSS_SELECTOR, selector)]

    def view(self, name: str) -> tuple[float, float, float]:
        """Scale and offsets."""
        self.frame()
        found = self.run("return {...document.getElementById(arguments[0]).dataset}", name)
        return float(found["scale"]), float(found["x"]), float(found["y"])

    def over(self, name: str, place: int) -> ActionChains:
        """The pointer in the middle of a box."""
        scale, x, y = self.view(name)
        box, canvas = self.data[name]["boxes"][place], self.find(f"#{name}")
        middle = (x + scale * (box["x"] + box["w"] / 2), y + scale * (box["y"] + box["h"] / 2))
        size = canvas.size
        return ActionChains(self.browser).move_to_element_with_offset(
            canvas, round(middle[0] - size["width"] / 2), round(middle[1] - size["height"] / 2)
        )

    def place_of(self, name: str, **wanted: object) -> int:
        return next(
            place
            for place, box in enumerate(self.data[name]["boxes"])
            if all(box[key] == value for key, value in wanted.items())
        )

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def requests(self) -> list[str]:
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        asked = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        # The log begins before the page does, with what the browser's own first tab loads.
        return [request["request"]["url"] for request in asked if request["documentURL"] == self.url]


@pytest.fixture
def opened(browser: webdriver.Chrome, tmp_path: Path) -> Callable[..., Page]:
    def open_page(partition: Partition, title: str = "small.onnx") -> Page:
        write_partition_html(partition, tmp_path / "page.html", title)
        return Page(browser, tmp_path / "page.html")

    return open_page


def test_the_real_partition_has_both_kinds_of_segments() -> None:
    assert [segment.kind for segment in mixed().segments].count("tensorrt") == 2
    assert mixed().native


def test_the_page_loads_without_complaint_or_request(opened: Callable[..., Page]) -> None:
    page = opened(mixed())
    assert page.complaints() == []
    assert page.requests() == [page.url]
    assert page.find("h1").text == "small.onnx"
    facts = " ".join(page.texts(".facts li"))
    assert f"{len(mixed().cleaned.graph.node)} nodes" in facts
    assert "2 TensorRT segments" in facts


def test_a_click_on_a_segment_lists_and_highlights_its_nodes(opened: Callable[..., Page]) -> None:
    page = opened(mixed())
    first = mixed().tensorrt[0]
    place = page.place_of("transformed", kind="segment", segment=mixed().segments.index(first))
    page.over("transformed", place).click().perform()
    names = {mixed().cleaned.graph.node[index].name for index in first.nodes}
    assert set(page.texts("#selection .row small")) == names
    assert page.find("#selection h3").text == first.name
    assert all("1×8" in text for text in page.texts("#selection .row"))
    pressed = page.find("#strip [aria-pressed='true']")
    assert pressed.get_attribute("data-segment") == str(mixed().segments.index(first))


def test_a_node_on_the_left_shows_values_and_segment(opened: Callable[..., Page]) -> None:
    page = opened(mixed())
    native = mixed().native[0]
    page.over("original", page.place_of("original", node=native.index)).click().perform()
    shown = page.find("#selection").text
    assert native.name in shown
    assert native.reason in shown
    page.find("#selection .link").click()
    assert page.find("#selection h3").text.startswith("native-")


def test_the_pointer_names_what_is_below_it(opened: Callable[..., Page]) -> None:
    page = opened(mixed())
    page.over("original", page.place_of("original", label="Sigmoid")).perform()
    assert "/head/squash" in page.find("#tip").text


def test_what_folding_computed_is_found_but_not_drawn(opened: Callable[..., Page]) -> None:
    page = opened(mixed())
    assert "Transpose" not in {box["label"] for box in page.data["original"]["boxes"]}
    assert "without 1 node computed beforehand" in page.find("#original-title").text
    page.find("#search").send_keys("turn", Keys.ENTER)
    assert "computed beforehand" in page.find("#detail").text


def test_a_node_merged_into_another_names_it(opened: Callable[..., Page]) -> None:
    page = opened(mixed())
    gemm = next(number for number, node in enumerate(mixed().cleaned.graph.node) if node.op_type == "Gemm")
    third = next(place for place, node in enumerate(page.data["nodes"]) if node["name"] == "/block/third")
    assert page.data["nodes"][third]["into"] == gemm
    page.over("original", page.place_of("original", node=third)).click().perform()
    assert "Merged into" in page.find("#detail").text
    assert "tensorrt-0" in page.find("#detail").text


def test_a_chosen_row_stays_beside_the_other_finds(opened: Callable[..., Page]) -> None:
    page = opened(mixed())
    page.find("#search").send_keys("/head/")
    assert page.find("#found").text == "4 nodes found"
    page.browser.find_elements(By.CSS_SELECTOR, "#list .row")[2].click()
    assert page.find("#detail h3").text == "Sigmoid"
    assert page.texts("#list .row[aria-current='true'] small") == ["/head/squash"]
    assert len(page.texts("#list .row")) == 4


def test_search_finds_a_node_and_moves_there(opened: Callable[..., Page]) -> None:
    page = opened(large(), "large.onnx")
    before = page.view("original")
    page.find("#search").send_keys("stage7/block387/softsign".upper())
    assert page.find("#found").text == "0 nodes found"
    page.find("#search").clear()
    page.find("#search").send_keys("block374/SOFT")
    assert page.find("#found").text == "1 node found"
    assert page.texts("#selection .row small") == ["/stage7/block374/Softsign_b"]
    page.find("#search").send_keys(Keys.ENTER)
    assert "no importer for Softsign" in page.find("#selection").text
    scale, x, y = page.view("original")
    assert scale > before[0]
    number = next(
        n for n, node in enumerate(page.data["nodes"]) if node["name"].endswith("/block374/Softsign_b")
    )
    box = page.data["original"]["boxes"][page.place_of("original", node=number)]
    canvas = page.find("#original").size
    assert 0 < x + scale * box["x"] < canvas["width"]
    assert 0 < y + scale * box["y"] < canvas["height"]


def test_wheel_buttons_and_keys_zoom_and_fit_restores(opened: Callable[..., Page]) -> None:
    page = opened(mixed())
    fitted = page.view("original")
    wheel = ScrollOrigin.from_element(page.find("#original"))
    ActionChains(page.browser).scroll_from_origin(wheel, 0, -200).perform()
    wheeled = page.view("original")
    assert wheeled[0] > fitted[0]
    page.find("[aria-label='Zoom out: original network']").click()
    assert page.view("original")[0] == pytest.approx(wheeled[0] * 0.8)
    page.find("#original").send_keys("+")
    assert page.view("original")[0] == pytest.approx(wheeled[0])
    page.find("[aria-label='Fit: original network']").click()
    assert page.view("original") == pytest.approx(fitted)


def test_dragging_and_arrows_move_the_drawing(opened: Callable[..., Page]) -> None:
    page = opened(mixed())
    scale, x, y = page.view("transformed")
    ActionChains(page.browser).drag_and_drop_by_offset(page.find("#transformed"), 70, 30).perform()
    assert page.view("transformed") == pytest.approx((scale, x + 70, y + 30))
    page.find("#transformed").send_keys(Keys.ARROW_LEFT)
    assert page.view("transformed") == pytest.approx((scale, x + 130, y + 30))
    assert page.find("#selection").get_attribute("hidden")


def test_the_keyboard_alone_reaches_segments_and_nodes(opened: Callable[..., Page]) -> None:
    page = opened(mixed())
    body = page.find("body")
    body.send_keys("n")
    assert page.find("#selection h3").text == mixed().segments[0].name
    body.send_keys("p")
    assert page.find("#selection h3").text == mixed().segments[-1].name
    row = page.find("#selection .row")
    row.send_keys(Keys.ARROW_DOWN)
    page.browser.switch_to.active_element.send_keys(Keys.ENTER)
    second = mixed().cleaned.graph.node[mixed().segments[-1].nodes[1]]
    assert second.name in page.find("#selection").text
    body.send_keys(Keys.ESCAPE)
    assert "Click a segment" in page.find("#selection").text
    body.send_keys("/")
    assert page.browser.switch_to.active_element.get_attribute("id") == "search"


def test_native_nodes_are_listed_with_their_reasons(opened: Callable[..., Page]) -> None:
    page = opened(mixed())
    page.find("#tab-native").click()
    rows = page.texts("#native tbody tr")
    assert len(rows) == len(mixed().native)
    for row, node in zip(rows, mixed().native, strict=True):
        assert node.name in row
        assert node.reason in row


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_theme_follows_the_system_and_the_button(opened: Callable[..., Page], theme: str) -> None:
    page = opened(mixed())
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    page.browser.get(page.url)
    assert page.run("return document.documentElement.dataset.theme") == theme
    before = page.run("return getComputedStyle(document.body).backgroundColor")
    page.find("#theme").click()
    assert page.run("return document.documentElement.dataset.theme") != theme
    assert page.run("return getComputedStyle(document.body).backgroundColor") != before


def test_three_thousand_nodes_are_drawn_and_folded(
    opened: Callable[..., Page], capsys: pytest.CaptureFixture[str]
) -> None:
    page = opened(large(), "large.onnx")
    assert page.complaints() == []
    assert len(page.data["nodes"]) == 6 * BLOCKS
    folded = [box for box in page.data["transformed"]["boxes"] if box["kind"] == "segment"]
    assert len(folded) == len(large().tensorrt)
    with capsys.disabled():
        print(f"\n3,000 nodes: first drawing {page.first_drawing_ms()} ms after navigation")


def test_hostile_names_are_shown_and_not_executed(opened: Callable[..., Page]) -> None:
    model = mixed_network(HOSTILE)
    for node in model.graph.node:
        if node.op_type == "NonZero":
            node.domain = f"evil.{HOSTILE}"
    model.opset_import.append(helper.make_opsetid(f"evil.{HOSTILE}", 1))
    partition = partition_model(model, Refusing(), flavour=HOSTILE)
    page = opened(partition, HOSTILE)
    assert page.find("h1").text == HOSTILE
    assert page.run("return window.broken") is None
    place = page.place_of("transformed", kind="segment")
    page.over("transformed", place).click().perform()
    assert any(HOSTILE in text for text in page.texts("#selection .row small"))
    page.find("#tab-native").click()
    assert HOSTILE in page.find("#native").text
    page.over("original", page.place_of("original", label="NonZero")).perform()
    assert HOSTILE in page.find("#tip").text
    assert page.run("return [window.broken, document.images.length, document.scripts.length]") == [None, 0, 2]
    assert page.complaints() == []
    assert page.requests() == [page.url]


def test_scripts_that_are_not_the_page_s_own_are_refused(opened: Callable[..., Page]) -> None:
    page = opened(mixed())
    page.run(
        "const script = document.createElement('script');"
        "try { script.text = 'window.broken = 1' } catch {} document.head.append(script)"
    )
    assert page.run("return window.broken") is None


def test_the_file_is_the_same_each_time_and_loads_nothing(tmp_path: Path) -> None:
    partition = partition_model(mixed_network(), Refusing("NonZero"), flavour="a parser")
    for name in ("a.html", "b.html"):
        write_partition_html(partition, tmp_path / name, "t")
    text = (tmp_path / "a.html").read_text()
    assert text == (tmp_path / "b.html").read_text()
    assert not re.search(r"@@[a-z-]+@@", text)
    assert not re.search(r"https?:", text)


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    partition = partition_model(mixed_network(), Refusing("NonZero"), flavour="a parser")
    with pytest.raises(OutputError, match=r"missing/p\.html cannot be written"):
        write_partition_html(partition, tmp_path / "missing" / "p.html", "t")
