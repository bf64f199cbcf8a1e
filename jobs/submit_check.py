"""What shows to be wrong with a submitted command before anything is sent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .calibrate_spec import CalibrateSpec
from .compare_spec import CompareSpec
from .spec import ScoreSpec, load_spec
from .sweep.spec import SweepSpec

__all__ = ["check_command"]

_SPECS: Mapping[str, Any] = {
    "score": ScoreSpec,
    "calibrate": CalibrateSpec,
    "compare": CompareSpec,
    "sweep": SweepSpec,
}
# Of the command line alone.
_NO_OPTIONS = ("spec", "dry_run", "as_json")


def check_command(name: str, given: Mapping[str, Any], working_dir: str | None) -> dict[str, Any]:
    """Makes of a command's options what the cluster would make of them.

    No file is looked at but a job file in the folder that is shipped. One that only the nodes have may hold
    anything, so a command with such a file is left to them.

    Args:
        name: ``score``, ``calibrate``, ``compare`` or ``sweep``.
        given: What its command line was parsed to, by parameter.
        working_dir: The folder that is shipped.

    Returns:
        The same with what a shipped job file adds.

    Raises:
        UsageError: The command would be refused for its options, or the job file is none.
    """
    file = given.get("spec")
    if file is not None and (os.path.isabs(file) or working_dir is None):
        return dict(given)
    from_file = {} if file is None else load_spec(str(Path(working_dir or "", file)))
    options = {key.replace("-", "_"): value for key, value in from_file.items()}
    options |= {
        key: value
        for key, value in given.items()
        if key not in _NO_OPTIONS and value is not None and value != ()
    }
    _SPECS[name].of(options)
    return {**given, **options}
