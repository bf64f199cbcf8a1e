"""Planning without a cluster starts none; in processes of their own, for Ray may be running in this one."""

from __future__ import annotations

import json
import subprocess
import sys

_LOOK = """
import json, sys
import psutil, ray
from trtfleet.cluster.planning import look_only
from trtfleet.errors import ClusterError

try:
    with look_only(None, gpus=3) as session:
        found = {"embedded": session.is_embedded, "cpus": session.nodes[0].cpus, "gpus": session.gpus}
except ClusterError as error:
    found = {"fact": error.fact}
children = psutil.Process().children(recursive=True)
print(json.dumps({**found, "ray": ray.is_initialized(), "children": len(children)}))
"""


def _look(environment: dict[str, str]) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", _LOOK], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_ray_is_not_started(without_ray: dict[str, str]) -> None:
    found = _look(without_ray)
    assert (found["ray"], found["children"]) == (False, 0)
    assert (found["embedded"], found["gpus"]) == (True, 3)
    assert isinstance(found["cpus"], float)
    assert found["cpus"] >= 1


def test_a_cluster_that_is_named_is_looked_at(without_ray: dict[str, str]) -> None:
    found = _look({**without_ray, "RAY_ADDRESS": "127.0.0.1:1"})
    assert str(found["fact"]).startswith("nothing answers at 127.0.0.1:1")
