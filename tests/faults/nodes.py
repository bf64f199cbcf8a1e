"""Worker nodes of a Ray cluster on this machine, which tests start and lose."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

__all__ = ["CPUS", "Nodes", "is_actor"]

# The head node has four: an actor of five runs on the other nodes only.
CPUS = 5


class Nodes:
    """Worker nodes of a cluster, each in a session of the operating system of its own."""

    def __init__(self, head: Any, alive: Callable[[int], list[psutil.Process]], folder: Path) -> None:
        self._head = head
        self._folder = folder
        self._alive = alive
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._started = 0

    def start(self, hook_seconds: float, name: str = "early", actors: int = 1) -> subprocess.Popen[bytes]:
        """A new node, which has joined when this returns."""
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--block",
            f"--num-cpus={actors * CPUS}",
        ]
        command += [f"--address={self._head.address}", "--object-store-memory=80000000"]
        command += ["--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"]
        command += ["--dashboard-agent-listen-port=0"]
        node = subprocess.Popen(
            command,
            env={**self._head.environment, "HOOK_SECONDS": str(hook_seconds), "HOOK_NODE": name},
            stdout=(log := (self._folder / f"node-{self._started}.log").open("wb")),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        log.close()
        self._started += 1
        self._nodes.append(node)
        # Two that start at once on one machine may take the same names for their sockets.
        deadline_s = time.monotonic() + 60
        while b"Ray runtime started" not in Path(log.name).read_bytes():
            assert node.poll() is None, Path(log.name).read_text()
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        return node

    @property
    def standing(self) -> tuple[subprocess.Popen[bytes], ...]:
        """Those that were started and not lost."""
        return tuple(self._nodes)

    def actors(self) -> list[psutil.Process]:
        """The processes of scoring actors, by number."""
        found = [process for node in self._nodes for process in self._alive(node.pid)]
        return sorted(filter(is_actor, found), key=lambda process: process.pid)

    def lose(self, *nodes: subprocess.Popen[bytes]) -> None:
        """Ends nodes as a power cut would: all their processes at once, unasked."""
        for process in [process for node in nodes for process in self._alive(node.pid)]:
            process.kill()
        for node in nodes:
            node.wait()
            # Its number may be another process's soon.
            self._nodes.remove(node)

    def close(self) -> None:
        """Ends what is left so that the head node knows at once, for those who come next."""
        for node in self._nodes:
            node.terminate()
        for node in self._nodes:
            node.wait(30)
        self.lose(*self._nodes)


def is_actor(process: psutil.Process) -> bool:
    """Whether a process is a scoring actor; an ended one is none."""
    try:
        return "ScoreActor" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
