"""Several drivers on one output or cache: at once, with wrong clocks, killed, and frozen for a long time."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from trtfleet.datasets.naming import HIDDEN, SUCCESS
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
    check_view,
    contents,
    miscounted,
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
    """Several names of one folder, so that it is seen who does what; all of them beside it."""
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


class Meeting:
    """Stops one driver in the middle of its swap, has another go on to a step of its own, then goes on.

    Args:
        first: The driver that is stopped.
        second: The other, which stops there until the first has ended.
        steps: How many each does from its permit on before it stops.
    """

    def __init__(self, first: str, second: str, steps: tuple[int, int]) -> None:
        self._changed = threading.Condition()
        self._other = {first: second, second: first}
        self._left = {first: steps[0], second: steps[1]}
        self._swaps: set[str] = set()
        self._turn = first

    def before(self, step: Step) -> None:
        """Waits until it is the turn of the driver."""
        driver = step.storage.url
        with self._changed:
            if "/permits/" in step.path and self._turn == driver:
                self._swaps.add(driver)
            if driver in self._swaps:
                if not self._left[driver]:
                    self._pass_on(driver)
                self._left[driver] -= 1
            assert self._changed.wait_for(lambda: self._turn == driver, timeout=60)

    def ended(self, driver: str) -> None:
        """A driver does nothing any more."""
        with self._changed:
            self._pass_on(driver)

    def _pass_on(self, driver: str) -> None:
        self._turn = self._other[driver]
        self._changed.notify_all()


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
    shared = tmp_path / "shared"
    shared.mkdir()
    for seed in seeds:
        folder = shared / f"{drivers}-{seed}"
        protocol.prepare(str(folder))
        names = places(folder, drivers)
        turns = Turns(random.Random(seed), names)
        steps = Steps(str(shared), turns.before, turns.after)

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

        with watched(steps), ThreadPoolExecutor(drivers) as pool:
            list(pool.map(drive, names))
        assert all(any(step.storage.url.startswith(name) for step in steps.done) for name in names)
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
    """Lets as many drivers as there are parents begin at once, each with a clock of its own.

    Whoever is killed is started again when all others have ended, and tidies up what it left. Its outcome is
    that of the first time.
    """

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
        outcomes = list(pool.map(drive, range(len(parents))))
    killed = options.pop("killed", None)
    if killed is not None and outcomes[killed].status == CRASHED:
        (again,) = started_at_once(protocol, [parents[killed]], place, seed, folder, **options)
        assert again.status == 0, again.stderr
    return outcomes


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


def copied(ready: Path, place: str | Path) -> str:
    """Makes a place that holds what a folder does."""
    source, target = Storage(ready), Storage(place)
    if target.is_local:
        return str(shutil.copytree(ready, place))
    for entry in source.list():
        target.put(entry.path, source.get(entry.path) or b"")
    return target.url


def made_alone(job: Protocol, place: str) -> list[str]:
    """What a job makes where nobody disturbs it."""
    job.run(place)
    return contents(Storage(place))


class Overwriting:
    """Two drivers with different jobs for one place, of which one is frozen while the other finishes.

    Args:
        slow: The one that is frozen.
        quick: The one that overwrites meanwhile.
        fresh: Makes a place as it is before both.

    Attributes:
        steps: Those of the slow one alone.
        counted: Freezes, what must be there once, and what was lost or came twice.
    """

    def __init__(self, slow: Protocol, quick: Protocol, fresh: Callable[[], str]) -> None:
        self._slow, self._quick, self._fresh = slow, quick, fresh
        alone, expected = fresh(), fresh()
        counted = Steps(alone)
        with watched(counted):
            slow.run(alone)
        self.steps = counted.done
        quick.run(expected)
        self._wanted, self._slows = contents(Storage(expected)), contents(Storage(alone))
        assert set(self._wanted).isdisjoint(self._slows)
        self._begun = self.first(lambda step: step.path.endswith("job.json") and step.data is not None)
        self._units = quick.units(expected)
        self.counted = {"frozen": 0, "units": len(self._units), "lost": 0, "duplicated": 0}

    def first(self, wanted: Callable[[Step], bool]) -> int:
        """The number of the first step of a kind."""
        return next(step.number for step in self.steps if wanted(step))

    def freeze(self, step: Step, *, looks: bool) -> None:
        """Freezes the slow one before a step; whatever it does then, the later result stands.

        Args:
            step: Which.
            looks: Whether it stands, with its ``_SUCCESS``, after each step from then on, too.
        """
        place = self._fresh()
        slow_name, quick_name = places(Path(place), 2) if Storage(place).is_local else (place, place)
        broken: list[str] = []

        def before(current: Step) -> None:
            if current.number == step.number:
                self._quick.run(quick_name)

        def after(current: Step) -> None:
            if looks and current.number >= step.number:
                try:
                    check_view(Storage(place))
                    # Before it has begun its generation, it may well be the later one.
                    assert step.number <= self._begun or check_success(Storage(place))
                except AssertionError as error:
                    # Left to itself it might be taken for an error of storage.
                    broken.append(f"{current.name} {current.path}: {error}")

        is_done = False
        with watched(Steps(slow_name, before, after)), contextlib.suppress(OutputError):
            self._slow.run(slow_name)
            is_done = True
        where = (step.number, step.name, step.path)
        assert not broken, (where, broken)
        assert check_success(Storage(place)), where
        is_later = is_done and step.number <= self._begun
        assert contents(Storage(place)) == (self._slows if is_later else self._wanted), where
        for name, number in miscounted(self._units, self._quick.units(place)).items():
            self.counted[name] += number
        self.counted["frozen"] += 1

    def meet(self, folder: Path, ready: Path, steps: tuple[int, int]) -> None:
        """Stops the slow one in its swap, and the quick one in its own until the slow one has ended.

        Args:
            folder: Where; names of it lie beside it.
            ready: What stands there before.
            steps: How far each is in its swap.
        """
        copied(ready, folder)
        names, broken = places(folder, 2), list[str]()
        # Who looks there takes no turns.
        seen = self._quick.assets / folder.name
        seen.symlink_to(folder, target_is_directory=True)
        meeting = Meeting(names[0], names[1], steps)

        def after(step: Step) -> None:
            try:
                check_view(Storage(seen))
            except AssertionError as error:
                broken.append(f"{step.name} {step.storage.url} {step.path}: {error}")

        def drive(name: str, job: Protocol) -> None:
            try:
                with contextlib.suppress(OutputError):
                    job.run(name)
            finally:
                meeting.ended(name)

        watching = Steps(str(folder.parent), meeting.before, after)
        with watched(watching), ThreadPoolExecutor(2) as pool:
            list(pool.map(drive, names, (self._slow, self._quick)))
        assert {step.storage.url for step in watching.done} == set(names)
        assert not broken, (steps, broken)
        assert check_success(Storage(seen)), steps
        assert contents(Storage(seen)) == self._wanted, steps
        for name, number in miscounted(self._units, self._quick.units(str(seen))).items():
            self.counted[name] += number
        self.counted["frozen"] += 1
        shutil.rmtree(folder)


@pytest.fixture(params=["many files, then one", "one file, then many"])
def jobs(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Protocol, Protocol, Path]:
    """Who is slow, who is quick, and what stands before: nothing, or a result whose files must go."""
    write_assets(tmp_path)
    many, one, ready = Score(tmp_path), Overwrite(tmp_path), tmp_path / "ready"
    ready.mkdir()
    if request.param.startswith("many"):
        return many, one, ready
    many.run(str(ready))
    return one, Replaces(tmp_path), ready


def test_a_driver_frozen_while_another_overwrites(
    jobs: tuple[Protocol, Protocol, Path], tmp_path: Path, figures: Any
) -> None:
    """Frozen before any of its steps, it never shows a reader what must not be seen."""
    numbers = iter(range(10_000))
    slow, quick, ready = jobs
    both = Overwriting(slow, quick, lambda: copied(ready, tmp_path / f"{next(numbers)}"))
    for step in both.steps:
        # What is hidden and has a name of its own comes to the same whenever it comes.
        if ALL or not (step.name == "write" or "/parts/" in step.path):
            both.freeze(step, looks=True)
    assert both.counted["frozen"] > 40
    figures(
        "drivers frozen while another overwrites",
        protocol="commit and merge",
        storage="disk",
        **both.counted,
    )


@pytest.mark.parametrize("jobs", ["one file, then many"], indirect=True)
def test_a_driver_frozen_while_another_overwrites_on_s3(
    jobs: tuple[Protocol, Protocol, Path], bucket: str, figures: Any
) -> None:
    """Even where S3 leaves an instant open, it puts back what it has taken away."""
    numbers = iter(range(10_000))
    slow, quick, ready = jobs
    both = Overwriting(slow, quick, lambda: copied(ready, f"{bucket}/{next(numbers)}"))
    swap = both.steps[both.first(lambda step: "/permits/" in step.path) :]
    # One of each kind that a reader sees something of; the deletion of _SUCCESS is the instant.
    shown = {(step.name, step.path == SUCCESS): step for step in swap if not step.path.startswith(HIDDEN)}
    wanted = [step for (name, _), step in shown.items() if name in ("publish", "delete")]
    for step in swap if ALL else wanted:
        both.freeze(step, looks=False)
    assert both.counted["frozen"] >= len(wanted) == 4
    figures(
        "drivers frozen while another overwrites",
        protocol="commit and merge",
        storage="S3",
        **both.counted,
    )


def test_a_reader_while_two_drivers_swap_at_once(tmp_path: Path, figures: Any) -> None:
    """Wherever they meet, files of one job at a time are seen, and where ``_SUCCESS`` is, all of them."""
    write_assets(tmp_path)
    many, one, ready = Score(tmp_path), Overwrite(tmp_path), tmp_path / "ready"
    many.run(str(ready))
    numbers = iter(range(10_000))
    both = Overwriting(one, Replaces(tmp_path), lambda: copied(ready, tmp_path / f"{next(numbers)}"))
    swap = both.steps[both.first(lambda step: "/permits/" in step.path) :]
    # Before _SUCCESS is taken away, before a file is moved into sight, and before _SUCCESS is.
    shown = [n for n, step in enumerate(swap) if step.name == "publish"]
    stops = range(shown[-1] + 1) if ALL else [shown[0], shown[1], shown[-1]]
    shared = tmp_path / "shared"
    shared.mkdir()
    for stop in stops:
        # The other has some steps more, for there is one more earlier generation.
        for other in range(1, shown[-1] + 10, 1 if ALL else 3):
            both.meet(shared / f"{stop}-{other}", ready, (stop, other))
    figures(
        "drivers frozen while another overwrites",
        protocol="commit and merge",
        storage="disk",
        **both.counted,
    )
