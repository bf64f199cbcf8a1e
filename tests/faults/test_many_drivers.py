"""Several drivers on one output or cache: at once, with wrong clocks, killed, and frozen for a long time."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from trtfleet.datasets import merge
from trtfleet.datasets.storage import Storage
from trtfleet.errors import CacheError, OutputError
from trtfleet.tests.faults.children import Order, Outcome, Parent
from trtfleet.tests.faults.crashing_store import CRASHED, Step, Steps, watched
from trtfleet.tests.faults.protocols import (
    PROTOCOLS,
    Overwrite,
    Protocol,
    Publish,
    Score,
    check_success,
    miscounted,
    visible,
    write_assets,
)
from trtfleet.trt_actors.cache.prune import prune
from trtfleet.trt_actors.cache.store import EngineCache

ALL = os.environ.get("TRTFLEET_ALL_CRASH_POINTS") == "1"
_DAY_S = 86_400.0
_PATIENCE = 6
_SKEWS_S = (0.0, -2 * _DAY_S, 3 * _DAY_S)


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest, tmp_path: Path) -> Protocol:
    """Each of them."""
    write_assets(tmp_path)
    return PROTOCOLS[request.param](tmp_path)


@pytest.fixture(scope="module")
def parents() -> Iterator[Sequence[Parent]]:
    """Three processes to fork drivers from."""
    with Parent() as one, Parent() as two, Parent() as three:
        yield one, two, three


def places(folder: Path, count: int) -> list[str]:
    """Several names of one folder, so that it is seen who does what."""
    folder.mkdir(exist_ok=True)
    names = [folder.with_name(f"{folder.name}-{number}") for number in range(count)]
    for name in names:
        name.symlink_to(folder, target_is_directory=True)
    return [str(name) for name in names]


class Turns:
    """Lets drivers in threads do one step at a time, each time another at random."""

    def __init__(self, rng: random.Random, drivers: Sequence[str]) -> None:
        self._rng = rng
        self._changed = threading.Condition()
        self._active = list(drivers)
        self._turn = rng.choice(self._active)

    def before(self, step: Step) -> None:
        """Waits until it is the turn of the driver."""
        with self._changed:
            assert self._changed.wait_for(lambda: step.storage.url.startswith(self._turn), timeout=60)

    def after(self, step: Step) -> None:
        """Passes the turn on."""
        self._pass_on()

    def ended(self, driver: str) -> None:
        """A driver does nothing any more."""
        with self._changed:
            self._active.remove(driver)
        self._pass_on()

    def _pass_on(self) -> None:
        with self._changed:
            if self._active:
                self._turn = self._rng.choice(self._active)
            self._changed.notify_all()


def visible_names(folder: Path) -> list[str]:
    """The final files of a folder."""
    return [path.name for path in folder.glob("*.parquet")]


def obeyed(error: str) -> bool:
    """Does what a driver's error says, where another one finished the very same calibration before it.

    That one removed the statistics of both; the same command again does what is left.
    """
    if " is gone" not in error:
        return False
    for folder in re.findall(r"hint: remove (\S+) and repeat", error):
        work = Storage(folder)
        work.delete([entry.path for entry in work.list()])
    return True


class Checks:
    """Holds places against one where a single driver was at work, and counts.

    Args:
        protocol: Of all of them.
        expected: That one place.

    Attributes:
        counted: Places, what must be there once, and what was lost or came twice in all of them.
    """

    def __init__(self, protocol: Protocol, expected: str) -> None:
        protocol.prepare(expected)
        protocol.run(expected)
        self._protocol = protocol
        self._result, self._hidden = protocol.result(expected), protocol.hidden(expected)
        self._units = protocol.units(expected)
        self.counted = {"runs": 0, "units": len(self._units), "lost": 0, "duplicated": 0}

    def check(self, place: str) -> None:
        """A place must hold what one driver alone leaves."""
        self.counted["runs"] += 1
        for name, number in miscounted(self._units, self._protocol.units(place)).items():
            self.counted[name] += number
        assert (self.counted["lost"], self.counted["duplicated"]) == (0, 0)
        self._protocol.check(place)
        assert self._protocol.result(place) == self._result
        assert self._protocol.hidden(place) == self._hidden


# Who waits for the lease on an engine does so by the clock, whoever's turn it is.
@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if name != "cache publish"], indirect=True)
@pytest.mark.parametrize("drivers", [2, 3])
def test_drivers_take_turns(protocol: Protocol, tmp_path: Path, drivers: int, figures: Any) -> None:
    checks = Checks(protocol, str(tmp_path / "expected"))
    seeds = range(30 if ALL else 4)
    for seed in seeds:
        folder = tmp_path / f"{drivers}-{seed}"
        protocol.prepare(str(folder))
        names = places(folder, drivers)
        turns = Turns(random.Random(seed), names)

        def drive(name: str, turns: Turns = turns) -> None:
            try:
                for _ in range(_PATIENCE):
                    try:
                        protocol.run(name)
                    except (CacheError, OutputError) as error:
                        if not obeyed(str(error)):
                            raise
                    else:
                        break
            finally:
                turns.ended(name)

        with (
            watched(Steps(str(folder), turns.before, turns.after)),
            ThreadPoolExecutor(drivers) as pool,
        ):
            list(pool.map(drive, names))
        checks.check(str(folder))
    figures(
        "drivers in turns",
        protocol=protocol.name,
        storage="disk",
        drivers=drivers,
        **checks.counted,
    )


def started_at_once(
    protocol: Protocol, parents: Sequence[Parent], place: str, seed: int, folder: Path, **options: Any
) -> list[Outcome]:
    """Lets as many drivers as there are parents begin at once, each with a clock of its own."""

    def drive(number: int) -> Outcome:
        order = Order(
            protocol=protocol.name,
            assets=str(protocol.assets),
            place=place,
            crash=(5 + 2 * seed, "before") if options.get("killed") == number else None,
            environment=options.get("environment"),
            skew_s=_SKEWS_S[(number + seed) % len(_SKEWS_S)],
            jitter=100 * seed + number,
            told=str(folder / f"told-{seed}"),
        )
        outcome = parents[number].run(order)
        for _ in range(_PATIENCE):
            if outcome.status != 1 or not obeyed(outcome.stderr):
                break
            outcome = parents[number].run(order)
        return outcome

    with ThreadPoolExecutor(len(parents)) as pool:
        return list(pool.map(drive, range(len(parents))))


@pytest.mark.parametrize("drivers", [2, 3])
def test_drivers_at_once_with_clocks_days_apart(
    protocol: Protocol, parents: Sequence[Parent], tmp_path: Path, drivers: int, figures: Any
) -> None:
    checks = Checks(protocol, str(tmp_path / "expected"))
    seeds = range(20 if ALL else 3)
    killed = 0
    for seed in seeds:
        place = str(tmp_path / f"at-once-{seed}")
        protocol.prepare(place)
        # In every other run one of them is killed on the way.
        victim = 0 if seed % 2 else None
        outcomes = started_at_once(protocol, parents[:drivers], place, seed, tmp_path, killed=victim)
        for number, outcome in enumerate(outcomes):
            assert outcome.status in ((0, CRASHED) if number == victim else (0,)), outcome.stderr
        killed += sum(outcome.status == CRASHED for outcome in outcomes)
        checks.check(place)
        told = [json.loads(line) for line in (tmp_path / f"told-{seed}").read_text().splitlines()]
        if protocol.name == "cache publish" and victim is None:
            assert sum(line["kind"] == "build" for line in told) == 1
    figures(
        "drivers at once, clocks days apart",
        protocol=protocol.name,
        storage="disk",
        drivers=drivers,
        killed=killed,
        **checks.counted,
    )


def test_drivers_at_once_on_s3(
    protocol: Protocol,
    parents: Sequence[Parent],
    tmp_path: Path,
    bucket: str,
    s3_environment: dict[str, str],
    figures: Any,
) -> None:
    place = f"{bucket}/place"
    protocol.prepare(place)
    checks = Checks(protocol, f"{bucket}/expected")
    outcomes = started_at_once(protocol, parents, place, 1, tmp_path, environment=s3_environment)
    assert [outcome.status for outcome in outcomes] == [0, 0, 0], outcomes
    checks.check(place)
    figures(
        "drivers at once, clocks days apart",
        protocol=protocol.name,
        storage="S3",
        drivers=len(parents),
        **checks.counted,
    )


def test_a_prune_by_another_clock_takes_a_publication_for_dead(tmp_path: Path, figures: Any) -> None:
    """Whenever it comes, the entry that is published in the end is whole."""
    protocol = Publish(tmp_path)
    counted = Steps(str(tmp_path / "alone"))
    with watched(counted):
        protocol.run(str(tmp_path / "alone"))
    checks = Checks(protocol, str(tmp_path / "expected"))
    for number in range(len(counted.done)):
        folder = tmp_path / f"pruned-{number}"
        slow_name, quick_name = places(folder, 2)

        def sweep(step: Step, number: int = number, name: str = quick_name) -> None:
            if step.number == number:
                # As if the publication had begun an hour ago, by this clock.
                prune(EngineCache(name), grace_s=0.0)

        with watched(Steps(slow_name, before=sweep)):
            protocol.run(slow_name)
        checks.check(str(folder))
    figures(
        "publications pruned by a wrong clock",
        protocol=protocol.name,
        storage="disk",
        **checks.counted,
    )


class Replaces(Score):
    """A scoring job that replaces another result, with more files than that had."""

    name = "replaces"
    overwrite = True


@pytest.mark.parametrize("slow_has_more_files", [True, False])
def test_a_driver_frozen_while_another_overwrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: Any, slow_has_more_files: bool
) -> None:
    """Frozen at any step, it finds out when it wakes, and leaves the later result alone."""
    monkeypatch.setattr(merge, "_LOOK_AGAIN_S", 0.0)
    write_assets(tmp_path)
    many, one = Score(tmp_path), Overwrite(tmp_path)
    slow, quick = (many, one) if slow_has_more_files else (one, Replaces(tmp_path))
    ready, alone, expected = tmp_path / "ready", str(tmp_path / "alone"), str(tmp_path / "expected")
    ready.mkdir()
    if not slow_has_more_files:
        many.run(str(ready))
    for folder in (alone, expected):
        shutil.copytree(ready, folder)
    counted = Steps(alone)
    with watched(counted):
        slow.run(alone)
    quick.run(expected)
    wanted, units, frozen, wrong = visible(Storage(expected)), quick.units(expected), 0, Counter[str]()
    # Before it has begun its generation it would be the later one.
    begun = next(n for n, step in enumerate(counted.done) if step.path.endswith("job.json") and step.data)
    for number, step in enumerate(counted.done):
        following = counted.done[number + 1 : number + 2]
        # Between the last look and the removal of a superfluous file lies an instant that nothing covers.
        is_removal = any(s.name == "delete" and s.path in visible_names(ready) for s in (step, *following))
        is_sampled = ALL or "/parts/" not in step.path
        if number <= begun or step.name == "write" or is_removal or not is_sampled:
            continue
        folder = tmp_path / f"frozen-{number}"
        shutil.copytree(ready, folder)
        slow_name, quick_name = places(folder, 2)

        def freeze(step: Step, number: int = number, name: str = quick_name) -> None:
            if step.number == number:
                quick.run(name)

        with watched(Steps(slow_name, before=freeze)), contextlib.suppress(OutputError):
            slow.run(slow_name)
        wrong.update(miscounted(units, quick.units(str(folder))))
        assert visible(Storage(folder)) == wanted, (number, step.name, step.path)
        assert check_success(Storage(folder)), (number, step.name, step.path)
        frozen += 1
        shutil.rmtree(folder)
    assert frozen > 20
    figures(
        "drivers frozen while another overwrites",
        protocol="commit and merge",
        storage="disk",
        frozen=frozen,
        units=len(units),
        lost=wrong["lost"],
        duplicated=wrong["duplicated"],
    )
