"""Every protocol over HTTP that fails: requests dropped, delayed, refused, answered wrongly or not at all."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from trtfleet.datasets import storage as storage_module
from trtfleet.datasets.storage import Storage
from trtfleet.errors import TrtfleetError
from trtfleet.tests.faults.fault_proxy import Fault, FaultProxy, Request, Rule
from trtfleet.tests.faults.protocols import PROTOCOLS, Protocol, miscounted, write_assets

ALL = os.environ.get("TRTFLEET_ALL_CRASH_POINTS") == "1"
_CLIENT_PATIENCE_S = 0.4
_QUICK = [fault for fault in Fault if not fault.name.startswith("TIME_OUT")]
_NAMES = [name for name in PROTOCOLS if name != "commit and merge"]
"""The plain scoring job is the beginning of the one that overwrites."""


class Bench:
    """Runs one protocol at places behind the proxy.

    Args:
        protocol: The protocol.
        proxy: Through which requests go.
        bucket: Where places are made.
        direct: URL of the server itself.
    """

    def __init__(self, protocol: Protocol, proxy: FaultProxy, bucket: str) -> None:
        self.protocol, self.proxy, self._bucket = protocol, proxy, bucket
        self._places = 0
        self._ready = f"{bucket}/ready"
        protocol.prepare(self._ready)
        self.runs = self.errors = self.faults = 0
        self._wrong = Counter[str]()
        place = self.fresh()
        proxy.restart(lambda request: None)
        protocol.run(place)
        self.requests = [request for request, _ in proxy.seen]
        self._expected = (protocol.result(place), protocol.hidden(place), protocol.units(place))

    def fresh(self) -> str:
        """A place as it is before the run."""
        self.proxy.restart(lambda request: None)
        self._places += 1
        ready, place = Storage(self._ready), Storage(f"{self._bucket}/{self._places}")
        for entry in ready.list():
            place.put(entry.path, ready.get(entry.path) or b"")
        return place.url

    def run(self, *rules: Rule) -> int:
        """Runs the protocol under each rule until it goes well, at last without faults; counts errors."""
        place, errors = self.fresh(), 0
        for rule in (*rules, lambda request: None):
            self.proxy.restart(rule)
            try:
                self.protocol.run(place)
            except TrtfleetError:
                errors += 1
                self.faults += self.proxy.faults
                self.proxy.restart(lambda request: None)
                self.protocol.check(place)
            else:
                self.faults += self.proxy.faults
                break
        self.proxy.restart(lambda request: None)
        self.protocol.check(place)
        self._wrong.update(miscounted(self._expected[2], self.protocol.units(place)))
        found = (self.protocol.result(place), self.protocol.hidden(place), self.protocol.units(place))
        assert found == self._expected
        self.runs += 1
        self.errors += errors
        return errors

    def figures(self, record: Any, kind: str) -> None:
        """Records what was counted."""
        record(
            kind,
            protocol=self.protocol.name,
            storage="S3",
            faults=self.faults,
            runs=self.runs,
            errors=self.errors,
            units=len(self._expected[2]),
            lost=self._wrong["lost"],
            duplicated=self._wrong["duplicated"],
        )


@pytest.fixture(scope="module")
def proxy(s3_environment: dict[str, str]) -> Iterator[FaultProxy]:
    """A proxy in front of the server, which storage uses from here on, with clients that soon give up."""
    with (
        pytest.MonkeyPatch.context() as patch,
        FaultProxy(s3_environment["AWS_ENDPOINT_URL"], 2 * _CLIENT_PATIENCE_S) as proxy,
    ):
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = storage_module.S3Store

        def impatient(*names: Any, client_options: dict[str, Any], **options: Any) -> Any:
            return store(
                *names, client_options={**client_options, "timeout": f"{_CLIENT_PATIENCE_S}s"}, **options
            )

        patch.setattr(storage_module, "S3Store", impatient)
        yield proxy


@pytest.fixture(params=_NAMES)
def bench(request: pytest.FixtureRequest, proxy: FaultProxy, bucket: str, tmp_path: Path) -> Bench:
    """Each protocol."""
    write_assets(tmp_path)
    return Bench(PROTOCOLS[request.param](tmp_path), proxy, bucket)


def at(number: int, fault: Fault, request: Request) -> Fault | None:
    """Lets one request go wrong."""
    return fault if request.number == number else None


def storm(rng: random.Random, request: Request) -> Fault | None:
    """Lets one request in six go wrong."""
    return rng.choice(_QUICK) if rng.random() < 1 / 6 else None


def test_one_request_goes_wrong(bench: Bench, figures: Any) -> None:
    requests = len(bench.requests)
    points = [((2 * number + 1) * requests // (2 * len(Fault)), fault) for number, fault in enumerate(Fault)]
    if ALL:
        points += [(number, _QUICK[number % len(_QUICK)]) for number in range(requests)]
    # Each fault at another request, from beginning to end.
    for number, fault in points:
        bench.run(partial(at, number, fault))
    assert bench.faults >= len(Fault)
    bench.figures(figures, "one fault")


def test_a_lost_answer_to_a_conditional_request_costs_nothing(bench: Bench, figures: Any) -> None:
    conditional = [request.number for request in bench.requests if request.is_conditional]
    assert conditional
    faults = (Fault.DROP_AFTER, Fault.ERROR_500_AFTER, Fault.DROP_BEFORE)
    for number in conditional if ALL else conditional[1::3]:
        for fault in faults if ALL else faults[:2]:
            assert bench.run(partial(at, number, fault)) == 0, (bench.requests[number], fault)
    bench.figures(figures, "lost answers to put-if-absent")


def test_everything_goes_wrong_now_and_then(bench: Bench, figures: Any) -> None:
    for seed in range(20 if ALL else 2):
        rng = random.Random(seed)
        bench.run(*[partial(storm, rng)] * 4)
    assert bench.faults
    bench.figures(figures, "storms")
