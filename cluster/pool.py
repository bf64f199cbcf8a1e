"""The thin shell around the scheduler: obeys its actions with Ray actors and tells it what happened."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from ..errors import (
    ActorSpentError,
    ActorStuckError,
    BackendError,
    ClusterError,
    DatasetError,
    OutputError,
    TrtfleetError,
)
from .causes import cause_of, error_of, is_node_lost, reason_of
from .events import (
    Action,
    ActorDied,
    ActorFailedToStart,
    ActorReady,
    Dispatch,
    Event,
    Fail,
    FailureKind,
    Finish,
    ShardDone,
    ShardError,
    StartActor,
    StopActor,
    StopRequested,
    Tick,
    WakeAt,
)
from .head_watch import HeadWatch
from .room_watch import RoomWatch
from .scheduler import Scheduler
from .session import Resources

__all__ = ["ActorPool", "Work"]

_LONGEST_WAIT_S = 0.5
_SILENCE_S = 120.0
_TRANSIENT = (DatasetError, OutputError, ClusterError)
_MAYBE_THE_HEADS = (FailureKind.SHARD_DEATHS, FailureKind.ACTOR_DEATHS, FailureKind.ACTOR_STARTS)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the pool's actors are and do, as far as the pool needs to know.

    Attributes:
        actor: A Ray actor class with ``start(task)`` and the method named by ``method``.
        task: What ``start`` gets; put into Ray's object store once.
        resources: What Ray reserves for each actor.
        threads: Calls an actor runs at once.
        payload: The arguments of ``method`` for a shard's key and attempt number.
        count: Rows and bad rows in what ``method`` returns.
        method: What does one shard.
        kind: What an actor runs on, from what its ``start`` returned; equal kinds are about equally fast.
    """

    actor: Any
    task: Any
    resources: Resources
    threads: int
    payload: Callable[[str, int], tuple[Any, ...]]
    count: Callable[[Any], tuple[int, int]]
    method: str = "score"
    kind: Callable[[Any], str] = lambda started: ""


class ActorPool:
    """Runs a scheduler to its end.

    Args:
        scheduler: Not yet started.
        work: What to run.
        on_started: Called with an actor's name and what its ``start`` returned.
        on_done: Called with an actor's name, a shard's key and what its method returned.
        on_progress: Called after every event and at least twice a second.
        watch: Looks at the cluster meanwhile; None for a cluster that does not change.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        work: Work,
        *,
        on_started: Callable[[str, Any], None],
        on_done: Callable[[str, str, Any], None],
        on_progress: Callable[[], None],
        watch: RoomWatch | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._work = work
        self._on_started = on_started
        self._on_done = on_done
        self._on_progress = on_progress
        self._watch_room = watch
        self._watch_head = HeadWatch()
        self._actors: dict[str, Any] = {}
        self._ready: set[str] = set()
        self._happened: queue.SimpleQueue[Callable[[], Event | None]] = queue.SimpleQueue()
        self._errors: dict[str, TrtfleetError] = {}
        self._fatal: TrtfleetError | None = None
        self._unfit: BackendError | None = None
        self._wake_at_s = float("inf")
        self._failure: Fail | None = None
        self._over = False
        self._task: Any = None

    def run(self) -> None:
        """Works until every shard is committed; actors stay alive for ``map``, until ``close``.

        Raises:
            TrtfleetError: The job failed.
            KeyboardInterrupt: The user interrupted it; attempts in flight are abandoned.
        """
        self._task = ray.put(self._work.task)
        self._obey(self._scheduler.start(time.monotonic()))
        try:
            while not self._over:
                self._step()
        except KeyboardInterrupt:
            self._obey(self._scheduler.handle(StopRequested(at_s=time.monotonic(), reason="interrupted")))
            raise
        if self._fatal is not None:
            raise self._fatal
        if self._failure is not None:
            if self._failure.kind in _MAYBE_THE_HEADS:
                self._watch_head.require()
            raise error_of(self._failure, self._errors.get(self._failure.shard or ""), self._unfit)

    def map(self, method: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Spreads calls over the ready actors.

        Ray does not notice a frozen process, so calls are given up when none has ended for a while.

        Returns:
            Results in order; where a call failed or was given up, its exception.
        """
        handles = [self._actors[name] for name in sorted(self._ready)]
        if not handles:
            return [ClusterError("no actor is left") for _ in calls]
        refs = [
            getattr(handles[number % len(handles)], method).remote(*call) for number, call in enumerate(calls)
        ]
        pending, ended = refs, refs
        while pending and ended:
            ended, pending = ray.wait(pending, num_returns=len(pending), timeout=_SILENCE_S)
        given_up = set(pending)
        return [ClusterError("an actor does not answer") if r in given_up else _result(r) for r in refs]

    def close(self) -> None:
        """Ends every actor."""
        for name in list(self._actors):
            self._stop(name)

    def _step(self) -> None:
        wait_s = min(_LONGEST_WAIT_S, max(0.0, self._wake_at_s - time.monotonic()))
        event: Event | None
        try:
            event = self._happened.get(timeout=wait_s)()
        except queue.Empty:
            event = Tick(at_s=time.monotonic())
        if event is not None:
            if event.at_s >= self._wake_at_s:
                self._wake_at_s = float("inf")
            self._obey(self._scheduler.handle(event))
        has_head = self._over or self._watch_head.look(time.monotonic())
        if self._watch_room is not None and has_head and not self._over:
            found = self._watch_room.look(time.monotonic(), self._scheduler.actors_ready)
            if found is not None:
                self._obey(self._scheduler.handle(found))
        self._on_progress()

    def _obey(self, actions: Sequence[Action]) -> None:
        has_finished = any(isinstance(action, Finish) for action in actions)
        for action in actions:
            match action:
                case StartActor(actor=name):
                    self._start(name)
                case Dispatch(actor=name, shard=shard, attempt=attempt):
                    self._dispatch(name, shard, attempt)
                case StopActor(actor=name):
                    # Actors still merge after the last shard, but one that never answered may be frozen.
                    if has_finished:
                        self._ready.discard(name)
                    else:
                        self._stop(name)
                case WakeAt(at_s=at_s):
                    self._wake_at_s = at_s
                case Finish():
                    self._over = True
                case Fail():
                    self._failure, self._over = action, True

    def _start(self, name: str) -> None:
        resources = self._work.resources
        handle = self._work.actor.options(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus or None,
            max_concurrency=self._work.threads,
            scheduling_strategy="SPREAD",
        ).remote()
        self._actors[name] = handle

        def interpret(future: Future[Any]) -> Event | None:
            at_s, error = time.monotonic(), future.exception()
            if error is None:
                if name not in self._actors:
                    # It was stopped in the meantime.
                    return None
                self._ready.add(name)
                self._on_started(name, future.result())
                return ActorReady(at_s=at_s, actor=name, kind=self._work.kind(future.result()))
            # A process that cannot work must not keep the machine from its successor.
            self._stop(name)
            cause = cause_of(error)
            if isinstance(cause, BackendError):
                self._unfit = cause
            elif isinstance(cause, TrtfleetError) and not isinstance(cause, _TRANSIENT):
                # The model, the hooks and the options are the same for every actor: trying again is no use.
                self._fatal, self._over = cause, True
                return None
            return ActorFailedToStart(
                at_s=at_s,
                actor=name,
                reason=reason_of(cause),
                is_node_lost=is_node_lost(cause),
                is_unfit=isinstance(cause, BackendError),
            )

        self._watch(handle.start.remote(self._task), interpret)

    def _dispatch(self, name: str, shard: str, attempt: int) -> None:
        def interpret(future: Future[Any]) -> Event | None:
            at_s, error = time.monotonic(), future.exception()
            if error is None:
                result = future.result()
                self._on_done(name, shard, result)
                rows, bad_rows = self._work.count(result)
                return ShardDone(
                    at_s=at_s, actor=name, shard=shard, attempt=attempt, rows=rows, bad_rows=bad_rows
                )
            cause = cause_of(error)
            if isinstance(cause, RayActorError | ActorStuckError | ActorSpentError):
                self._stop(name)
                return ActorDied(
                    at_s=at_s,
                    actor=name,
                    reason=reason_of(cause),
                    is_node_lost=is_node_lost(cause),
                    is_spent=isinstance(cause, ActorSpentError),
                )
            if isinstance(cause, TrtfleetError):
                self._errors[shard] = cause
            return ShardError(
                at_s=at_s,
                actor=name,
                shard=shard,
                attempt=attempt,
                reason=reason_of(cause),
                retryable=not isinstance(cause, TrtfleetError) or isinstance(cause, _TRANSIENT),
            )

        method = getattr(self._actors[name], self._work.method)
        self._watch(method.remote(*self._work.payload(shard, attempt)), interpret)

    def _watch(self, ref: Any, interpret: Callable[[Future[Any]], Event | None]) -> None:
        # Ray completes the future in a thread of its own; interpretation happens in ours.
        ref.future().add_done_callback(lambda future: self._happened.put(lambda: interpret(future)))

    def _stop(self, name: str) -> None:
        self._ready.discard(name)
        handle = self._actors.pop(name, None)
        # Without a head node, Ray waits to get hold of an actor that is only just starting.
        if handle is not None and not self._watch_head.is_lost:
            with contextlib.suppress(RayError):
                ray.kill(handle, no_restart=True)


def _result(ref: Any) -> Any:
    try:
        return ray.get(ref)
    except Exception as error:
        return cause_of(error)
