"""TensorRT's Python bindings without TensorRT: the wheel from the package index over a library of stubs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

DUMP = Path(__file__).with_name("dump_interface.py")

# What the bindings take from the three libraries when they are loaded; nothing of it is called.
_SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


@dataclass(frozen=True)
class Signature:
    """One way to call something.

    Attributes:
        names: Parameters without ``self``; those that the bindings do not name are ``arg0`` and so on.
        required: How many have no default.
        returns: The name of the class of what comes back.
    """

    names: tuple[str, ...]
    required: int
    returns: str

    def takes(self, positional: int, keywords: frozenset[str]) -> bool:
        """Whether a call fits."""
        given = positional + len(keywords)
        return self.required <= given <= len(self.names) and keywords <= set(self.names[positional:])


class Interface:
    """What a module of bindings offers.

    Args:
        dumped: What ``dump_interface.py`` printed.
    """

    def __init__(self, dumped: Any) -> None:
        self.version: str = dumped["version"]
        self._classes: dict[str, Any] = dumped["classes"]

    def has(self, name: str) -> bool:
        """Whether a class, or a member as ``Class.member``, exists."""
        owner, _, member = name.partition(".")
        found = self._classes.get(owner)
        return found is not None and (not member or member in found["members"])

    def doc(self, name: str) -> str:
        """Documentation of a class or member."""
        owner, _, member = name.partition(".")
        found = self._classes[owner]
        return str(found["members"][member] if member else found["doc"])

    def members(self, name: str) -> frozenset[str]:
        """Names of a class's members."""
        return frozenset(self._classes[name]["members"])

    def signatures(self, name: str) -> list[Signature]:
        """The ways to call a class or a method; none when it is no function."""
        called = f"{name}.__init__" if "." not in name else name
        member = called.partition(".")[2]
        return [
            _signature(line, match[1], match[2])
            for line in self.doc(called).splitlines()
            if (match := re.fullmatch(rf"(?:\d+\. )?{member}\((self.*)\) -> (.*)", line.strip()))
        ]


def _signature(line: str, arguments: str, returns: str) -> Signature:
    # ``= <Some.thing: 0>`` and ``list[int, str]`` hold commas and colons of their own.
    plain = re.sub(r"<[^<>]*>", "default", arguments)
    while "[" in plain:
        plain = re.sub(r"\[[^\[\]]*\]", "", plain)
    parameters = [part.strip() for part in plain.split(",")][1:]
    return Signature(
        names=tuple(part.partition(":")[0].strip() for part in parameters),
        required=sum("=" not in part for part in parameters),
        returns=returns.rpartition(".")[2],
    )


def dump(module: str, environment: dict[str, str] | None = None) -> Interface:
    """The interface of a module, imported in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(DUMP), module],
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Interface(json.loads(done.stdout))


@dataclass(frozen=True)
class Wheel:
    """The bindings of one version of TensorRT.

    Attributes:
        version: Of ``tensorrt-cu13-bindings``.
        folder: Where things may be put.
    """

    version: str
    folder: Path

    @cached_property
    def interface(self) -> Interface:
        """What they offer; skips the test where the package index is out of reach, unless CI=true."""
        self._download()
        with zipfile.ZipFile(next(self.folder.glob("*.whl"))) as wheel:
            wheel.extractall(self.folder)
        self._compile()
        paths = {"LD_LIBRARY_PATH": str(self.folder), "PYTHONPATH": str(self.folder)}
        return dump("tensorrt_bindings", paths)

    def _download(self) -> None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--dest", str(self.folder), f"tensorrt-cu13-bindings=={self.version}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        if done.returncode:
            why = f"pip cannot download the bindings: {done.stderr.strip().splitlines()[-1:]}"
            if os.environ.get("CI") == "true":
                pytest.fail(why)
            pytest.skip(why)

    def _compile(self) -> None:
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            pytest.skip("there is no C compiler for the library of stubs")
        source = self.folder / "stubs.c"
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _SYMBOLS))
        major = self.version.partition(".")[0]
        for library in _LIBRARIES:
            name = f"lib{library}.so.{major}"
            subprocess.run(
                [
                    compiler,
                    "-shared",
                    "-fPIC",
                    f"-Wl,-soname,{name}",
                    "-o",
                    str(self.folder / name),
                    str(source),
                ],
                check=True,
                timeout=60,
            )
