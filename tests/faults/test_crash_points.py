"""Every protocol, killed at every step, and resumed: the result is that of a run that nothing disturbed."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from trtfleet.datasets.storage import Storage
from trtfleet.tests.faults.children import Order, Outcome, Parent
from trtfleet.tests.faults.crashing_store import CRASHED
from trtfleet.tests.faults.protocols import PROTOCOLS, Protocol, miscounted, write_assets

ALL = os.environ.get("TRTFLEET_ALL_CRASH_POINTS") == "1"
_S3_POINTS = 4
_AGAIN = 4

Point = tuple[int, str]


@pytest.fixture(scope="module")
def parents() -> Iterator[Sequence[Parent]]:
    """Two processes to fork from."""
    with Parent() as one, Parent() as two:
        yield one, two


@dataclass(frozen=True)
class Bench:
    """Runs one protocol in children, at places that begin alike.

    Attributes:
        protocol: The protocol.
        parents: Whom children are forked from, as many at once.
        folder: For files of its own.
        fresh: Makes a place as it is before the run.
        environment: Of the children.
    """

    protocol: Protocol
    parents: Sequence[Parent]
    folder: Path
    fresh: Callable[[], str]
    environment: dict[str, str]

    def run(
        self, place: str, parent: Parent, crash: Point | None = None, told: Path | None = None
    ) -> Outcome:
        order = Order(
            protocol=self.protocol.name,
            assets=str(self.protocol.assets),
            place=place,
            crash=crash,
            environment=self.environment,
            told=None if told is None else str(told),
        )
        return parent.run(order)

    def undisturbed(self) -> tuple[str, list[dict[str, Any]]]:
        """A place where nothing went wrong, and the steps on the way."""
        place, told = self.fresh(), self.folder / "told"
        outcome = self.run(place, self.parents[0], told=told)
        assert outcome.status == 0, outcome.stderr
        lines = map(json.loads, told.read_text().splitlines())
        return place, [line for line in lines if line["kind"] == "step"]

    def check_all(self, crashes: Sequence[Sequence[Point]], expected: str, figures: Any, where: str) -> None:
        """Dies at the points of each sequence, one a run, and then runs once more undisturbed."""
        protocol, idle = self.protocol, SimpleQueue[Parent]()
        for parent in self.parents:
            idle.put(parent)
        result, units, hidden = (
            protocol.result(expected),
            protocol.units(expected),
            protocol.hidden(expected),
        )

        def one(points: Sequence[Point]) -> tuple[int, int, int]:
            parent, place, died = idle.get(), self.fresh(), 0
            try:
                for point in points:
                    outcome = self.run(place, parent, point)
                    # What threads do side by side may make a run a step shorter.
                    assert outcome.status in (CRASHED, 0), (points, outcome.stderr)
                    died += outcome.status == CRASHED
                    protocol.check(place)
                outcome = self.run(place, parent)
                assert outcome.status == 0, (points, outcome.stderr)
            finally:
                idle.put(parent)
            protocol.check(place)
            found = protocol.units(place)
            assert protocol.result(place) == result, points
            assert protocol.hidden(place) == hidden, points
            wrong = miscounted(units, found)
            if Storage(place).is_local:
                shutil.rmtree(place)
            return died, wrong["lost"], wrong["duplicated"]

        with ThreadPoolExecutor(len(self.parents)) as threads:
            done = list(threads.map(one, crashes))
        died, lost, twice = (sum(column) for column in zip(*done, strict=True))
        assert died >= 0.9 * len(crashes)
        assert (lost, twice) == (0, 0)
        figures(
            "crash points",
            protocol=protocol.name,
            storage=where,
            points="drawn" if len(crashes[0]) > 1 else "every" if ALL else "sample",
            crashes=died,
            resumes=len(crashes),
            units=len(units),
            lost=lost,
            duplicated=twice,
        )


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest, tmp_path: Path) -> Protocol:
    """Each of them."""
    assets = tmp_path / "assets"
    assets.mkdir()
    write_assets(assets)
    return PROTOCOLS[request.param](assets)


@pytest.fixture
def on_disk(protocol: Protocol, parents: Sequence[Parent], tmp_path: Path) -> Bench:
    """The protocol in folders."""
    ready, numbers = tmp_path / "ready", iter(range(10_000))
    ready.mkdir()
    protocol.prepare(str(ready))

    def fresh() -> str:
        return str(shutil.copytree(ready, tmp_path / f"run-{next(numbers)}"))

    return Bench(protocol, parents, tmp_path, fresh, {})


@pytest.fixture
def on_s3(
    protocol: Protocol, parents: Sequence[Parent], tmp_path: Path, bucket: str, s3_environment: dict[str, str]
) -> Bench:
    """The protocol in a bucket."""
    numbers = iter(range(10_000))
    ready = Storage(f"{bucket}/ready")
    protocol.prepare(ready.url)

    def fresh() -> str:
        place = Storage(f"{bucket}/run-{next(numbers)}")
        for entry in ready.list():
            place.put(entry.path, ready.get(entry.path) or b"")
        return place.url

    return Bench(protocol, parents, tmp_path, fresh, s3_environment)


def points(steps: Sequence[dict[str, Any]]) -> list[Point]:
    """Every way to end at every step; fewer of those that come to the same in the ordinary run."""
    found: list[Point] = []
    for number, step in enumerate(steps):
        if step["name"] == "write" and number % 3 and not ALL:
            continue
        found.append((number, "before"))
        # After one step is before the next.
        found += [(number, "after")] if ALL or step is steps[-1] else []
        found += [(number, "torn")] if step["can_tear"] else []
    return found


def spread(found: Sequence[Point], wanted: int) -> list[Point]:
    """Some of the points, the same in every run, from beginning to end."""
    step = 1 if ALL else max(1, -(-len(found) // wanted))
    return list(found[step // 2 :: step])


def test_killed_at_any_step_on_disk(on_disk: Bench, figures: Any) -> None:
    expected, steps = on_disk.undisturbed()
    found = points(steps)
    if on_disk.protocol.name == "commit and merge":
        # The job that overwrites takes these steps too.
        found = spread(found, len(found) // 4)
    on_disk.check_all([[point] for point in found], expected, figures, "disk")


def test_killed_again_while_it_resumes(on_disk: Bench, figures: Any) -> None:
    expected, steps = on_disk.undisturbed()
    rng = random.Random(on_disk.protocol.name)
    found = points(steps)
    pairs = [rng.choices(found, k=3) for _ in range(50 if ALL else _AGAIN)]
    on_disk.check_all(pairs, expected, figures, "disk, three times in a row")


def test_killed_at_a_step_on_s3(on_s3: Bench, figures: Any) -> None:
    expected, steps = on_s3.undisturbed()
    on_s3.check_all([[point] for point in spread(points(steps), _S3_POINTS)], expected, figures, "S3")
