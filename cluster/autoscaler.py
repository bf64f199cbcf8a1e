"""What the autoscaler of a cluster could bring, as far as it tells."""

from __future__ import annotations

from typing import Any

import ray

__all__ = ["largest_nodes"]


def largest_nodes() -> list[tuple[float, float]]:
    """CPUs and GPUs of each kind of node that may be started; needs a connection.

    Ray's second autoscaler, which KubeRay and newer cloud launchers use, tells the cluster what it may start.
    Where there is no autoscaler, or an older one that keeps this to itself, the list is empty.
    """
    return [
        (float(group.resources.get("CPU", 0)), float(group.resources.get("GPU", 0)))
        for group in getattr(_config(), "node_group_configs", ())
        if group.max_count
    ]


def _config() -> Any:
    # Ray has no public call for it; its own libraries ask in this way.
    try:
        return ray._private.state.state.get_cluster_config()  # type: ignore[attr-defined,unused-ignore]
    except Exception:
        return None
