"""Secrets of the environment are found nowhere in what a job writes, prints or logs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SECRETS = {
    "TRTFLEET_CACHE_KEY": "planted-key-of-the-engine-cache-0001",
    "RAY_AUTH_TOKEN": "planted0002token0002planted0002token0002",
    "AWS_SECRET_ACCESS_KEY": "planted/secret/access/key/0003",
    "AWS_SESSION_TOKEN": "planted-session-token-0004",
    "HF_TOKEN": "planted-hub-token-0005",
}

PROGRAM = """
import json, sys
import ray
ray.init("local", num_cpus=2, include_dashboard=False, _temp_dir=sys.argv[1], logging_level="INFO")
from trtfleet.jobs.cli import main

codes = []
for arguments in json.loads(sys.argv[2]):
    sys.argv = ["trtfleet", *arguments]
    try:
        main()
    except SystemExit as end:
        codes.append(end.code)
print(json.dumps(codes))
"""


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A place with a short name for Ray's sockets and logs."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def leaks(folder: Path) -> list[tuple[str, str]]:
    """The files below a folder that hold a secret, and which."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            found += [(str(path), name) for name, value in SECRETS.items() if value.encode() in content]
    return found


@pytest.mark.ray
def test_planted_secrets_stay_where_they_are(
    tmp_path: Path,
    ray_folder: Path,
    linear_model: Callable[..., Path],
    vectors: Callable[..., Path],
    without_ray: dict[str, str],
) -> None:
    spec = tmp_path / "job.yaml"
    spec.write_text("batch_size: 8\nkeep: id\n")
    hook = "def fails_on_some(outputs, kept):\n    import os\n    raise ValueError('no row is good')\n"
    (tmp_path / "planted_hooks.py").write_text(hook)
    environment = {**without_ray, **SECRETS, "RAY_AUTH_MODE": "token"}
    environment |= {"TRTFLEET_CACHE": str(tmp_path / "cache"), "TRTFLEET_DEBUG": "1"}
    model, data = str(linear_model()), str(vectors(rows=40, row_group_rows=10))

    def score(out: str, *flags: str) -> list[str]:
        return ["score", model, data, str(tmp_path / out), "--spec", str(spec), "--actors", "1", *flags]

    good = score("good", "--json", "--trace", str(tmp_path / "trace.json"))
    bad = score("bad", "--postprocess", "planted_hooks:fails_on_some")
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ray_folder / "r"), json.dumps([good, bad])],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    summary, end = json.JSONDecoder().raw_decode(ran.stdout)
    of_good, of_bad = json.loads(ran.stdout[end:])
    assert (of_good, summary["rows"]) == (0, 40)
    assert of_bad != 0
    assert (tmp_path / "good" / "_SUCCESS").exists()
    assert (tmp_path / "bad" / "_trtfleet").exists()
    printed = ran.stdout + ran.stderr
    assert [name for name, value in SECRETS.items() if value in printed] == []
    assert leaks(tmp_path) == []
    logs = [path for path in ray_folder.rglob("logs/*") if path.is_file()]
    assert logs
    assert leaks(ray_folder) == []
