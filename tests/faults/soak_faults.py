"""The faults of a soak, in an order and at times drawn from a seed."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
from trtfleet.tests.faults.nodes import Nodes
from trtfleet.tests.faults.soak_drivers import Drivers

__all__ = ["ACTORS_PER_NODE", "Figures", "Pace", "Tormentor"]

ACTORS_PER_NODE = 2


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long, how much, how fast.

    Attributes:
        seconds: No job begins and nothing is broken later than this, but for the first round of faults.
        nodes: Worker nodes, with room for two actors each.
        actors: That a driver asks for.
        shards: Of each job.
        shard_rows: Rows of each.
        hook_s: What an attempt at a shard takes at least.
        gap_s: Between two faults, from and to.
        frozen_s: How long an actor stays frozen, from and to.
        faults: Names of faults, each as often as it is to come in a round; see ``Tormentor``.
    """

    seconds: float
    nodes: int = 2
    actors: int = 3
    shards: int = 400
    shard_rows: int = 500
    hook_s: float = 0.5
    gap_s: tuple[float, float] = (1.0, 9.0)
    frozen_s: tuple[float, float] = (2.0, 60.0)
    faults: tuple[str, ...] = (
        *("kill", "kill", "kill", "crash", "freeze", "freeze", "freeze"),
        *("lose node", "kill driver", "kill driver", "second driver"),
    )


@dataclass(kw_only=True)
class Figures:
    """What was done and what came of it.

    Attributes:
        looks: Looks at a complete result while another one was on its way.
        retries: Attempts at shards beyond the first of each.
        wrong: What was found wrong besides rows, in words.
    """

    minutes: float = 0.0
    seed: int
    rows: int = 0
    jobs: int = 0
    overwritten: int = 0
    shards: int = 0
    killed: int = 0
    crashed: int = 0
    frozen: int = 0
    nodes_lost: int = 0
    drivers_killed: int = 0
    drivers_together: int = 0
    gave_up: int = 0
    looks: int = 0
    retries: int = 0
    lost: int = 0
    duplicated: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether every row came out once, and nothing else was found wrong."""
        return not (self.lost or self.duplicated or self.wrong)


class Tormentor:
    """Breaks what works on a job. Faults come in rounds; order, targets and pauses are drawn.

    ``kill`` and ``crash`` end an actor by SIGKILL and SIGSEGV, ``freeze`` stops one for a while,
    ``lose node`` ends all processes of a node and starts another, ``kill driver`` kills the command and
    starts it again, ``second driver`` starts it once more beside itself.

    Args:
        nodes: Where actors run.
        drivers: Whose they are.
        pace: Which faults, how often.
        rng: Draws.
        figures: Where faults are counted.
        say: Told what is done.

    Attributes:
        rounds: How many are complete.
    """

    def __init__(
        self,
        nodes: Nodes,
        drivers: Drivers,
        pace: Pace,
        rng: random.Random,
        figures: Figures,
        say: Callable[[str], None],
    ) -> None:
        self._nodes, self._drivers, self._pace = nodes, drivers, pace
        self._rng, self._figures, self._say = rng, figures, say
        self._faults: dict[str, Callable[[], bool]] = {
            "kill": self._kill,
            "crash": self._crash,
            "freeze": self._freeze,
            "lose node": self._lose_node,
            "kill driver": self._kill_driver,
            "second driver": self._second_driver,
        }
        self._round: list[str] = []
        self._frozen: list[tuple[float, psutil.Process]] = []
        self.rounds = 0
        self._plan()

    def strike(self) -> bool:
        """Breaks something if it is time for it and it can be done; returns whether it was."""
        if time.monotonic() < self._next_s or not self._faults[self._round[-1]]():
            return False
        self._round.pop()
        self.rounds += not self._round
        self._plan()
        return True

    def wake(self, *, everything: bool = False) -> None:
        """Has frozen actors go on whose time has come, or all."""
        for entry in list(self._frozen):
            due_s, process = entry
            if everything or due_s <= time.monotonic():
                self._frozen.remove(entry)
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()
                    self._say(f"woke actor {process.pid}")

    def _plan(self) -> None:
        if not self._round:
            self._round = list(self._pace.faults)
            self._rng.shuffle(self._round)
        self._next_s = time.monotonic() + self._rng.uniform(*self._pace.gap_s)

    # Each fault tells whether it could be done now.

    def _kill(self) -> bool:
        done = self._signal(signal.SIGKILL, "killed") is not None
        self._figures.killed += done
        return done

    def _crash(self) -> bool:
        done = self._signal(signal.SIGSEGV, "crashed") is not None
        self._figures.crashed += done
        return done

    def _freeze(self) -> bool:
        victim = self._signal(signal.SIGSTOP, "froze")
        if victim is not None:
            self._frozen.append((time.monotonic() + self._rng.uniform(*self._pace.frozen_s), victim))
            self._figures.frozen += 1
        return victim is not None

    def _signal(self, number: signal.Signals, what: str) -> psutil.Process | None:
        frozen = {process.pid for _, process in self._frozen}
        actors = [process for process in self._nodes.actors() if process.pid not in frozen]
        if not actors:
            return None
        victim = self._rng.choice(actors)
        try:
            victim.send_signal(number)
        except psutil.NoSuchProcess:
            return None
        self._say(f"{what} actor {victim.pid}")
        return victim

    def _lose_node(self) -> bool:
        if not self._nodes.actors():
            return False
        self._nodes.lose(self._rng.choice(self._nodes.standing))
        self._figures.nodes_lost += 1
        self._say("lost a node")
        self._nodes.start(0.0, actors=ACTORS_PER_NODE)
        return True

    def _kill_driver(self) -> bool:
        # What another one has finished is not begun again.
        if self._drivers.is_done or not self._nodes.actors():
            return False
        self._drivers.kill_one(self._rng)
        self._figures.drivers_killed += 1
        self._say("killed a driver")
        self._drivers.start()
        return True

    def _second_driver(self) -> bool:
        if self._drivers.is_done or len(self._drivers) > 1 or not self._nodes.actors():
            return False
        self._drivers.start()
        self._figures.drivers_together += 1
        self._say("started a second driver")
        return True
