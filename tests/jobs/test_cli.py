"""The command line: what goes where, exit codes, job files, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trtfleet
from trtfleet.datasets.output import Output
from trtfleet.datasets.records import JobRecord
from trtfleet.datasets.storage import Storage
from trtfleet.errors import TrtfleetError
from trtfleet.jobs import progress, score
from trtfleet.jobs.cli import cli

COMMANDS = sorted(cli.commands)


class TestHelp:
    @pytest.mark.parametrize("name", ["", *COMMANDS])
    @pytest.mark.parametrize("flag", ["--help", "-h"])
    def test_help(self, name: str, flag: str, command: Callable[..., Any]) -> None:
        ran = command(*name.split(), flag)
        assert (ran.code, ran.stderr) == (0, "")
        assert ran.stdout.startswith(f"Usage: trtfleet {name or '[OPTIONS]'}")
        listed = cli.commands[name].params if name else []
        for parameter in listed:
            assert (
                parameter.opts[0] if isinstance(parameter, click.Option) else parameter.human_readable_name
            ) in ran.stdout

    def test_every_option_is_explained(self) -> None:
        for name in COMMANDS:
            for parameter in cli.commands[name].params:
                assert not isinstance(parameter, click.Option) or parameter.help

    def test_without_arguments(self, command: Callable[..., Any]) -> None:
        ran = command()
        assert ran.code == 2
        assert "Commands:" in ran.stdout + ran.stderr
        assert "error:" not in ran.stderr

    def test_version(self, command: Callable[..., Any]) -> None:
        ran = command("--version")
        assert (ran.code, ran.stdout.split()) == (0, ["trtfleet,", "version", trtfleet.__version__])

    def test_every_option_of_a_spec_has_its_flag(self) -> None:
        names = {parameter.name for parameter in cli.commands["score"].params}
        assert set(trtfleet.ScoreSpec.__dataclass_fields__) <= names


@pytest.mark.usefixtures("ray_session")
class TestScore:
    def test_json_alone_on_stdout(
        self,
        tmp_path: Path,
        linear_model: Callable[..., Path],
        vectors: Callable[..., Path],
        command: Callable[..., Any],
    ) -> None:
        out = tmp_path / "out"
        arguments = ["score", linear_model(), vectors(rows=80), out, "--keep", "id", "--batch-size", "32"]
        ran = command(*arguments, "--json")
        summary = json.loads(ran.stdout)
        assert ran.code == 0
        assert (summary["out"], summary["rows"], summary["rows_scored"]) == (str(out), 80, 80)
        assert (summary["already_finished"], summary["batch_size"]) == (False, 32)
        assert "1 files, 80 rows" in ran.stderr
        assert "backend onnxruntime-cpu, batch size 32" in ran.stderr
        again = command(*arguments, "--json")
        assert (again.code, json.loads(again.stdout)["already_finished"]) == (0, True)
        told = command(*arguments)
        assert (told.code, told.stdout) == (0, f"{out} is already finished: 80 rows, 0 bad rows\n")

    def test_the_summary_in_words(
        self,
        tmp_path: Path,
        linear_model: Callable[..., Path],
        vectors: Callable[..., Path],
        command: Callable[..., Any],
    ) -> None:
        out = tmp_path / "out"
        ran = command("score", linear_model(), vectors(rows=80), out, "--batch-size", "16", "--actors", "1")
        lines = ran.stdout.splitlines()
        assert lines[0] == f"80 rows in 1 files under {out}, 0 bad rows"
        assert re.fullmatch(r"\d+\.\d s: start \d+\.\d, scoring \d+\.\d, merging \d+\.\d", lines[1])
        assert re.fullmatch(r"[\d,]+ rows/s on 1 actors, onnxruntime-cpu, batch size 16", lines[2])
        assert any(line.startswith("actors' time: executing ") for line in lines)

    def test_a_job_file_with_flags_that_win(
        self,
        tmp_path: Path,
        linear_model: Callable[..., Path],
        vectors: Callable[..., Path],
        command: Callable[..., Any],
    ) -> None:
        job = tmp_path / "job.yaml"
        options = {
            "model": str(linear_model()),
            "data": [str(vectors(rows=30, name="a.parquet")), str(vectors(rows=20, name="b.parquet"))],
            "out": str(tmp_path / "out"),
            "keep": ["x"],
            "batch-size": 8,
            "max_bad_rows": "unlimited",
            "emit": "softmax",
        }
        job.write_text(json.dumps(options))
        flags = ["--keep", "id", "--batch-size", "16", "--emit", "argmax"]
        ran = command("score", "--spec", job, *flags, "--json")
        assert (ran.code, json.loads(ran.stdout)["batch_size"]) == (0, 16)
        table = pq.read_table(tmp_path / "out")
        assert table.column_names == ["id", "y_argmax"]
        assert table["id"].to_pylist() == [*range(30), *range(20)]

    def test_a_failed_job(
        self,
        tmp_path: Path,
        linear_model: Callable[..., Path],
        vectors: Callable[..., Path],
        command: Callable[..., Any],
    ) -> None:
        data, out = vectors(rows=30), tmp_path / "out"
        table = pq.read_table(data)
        holes = [None if i in (3, 4) else row for i, row in enumerate(table["x"].to_pylist())]
        column = pa.array(holes, table.schema.field("x").type)
        pq.write_table(table.set_column(1, "x", column), data)
        ran = command("score", linear_model(), data, out, "--max-bad-rows", "1", "--json")
        assert (ran.code, ran.stdout) == (13, "")
        assert "error: 2 rows are bad, 1 allowed" in ran.stderr.splitlines()
        status = command("status", out, "--json")
        found = json.loads(status.stdout)
        assert (status.code, status.stderr) == (0, "")
        assert (found["state"], found["bad_rows"], found["files"]) == ("failed", 2, 0)
        assert "2 rows are bad, 1 allowed" in found["error"]
        assert [(row["file"], row["row"]) for row in found["quarantine"]] == [(str(data), 3), (str(data), 4)]
        words = command("status", out).stdout
        assert f"{out}: failed (linear.onnx, generation g0001, 1 runs)" in words
        assert f"bad row: {data} row 3 column x: null" in words

    def test_status_of_a_finished_job(
        self,
        tmp_path: Path,
        linear_model: Callable[..., Path],
        vectors: Callable[..., Path],
        command: Callable[..., Any],
    ) -> None:
        out = tmp_path / "out"
        assert command("score", linear_model(), vectors(rows=40), out, "--batch-size", "32").code == 0
        ran = command("status", out, "--json")
        found = json.loads(ran.stdout)
        assert (ran.code, ran.stderr) == (0, "")
        assert (found["state"], found["rows"], found["rows_planned"]) == ("finished", 40, 40)
        assert (found["error"], found["quarantine"], found["files"], found["runs"]) == ("", [], 1, 1)
        assert found["shards_done"] == found["shards_total"]
        assert f"{out}: finished" in command("status", out).stdout

    def test_an_interrupt_from_inside(
        self,
        tmp_path: Path,
        linear_model: Callable[..., Path],
        vectors: Callable[..., Path],
        command: Callable[..., Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        class Interrupted(progress.Silent):
            def update(self, snapshot: progress.Snapshot) -> None:
                if snapshot.shards_done >= 3:
                    raise KeyboardInterrupt

        out = tmp_path / "out"
        arguments = ["score", linear_model(), vectors(), out, "--shard-bytes", "300", "--batch-size", "16"]
        arguments += ["--keep", "id", "--actors", "1"]
        with monkeypatch.context() as patch:
            patch.setattr(progress, "reporter_for", Interrupted)
            ran = command(*arguments, "--json")
        assert (ran.code, ran.stdout) == (130, "")
        assert ran.stderr.strip() == "interrupted; the same command resumes the job"
        assert trtfleet.status(out).state == "stopped"
        assert [path.name for path in out.iterdir()] == ["_trtfleet"]
        summary = json.loads(command(*arguments, "--json").stdout)
        assert 0 < summary["rows_scored"] < 1000
        assert pq.read_table(out)["id"].to_pylist() == list(range(1000))

    def test_ctrl_c(
        self,
        tmp_path: Path,
        linear_model: Callable[..., Path],
        vectors: Callable[..., Path],
        monkeypatch: pytest.MonkeyPatch,
        command: Callable[..., Any],
    ) -> None:
        import ray

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        module, out = f"slow_{secrets.token_hex(4)}", tmp_path / "out"
        (tmp_path / f"{module}.py").write_text(
            "import time\ndef hook(batch):\n    time.sleep(0.1)\n    return batch\n"
        )
        arguments = ["score", linear_model(), vectors(rows=400), out, "--shard-bytes", "300", "--batch-size"]
        arguments += ["16", "--actors", "1", "--keep", "id", "--preprocess", f"{module}:hook", "--json"]
        # A shell may start what it puts in the background with SIGINT ignored.
        source = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        source += "from trtfleet.jobs.cli import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", source, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        )
        try:
            commits = out / "_trtfleet" / "g0001" / "commits"
            deadline_s = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline_s:
                if commits.exists() and len(list(commits.iterdir())) >= 2:
                    break
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        assert (process.returncode, stdout) == (130, ""), stderr
        assert stderr.splitlines()[-1] == "interrupted; the same command resumes the job"
        assert "Traceback" not in stderr
        assert trtfleet.status(out).state == "stopped"
        assert [path.name for path in out.iterdir()] == ["_trtfleet"]
        summary = json.loads(command(*arguments).stdout)
        assert 0 < summary["rows_scored"] < 400
        assert pq.read_table(out)["id"].to_pylist() == list(range(400))


class TestExitCodes:
    def test_each_error_has_the_code_that_is_documented(
        self, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from trtfleet import errors

        table = dict(re.findall(r"(\w+Error)\s+(\d+) ", errors.__doc__ or ""))
        assert set(table) == set(errors.__all__)
        for name, code in table.items():
            kind: type[TrtfleetError] = getattr(errors, name)

            def fail(*_: object, kind: type[TrtfleetError] = kind) -> None:
                raise kind("a fact", "a hint")

            monkeypatch.setattr(score, "run_score", fail)
            ran = command("score", "m", "d", "o")
            assert (ran.code, ran.stderr) == (int(code), "error: a fact\nhint: a hint\n")

    @pytest.mark.parametrize("is_debugged", [False, True])
    def test_a_defect(
        self, is_debugged: bool, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise ZeroDivisionError("by\nzero")

        monkeypatch.setattr(score, "run_score", fail)
        monkeypatch.setenv("TRTFLEET_DEBUG", "1" if is_debugged else "")
        ran = command("score", "m", "d", "o")
        assert ran.code == 70
        assert "error: ZeroDivisionError: by zero\nhint: " in ran.stderr
        assert ("Traceback" in ran.stderr) is is_debugged

    def test_status_of_nothing(self, tmp_path: Path, command: Callable[..., Any]) -> None:
        ran = command("status", tmp_path / "nowhere", "--json")
        assert (ran.code, ran.stdout) == (7, "")
        assert ran.stderr.startswith(f"error: {tmp_path}/nowhere holds no output of trtfleet\nhint: ")
        assert not (tmp_path / "nowhere").exists()

    def test_status_of_a_sweep(self, tmp_path: Path, command: Callable[..., Any]) -> None:
        job = JobRecord(fingerprint={"models": {"m.onnx": "0"}}, resolved={}, shards=1, rows=1)
        Output.create(Storage(tmp_path / "out"), job)
        ran = command("status", tmp_path / "out")
        assert (ran.code, ran.stdout) == (7, "")
        assert "holds a sweep, and status is about scoring jobs\nhint: " in ran.stderr

    def test_a_pipe_that_closes(self, tmp_path: Path) -> None:
        source = "from trtfleet.jobs.cli import main; main()"
        command = f'"{sys.executable}" -c "{source}" score --help | true'
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {command}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr


def test_importing_the_package_loads_nothing_heavy() -> None:
    source = """
import sys, trtfleet
assert trtfleet.score
from trtfleet.jobs import cli
print(sorted({"ray", "pyarrow", "onnxruntime", "onnx", "numpy", "rich"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False, cwd=os.sep, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
