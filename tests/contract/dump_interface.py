"""Prints the interface of a module of TensorRT's bindings as JSON: ``python dump_interface.py MODULE``."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any


def describe(thing: Any) -> Any:
    """A class as documentation and members, an enumeration as its names."""
    names = getattr(thing, "__members__", None)
    members = {
        name: getattr(thing, name).__doc__ or ""
        for name in dir(thing)
        if not name.startswith("__") or name == "__init__"
    }
    return {"doc": thing.__doc__ or "", "members": members, "enum": sorted(names) if names else None}


def main() -> None:
    """Writes what the module named first on the command line has."""
    module = importlib.import_module(sys.argv[1])
    classes = {name: describe(thing) for name, thing in vars(module).items() if isinstance(thing, type)}
    json.dump({"version": module.__version__, "classes": classes}, sys.stdout)


if __name__ == "__main__":
    main()
