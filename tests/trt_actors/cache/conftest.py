"""Identities, and programs that use one cache from processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from trtfleet.trt_actors.building.options import BuildOptions
from trtfleet.trt_actors.cache.identity import Identity
from trtfleet.trt_actors.cache.store import EngineCache

BUILDER = """
import json, os, sys, time
from pathlib import Path
from trtfleet.trt_actors.cache.identity import Identity
from trtfleet.trt_actors.cache.obtain import Built, obtain
from trtfleet.trt_actors.cache.store import EngineCache

url, identity, ttl_s, folder, name = sys.argv[1:]
folder = Path(folder)

def tell(text):
    handle = os.open(folder / "told", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{name} {text}\\n".encode())
    os.close(handle)

def build():
    tell("builds")
    while (folder / f"hold-{name}").exists():
        time.sleep(0.02)
    if (folder / f"fail-{name}").exists():
        raise ValueError("this build fails")
    return Built(files={"a.plan": name.encode() * 100, "layout": b"{}"})

(folder / f"ready-{name}").touch()
while not (folder / "go").exists():
    time.sleep(0.005)
staged = obtain(
    EngineCache(url), Identity.from_json(json.loads(identity)), build,
    ttl_s=float(ttl_s), say=lambda text: tell(f"says {text}"), staging=folder / "staged",
)
tell(f"has {staged.how} {staged.read('a.plan')[:3].decode()}")
"""


@dataclass
class Builders:
    """Processes that want one engine, and what they told; ends those that are left.

    Attributes:
        folder: Where they meet.
        identity: What they want.
    """

    folder: Path
    identity: Identity
    running: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def start(self, name: str, url: str, ttl_s: float = 60) -> subprocess.Popen[str]:
        """Starts a process that waits for ``go``."""
        import json

        identity = json.dumps(self.identity.as_json())
        command = [sys.executable, "-c", BUILDER, url, identity, str(ttl_s), str(self.folder), name]
        process = subprocess.Popen(
            command, cwd=self.folder, env=dict(os.environ), stderr=subprocess.PIPE, text=True
        )
        self.running[name] = process
        return process

    def go(self) -> None:
        """Lets them begin, once all are there."""
        for name in self.running:
            self.wait_for((self.folder / f"ready-{name}").exists)
        (self.folder / "go").touch()

    def hold(self, name: str) -> Path:
        """Makes a process's build last until the file returned is deleted."""
        path = self.folder / f"hold-{name}"
        path.touch()
        return path

    def told(self) -> list[str]:
        """What they told, in order."""
        path = self.folder / "told"
        return path.read_text().splitlines() if path.exists() else []

    def builds(self) -> list[str]:
        """Who began to build."""
        return [line.split()[0] for line in self.told() if line.endswith(" builds")]

    def finish(self, name: str) -> str:
        """Waits for a process that must succeed; returns what it got."""
        _, stderr = self.running[name].communicate(timeout=60)
        assert self.running[name].returncode == 0, stderr
        return next(line.split(" has ")[1] for line in self.told() if line.startswith(f"{name} has "))

    @staticmethod
    def wait_for(condition: Callable[[], Any]) -> None:
        """Polls until a condition holds."""
        deadline_s = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline_s, "it did not happen"
            time.sleep(0.01)

    def close(self) -> None:
        """Ends every process that is left."""
        for process in self.running.values():
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def identity() -> Identity:
    """An identity with something in every field."""
    return Identity(
        model="a" * 64,
        network="b" * 64,
        options=BuildOptions(precision="fp16").as_identity(),
        calibration="c" * 64,
        flavour="tensorrt-rtx",
        version="1.7.1.31",
        compute_capability="8.9",
        gpu="NVIDIA L4",
        plugins=("libplugin.so:dddd",),
    )


@pytest.fixture
def cache(place: str) -> EngineCache:
    """An empty cache, once in a folder and once in a bucket."""
    return EngineCache(f"{place}/engines")


@pytest.fixture
def builders(tmp_path: Path, identity: Identity) -> Iterator[Builders]:
    """Starts processes that want the engine of ``identity``."""
    folder = tmp_path / "builders"
    folder.mkdir()
    builders = Builders(folder, identity)
    yield builders
    builders.close()


@pytest.fixture
def damage(cache: EngineCache) -> Callable[[str, Callable[[bytes], bytes]], None]:
    """Changes the bytes of an object of the cache behind its back."""

    def change(path: str, how: Callable[[bytes], bytes]) -> None:
        data = cache.objects.get(path)
        assert data is not None
        assert how(data) != data
        cache.objects.put(path, how(data))

    return change
