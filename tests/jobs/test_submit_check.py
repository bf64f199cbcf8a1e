"""What ``trtfleet submit`` sees in a command before anything is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from trtfleet.errors import UsageError
from trtfleet.jobs.cli import cli
from trtfleet.jobs.submit_check import check_command


def parsed(name: str, *arguments: str) -> dict[str, Any]:
    """What the command line makes of a command's arguments."""
    assert isinstance(cli, click.Group)
    return cli.commands[name].make_context(name, list(arguments)).params


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    """A job file in a folder to ship."""
    path = tmp_path / "job.yaml"
    path.write_text("model: m.onnx\ndata: [/d]\nout: results\nemit: argmax\nmax-bad-rows: 3\n")
    return path


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("score", (), "model is missing"),
        ("score", ("/m", "/d", "/o", "--emit", "best"), "emit 'best' is not known"),
        ("calibrate", ("/m", "/d", "--method", "best"), "got 'best'"),
        ("compare", ("/m", "/m", "/d", "--exclude", "a"), "exclude"),
        ("sweep", ("/m", "-o", "/o", "--batch-sizes", "0"), "batch_sizes must be >= 1, got 0"),
        ("sweep", ("/m", "-o", "/o", "--backends", "cuda"), "backend 'cuda' is unknown"),
    ],
)
def test_options_that_the_cluster_would_refuse(name: str, arguments: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_command(name, parsed(name, *arguments), None)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("score", ("/m", "/d", "/e", "/o", "--preprocess", "no:such", "--dry-run", "--json", "--no-report")),
        ("calibrate", ("/m", "/d", "--dry-run")),
        ("compare", ("/m", "/m", "/d", "--precision-b", "int8", "--max-drop", "0")),
        ("sweep", ("/m", "/n", "-o", "/o", "--batch-sizes", "1,8", "--dry-run")),
    ],
)
def test_a_command_in_order_stays_as_it_is(name: str, arguments: tuple[str, ...]) -> None:
    given = parsed(name, *arguments)
    assert check_command(name, given, None) == given


def test_a_shipped_job_file_is_read(job_file: Path) -> None:
    found = check_command("score", parsed("score", "--spec", job_file.name), str(job_file.parent))
    assert (found["model"], found["out"], found["max_bad_rows"]) == ("m.onnx", "results", 3)


def test_flags_win_over_a_shipped_job_file(job_file: Path) -> None:
    given = parsed("score", "--spec", job_file.name, "--emit", "softmax")
    assert check_command("score", given, str(job_file.parent))["emit"] == "softmax"


def test_what_a_shipped_job_file_has_wrong(job_file: Path) -> None:
    job_file.write_text("model: m.onnx\ndata: [/d]\n")
    with pytest.raises(UsageError, match="out is missing"):
        check_command("score", parsed("score", "--spec", job_file.name), str(job_file.parent))


def test_a_job_file_of_the_nodes_is_theirs_to_read(job_file: Path) -> None:
    given = parsed("score", "--spec", str(job_file), "--emit", "best")
    assert check_command("score", given, str(job_file.parent)) == given
