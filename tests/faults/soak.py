"""Scoring jobs, one after the other, while a tormentor breaks what works on them."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from trtfleet.tests.faults.nodes import CPUS, Nodes
from trtfleet.tests.faults.soak_data import MODELS, ROW_BYTES, Data, Verdict, is_whole
from trtfleet.tests.faults.soak_drivers import Drivers
from trtfleet.tests.faults.soak_faults import ACTORS_PER_NODE, Figures, Pace, Tormentor

__all__ = ["Soak"]

_PATIENCE_S = 900.0


class Soak:
    """One soak; about every other job replaces the result of the one before by ``--overwrite``.

    Args:
        folder: Empty; for data, outputs and logs.
        nodes: Starts the nodes.
        environment: Of the drivers.
        pace: How long and how fast.
        seed: Of everything that is drawn.
        say: Told what is done.
    """

    def __init__(
        self,
        folder: Path,
        nodes: Nodes,
        environment: Mapping[str, str],
        pace: Pace,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self._folder, self._nodes, self._pace = folder, nodes, pace
        self._say = say
        self._rng = random.Random(seed)
        self._data = Data(folder, shards=pace.shards, shard_rows=pace.shard_rows, hook_s=pace.hook_s)
        self._drivers = Drivers(folder, environment, self._tell)
        self._figures = Figures(seed=seed)
        self._start_s = 0.0
        self._out, self._model, self._overwrites = Path(), "", False
        self._generation = 0

    def run(self) -> Figures:
        """Soaks until the time is over, every fault was there, and the last job has finished.

        Raises:
            AssertionError: A command ended as it should not, or not at all.
        """
        for _ in range(self._pace.nodes):
            self._nodes.start(0.0, actors=ACTORS_PER_NODE)
        self._start_s = time.monotonic()
        tormentor = Tormentor(self._nodes, self._drivers, self._pace, self._rng, self._figures, self._tell)
        try:
            while not self._is_over(tormentor):
                self._job(tormentor)
        finally:
            tormentor.wake(everything=True)
            self._drivers.close()
        self._figures.minutes = round(self._elapsed_s / 60, 2)
        self._figures.gave_up = self._drivers.gave_up
        self._figures.retries = self._data.attempts - self._figures.shards
        return self._figures

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._start_s

    def _is_over(self, tormentor: Tormentor) -> bool:
        return tormentor.rounds > 0 and self._elapsed_s >= self._pace.seconds

    def _job(self, tormentor: Tormentor) -> None:
        self._settle()
        until_s = self._elapsed_s + _PATIENCE_S
        self._drivers.begin([*self._arguments, *(["--overwrite"] if self._overwrites else [])])
        while len(self._drivers):
            time.sleep(0.1)
            assert self._elapsed_s < until_s, f"a job did not end in {_PATIENCE_S:g} s"
            tormentor.wake()
            self._drivers.collect()
            if len(self._drivers) and not self._is_over(tormentor) and tormentor.strike():
                self._look()
        at_once = self._data.judge(self._out, self._model)
        self._drain(tormentor)
        later = self._data.judge(self._out, self._model)
        # The same is not counted twice.
        self._note(at_once if at_once.lost or at_once.duplicated or at_once.wrong else later)
        self._note(self._data.judge_hidden(self._out))
        self._count()

    def _settle(self) -> None:
        """Says what the next job is."""
        number = self._figures.jobs
        self._overwrites = number > 0 and self._rng.random() < 0.5
        if self._overwrites:
            self._model = next(name for name in MODELS if name != self._model)
            return
        if number:
            shutil.rmtree(self._out)
        self._out, self._generation = self._folder / f"out-{number}", 0
        self._model = self._rng.choice(sorted(MODELS))

    @property
    def _arguments(self) -> list[str]:
        arguments = ["score", self._model, "data", str(self._out), "--keep", "id"]
        arguments += ["--preprocess", "soak_hook:gently", "--max-bad-rows", str(self._data.bad_rows)]
        # A row group a shard, and a batch.
        rows = self._pace.shard_rows
        arguments += ["--shard-bytes", str(rows * ROW_BYTES), "--batch-size", str(rows)]
        return [*arguments, "--actors", str(self._pace.actors), "--cpus-per-actor", str(CPUS)]

    def _look(self) -> None:
        """A result that counts as complete is so at any time, also while another is on its way."""
        path = self._out / "_SUCCESS"
        before = path.read_bytes() if path.exists() else b""
        if before:
            whole = is_whole(self._out, json.loads(before))
            if not whole and path.exists() and path.read_bytes() == before:
                self._figures.wrong.append(f"{self._out.name}: _SUCCESS without its files")
            self._figures.looks += 1

    def _drain(self, tormentor: Tormentor) -> None:
        """Has every actor end, and the same command tidy up what those left that came too late."""
        tormentor.wake(everything=True)
        until_s = self._elapsed_s + 60
        while actors := self._nodes.actors():
            assert self._elapsed_s < until_s, f"actors outlive their drivers: {actors}"
            time.sleep(0.05)
        assert self._drivers.run_to_its_end([*self._arguments, "--json"])["already_finished"]

    def _note(self, verdict: Verdict) -> None:
        self._figures.lost += verdict.lost
        self._figures.duplicated += verdict.duplicated
        self._figures.wrong += [f"{self._out.name}: {words}" for words in verdict.wrong]

    def _count(self) -> None:
        generation = int(json.loads((self._out / "_SUCCESS").read_text())["generation"][1:])
        # A driver that is killed when all is done, and overwrites again, does the job again.
        self._figures.shards += self._data.shards * (generation - self._generation)
        self._generation = generation
        self._figures.rows += self._data.rows
        self._figures.jobs += 1
        self._figures.overwritten += self._overwrites
        over = " over another" if self._overwrites else ""
        self._tell(f"job {self._figures.jobs} is complete{over}")

    def _tell(self, what: str) -> None:
        self._say(f"{self._elapsed_s:7.1f} s  {what}")
