"""Asking a cluster what it has, for ``trtfleet cluster``."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..cluster.asking import ask
from ..cluster.nodes import Node, nodes
from ..cluster.session import connect
from ..errors import TrtfleetError, UsageError
from ..trt_actors.cache.location import default_cache_url
from ..trt_actors.cache.objects import Objects
from ..trt_actors.cache.warmth import CacheIndex, Warmth, gpu_class
from ..trt_actors.machine import Machine, look
from .cluster_view import ClusterView, GpuClass, NodeView
from .node_report import NodeReport, report

__all__ = ["DEFAULT_TIMEOUT_S", "survey"]

DEFAULT_TIMEOUT_S = 60.0


def survey(
    address: str | None = None, *, cache: str | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
) -> ClusterView:
    """Asks every node of a cluster what it has. Reserves nothing, and waits for nobody longer than is said.

    Args:
        address: Ray cluster; None takes ``RAY_ADDRESS``, else starts Ray on this machine for the moment.
        cache: Engine cache; None takes ``TRTFLEET_CACHE`` or the user's cache, each node its own.
        timeout_s: How long nodes have to answer.

    Raises:
        UsageError: ``timeout_s`` is not positive, or ``cache`` is malformed.
        ClusterError: The cluster cannot be reached.
    """
    if not timeout_s > 0:
        raise UsageError(f"timeout must be above 0 s, got {timeout_s:g}", "leave --timeout out")
    url, failure, is_shared = _cache(cache)
    index: CacheIndex | None = None
    if is_shared:
        try:
            index = CacheIndex.read(url)
        except TrtfleetError as error:
            failure = error.fact
    with connect(address) as session:
        found = nodes()
        # A folder of this user's home need not be theirs: without --cache each node takes its own default.
        question = functools.partial(report, None if cache is None else url, not is_shared)
        answers = ask(found, question, timeout_s)
        where, is_embedded = session.address, session.is_embedded
    ours = look()
    views = tuple(
        _view(node, answers[node.id].value, answers[node.id].failure, index, ours) for node in found
    )
    return ClusterView(
        address=where,
        is_embedded=is_embedded,
        nodes=views,
        classes=_classes(views),
        cache=url,
        cache_failure=failure,
        is_cache_shared=is_shared,
    )


def _cache(cache: str | None) -> tuple[str, str, bool]:
    """The cache's URL, why there is none, and whether it is the same seen from everywhere."""
    try:
        objects = Objects(default_cache_url() if cache is None else cache)
    except UsageError:
        raise
    except TrtfleetError as error:
        return "", error.fact, False
    return objects.url, "", objects.local_root is None


def _view(node: Node, value: Any, failure: str, index: CacheIndex | None, ours: Machine) -> NodeView:
    if failure:
        return NodeView(node=node, report=None, failure=failure)
    try:
        found = NodeReport.from_json(value)
    except ValueError as error:
        return NodeView(node=node, report=None, failure=str(error))
    if index is not None:
        found = replace(found, cache=index.url, warmth=found.warmed_by(index))
    return NodeView(node=node, report=found, differs=_differences(found.machine, ours))


def _differences(there: Machine, here: Machine) -> tuple[str, ...]:
    pairs = [
        ("trtfleet", there.trtfleet, here.trtfleet),
        ("Python", there.python, here.python),
        ("Ray", there.packages.get("ray", ""), here.packages.get("ray", "")),
        ("ONNX Runtime", _onnxruntime(there), _onnxruntime(here)),
    ]
    return tuple(
        f"{name} {theirs or 'missing'} there, {ours or 'missing'} here"
        for name, theirs, ours in pairs
        if theirs != ours
    )


def _onnxruntime(machine: Machine) -> str:
    # Nodes with a GPU have another distribution of it.
    return machine.packages.get("onnxruntime-gpu") or machine.packages.get("onnxruntime", "")


def _classes(views: Sequence[NodeView]) -> tuple[GpuClass, ...]:
    found: dict[str, list[NodeView]] = {}
    for view in views:
        for name in {gpu_class(gpu) for gpu in view.gpus}:
            found.setdefault(name, []).append(view)
    return tuple(_class(name, found[name]) for name in sorted(found))


def _class(name: str, having: Sequence[NodeView]) -> GpuClass:
    gpus = [gpu for view in having for gpu in view.gpus if gpu_class(gpu) == name]
    warmths = [view.report.warmth.get(name, Warmth()) for view in having if view.report is not None]
    return GpuClass(
        name=name,
        accelerator_type=having[0].node.accelerator_type,
        gpus=len(gpus),
        nodes=len(having),
        memory_bytes=min(gpu.memory_bytes for gpu in gpus),
        drivers=tuple(sorted({gpu.driver for gpu in gpus if gpu.driver})),
        warmth=min(warmths, key=lambda warmth: (warmth.ready, warmth.batch_sizes)),
    )
