"""``trtfleet submit``: a command of trtfleet as a job on a cluster, from a machine that is not part of it."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import __version__
from ..cluster.following import follow
from ..cluster.job_server import is_this_machine, require_token, url_of
from ..cluster.submission import JobServer, Submission
from ..cluster.wheel import pack_wheel
from ..errors import ClusterError, UsageError
from .submit_places import Places, check_places, warn_of_local_files
from .submitted import RESULT_MARK

__all__ = ["SubmitSpec", "latest_command", "run_submit"]

_NAME = "trtfleet"
_COMMAND_NOTE = "trtfleet_command"
_VERSION_NOTE = "trtfleet_version"
_FOLDER_NOTE = "trtfleet_folder"
_MOST_RACES = 5


@dataclass(frozen=True, kw_only=True)
class SubmitSpec:
    """One submission.

    Attributes:
        command: Arguments of ``trtfleet``, the name of its command first.
        address: URL of the job server; None takes ``RAY_API_SERVER_ADDRESS``, ``RAY_ADDRESS`` or this
            machine.
        wait: Whether to follow the job to its end.
        resume: Whether to follow a job of this command that is still running, or to show the log of
            one that succeeded. Without it, a running one is an error and another one starts anew.
        working_dir: Local folder that the job gets as its working folder.
        ship: Whether the running version of trtfleet is uploaded; otherwise the nodes must have it.
        python: Python of the head node that runs the command.
        allow_no_token: Whether a cluster on another machine may let everybody in.

    Raises:
        UsageError: An option is malformed.
    """

    command: tuple[str, ...]
    address: str | None = None
    wait: bool = True
    resume: bool = False
    working_dir: str | None = None
    ship: bool = True
    python: str = "python"
    allow_no_token: bool = False

    def __post_init__(self) -> None:
        if not self.command:
            raise UsageError(
                "there is no command to submit", "for example: trtfleet submit -- score MODEL DATA OUT"
            )
        if not self.python:
            raise UsageError("python must not be empty", "name the head node's Python")
        if self.working_dir is not None and not Path(self.working_dir).is_dir():
            raise UsageError(f"working_dir {self.working_dir} is no folder", "name a local folder")

    @property
    def name(self) -> str:
        """What the ids of all jobs of this command begin with."""
        digest = hashlib.sha256(json.dumps(self.command).encode()).hexdigest()
        return f"{_NAME}-{self.command[0]}-{digest[:12]}"


def _connect(address: str | None, allow_no_token: bool) -> JobServer:
    """Connects to a job server; one on another machine must ask for a token.

    Raises:
        ClusterError: It cannot be reached, refuses us, or lets everybody in.
    """
    url = url_of(address)
    if not allow_no_token and not is_this_machine(url):
        require_token(url)
    return JobServer(url)


def latest_command(address: str | None, allow_no_token: bool, has_folder: bool) -> tuple[str, ...]:
    """The command of the latest job that was submitted to a cluster.

    Args:
        address: As in ``SubmitSpec``.
        allow_no_token: As in ``SubmitSpec``.
        has_folder: Whether a working folder is given now.

    Raises:
        ClusterError: The cluster remembers none, or cannot be reached.
        UsageError: That job had a working folder, and none is given.
    """
    server = _connect(address, allow_no_token)
    for job in reversed(server.all()):
        if _COMMAND_NOTE in job.notes:
            folder = job.notes.get(_FOLDER_NOTE)
            if folder and not has_folder:
                raise UsageError(
                    f"job {job.id} had the working folder {folder}", "give --working-dir once more"
                )
            return tuple(map(str, json.loads(job.notes[_COMMAND_NOTE])))
    raise ClusterError(
        f"{server.url} remembers no job of trtfleet submit",
        "give the command, too",
    )


def run_submit(
    spec: SubmitSpec, places: Places, *, say: Callable[[str], None], result: Callable[[str], None]
) -> int:
    """Submits a job, or finds the one that runs, and follows it.

    Args:
        spec: What to submit.
        places: What its command names.
        say: Gets messages, those of the job included, without line ends.
        result: Gets the lines of the job's own result, or the job's id if there is no waiting.

    Returns:
        The job's exit code.

    Raises:
        TrtfleetError: It cannot be submitted, or did not end by itself.
        KeyboardInterrupt: It was stopped from here.
    """
    check_places(places, spec.working_dir)
    server = _connect(spec.address, spec.allow_no_token)
    if not is_this_machine(server.url):
        warn_of_local_files(places, say)
    id_ = _find_or_start(spec, server, say)
    if not spec.wait:
        result(id_)
        return 0
    log = _Log(say, result)
    try:
        job = follow(server, id_, show=log.show, say=say)
    finally:
        log.close()
    code = job.result()
    if code:
        say(f"job {id_} ended with exit code {code}")
    return code


def _find_or_start(spec: SubmitSpec, server: JobServer, say: Callable[[str], None]) -> str:
    """The id of the job to follow."""
    for _ in range(_MOST_RACES):
        earlier = [job for job in server.all() if job.id.startswith(f"{spec.name}-")]
        latest = earlier[-1] if earlier else None
        if latest and not latest.is_over:
            if not spec.resume:
                raise ClusterError(f"job {latest.id} runs this command already", "--resume follows it")
            say(f"following job {latest.id} on {server.url}")
            return latest.id
        if latest and spec.resume and latest.status == "SUCCEEDED":
            say(f"job {latest.id} has succeeded; without --resume the command would run again")
            return latest.id
        id_ = f"{spec.name}-{1 + max(map(_attempt_of, earlier), default=0)}"
        if latest:
            say(f"job {latest.id} ended as {latest.status}; starting {id_}")
        # False: somebody else submitted the same command at the same time.
        if _start(spec, server, id_, say):
            return id_
    raise ClusterError(
        f"{server.url} knows a job {id_}, but does not list it", "was it deleted? submit again later"
    )


def _attempt_of(job: Submission) -> int:
    number = job.id.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


def _start(spec: SubmitSpec, server: JobServer, id_: str, say: Callable[[str], None]) -> bool:
    folder = Path(spec.working_dir).resolve() if spec.working_dir else None
    notes = {_COMMAND_NOTE: json.dumps(spec.command), _VERSION_NOTE: __version__}
    if folder:
        notes[_FOLDER_NOTE] = str(folder)
    command = [spec.python, "-m", f"{_NAME}.jobs.submitted", __version__, *spec.command]
    with tempfile.TemporaryDirectory(prefix="trtfleet-wheel-") as scratch:
        wheel = pack_wheel(Path(scratch)) if spec.ship else None
        started = server.submit(id_, command, notes=notes, wheel=wheel, working_dir=folder)
    if started:
        shipped = f"with trtfleet {__version__}" if spec.ship else "with the trtfleet that is there"
        say(f"job {id_} on {server.url}, {shipped}")
    return started


class _Log:
    """Tells the lines of a job's log apart: the command's results, and everything else."""

    def __init__(self, say: Callable[[str], None], result: Callable[[str], None]) -> None:
        self._say = say
        self._result = result
        self._begun = ""

    def show(self, text: str) -> None:
        """Takes a piece of the log."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._line(line)

    def close(self) -> None:
        """Takes the last line, if it has no end."""
        if self._begun:
            self._line(self._begun)
        self._begun = ""

    def _line(self, line: str) -> None:
        if line.startswith(RESULT_MARK):
            self._result(line.removeprefix(RESULT_MARK))
        else:
            self._say(line)
