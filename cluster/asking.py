"""Asking every node of a cluster the same question, without waiting for those that do not answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..errors import TrtfleetError
from .nodes import Node

__all__ = ["Answer", "ask"]

_MISSING = "No module named 'trtfleet'"
_OTHER = ("No module named 'trtfleet.", "has no attribute", "Can't get attribute")
_MOST_WORDS = 200


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a node answered.

    Attributes:
        value: What the question returned there; None where it failed.
        failure: Why there is no value; empty where there is one.
    """

    value: Any = None
    failure: str = ""


def _answer(question: Callable[[], Any]) -> Any:
    return question()


# A process of its own for each question: what it loads must not stay with whoever works there next.
_answer_there: Any = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(_answer)


def ask(nodes: Sequence[Node], question: Callable[[], Any], timeout_s: float) -> dict[str, Answer]:
    """Has every node answer a question, at once, beside whatever else it does; needs a connection.

    The question reserves nothing: it sees a node's GPUs and must leave them alone.

    Args:
        nodes: Those to ask; the dead ones are not asked.
        question: Travels to the nodes; a function of a module that they have.
        timeout_s: How long to wait for all of them together.

    Returns:
        The answer of each node, by its id; a node that does not answer has the reason instead.
    """
    answers = {node.id: Answer(failure="the node is gone") for node in nodes if not node.is_alive}
    asked = {
        _answer_there.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node.id, soft=False)
        ).remote(question): node.id
        for node in nodes
        if node.is_alive
    }
    ended: list[Any] = []
    silent: list[Any] = []
    if asked:
        ended, silent = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s)
    for ref in ended:
        answers[asked[ref]] = _read(ref, timeout_s)
    for ref in silent:
        with contextlib.suppress(RayError, ValueError):
            ray.cancel(ref, force=True)
        answers[asked[ref]] = _silence(timeout_s)
    return {node.id: answers[node.id] for node in nodes}


def _read(ref: Any, timeout_s: float) -> Answer:
    try:
        return Answer(value=ray.get(ref, timeout=timeout_s))
    except GetTimeoutError:
        return _silence(timeout_s)
    except Exception as error:
        return Answer(failure=_why(error))


def _silence(timeout_s: float) -> Answer:
    return Answer(failure=f"no answer within {timeout_s:g} s")


def _why(error: Exception) -> str:
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, TrtfleetError):
        return cause.fact
    text = str(error)
    if _MISSING in text:
        return "trtfleet is not installed there"
    if "trtfleet" in text and any(words in text for words in _OTHER):
        return "it has another version of trtfleet, which does not know the question"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else ''}"[:_MOST_WORDS]
