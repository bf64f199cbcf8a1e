"""Jobs on a cluster's job server (the Ray Jobs API): what ran, starting and stopping one, how it ended."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from ray.exceptions import RayError
from ray.job_submission import JobDetails, JobSubmissionClient

from ..errors import ClusterError
from .job_server import AUTH_HINT, only_this_address

__all__ = ["JobServer", "Submission", "server_errors"]

_COMMAND_NOT_FOUND = (126, 127)
_MOST_DETAIL = 300
_CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job as its server knows it.

    Attributes:
        id: Its submission id.
        status: ``PENDING``, ``RUNNING``, ``STOPPED``, ``SUCCEEDED`` or ``FAILED``.
        notes: What was written down with it when it was submitted.
        exit_code: Of its process; negative for a signal, None if it did not end by itself.
        message: The server's words on its state; may have many lines.
        start_ms: When it was submitted, Unix time in milliseconds.
    """

    id: str
    status: str
    notes: Mapping[str, str]
    exit_code: int | None
    message: str
    start_ms: int

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")

    def result(self) -> int:
        """The exit code of a job that is over, as a shell would give it.

        Raises:
            ClusterError: It did not end by itself: never started, lost with its node, or stopped.
        """
        again = "the same command with --resume goes on where it was"
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            raise ClusterError(f"job {self.id} was stopped", again)
        if self.exit_code is None:
            fact = f"job {self.id} did not run to its end: {_last_line(self.message)}"
            raise ClusterError(fact, _hint_for(self.message) or again)
        if self.exit_code in _COMMAND_NOT_FOUND:
            raise ClusterError(
                f"job {self.id}: the head node does not find the Python to run it with",
                "--python PATH names the one that Ray runs in there",
            )
        return self.exit_code if self.exit_code >= 0 else 128 - self.exit_code


class JobServer:
    """A connection to a job server; methods may be called from any thread.

    Args:
        url: Where it is, of ``job_server.url_of``.

    Attributes:
        url: The same.
        client: Ray's own client, for what is not here.

    Raises:
        ClusterError: It is none, refuses us, or is too old.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        with server_errors(url), only_this_address():
            self.client = JobSubmissionClient(url)

    def of(self, id_: str) -> Submission:
        """One job."""
        with server_errors(self.url):
            return _submission(self.client.get_job_info(id_))

    def all(self) -> list[Submission]:
        """All jobs that the cluster remembers and that were submitted, the latest last."""
        with server_errors(self.url):
            found = [_submission(job) for job in self.client.list_jobs() if job.submission_id]
        return sorted(found, key=lambda job: job.start_ms)

    def submit(
        self,
        id_: str,
        command: Sequence[str],
        *,
        notes: Mapping[str, str],
        wheel: Path | None = None,
        working_dir: Path | None = None,
    ) -> bool:
        """Starts a job on the head node, with what it needs.

        Args:
            id_: Its submission id.
            command: Program and arguments; no shell splits or expands them.
            notes: What is written down with it; everybody who can use the cluster can read it.
            wheel: A package that the job and its actors import; it is uploaded.
            working_dir: A folder that they work in; it is uploaded, but for what ``.gitignore`` names.

        Returns:
            False if there is a job of that id already.

        Raises:
            ClusterError: The upload or the submission failed.
        """
        needs: dict[str, Any] = {}
        if wheel:
            needs["py_modules"] = [str(wheel)]
        if working_dir:
            needs["working_dir"] = str(working_dir)
        try:
            with server_errors(self.url):
                self.client.submit_job(
                    submission_id=id_,
                    entrypoint=f"exec {shlex.join(command)}",
                    runtime_env=needs,
                    metadata=dict(notes),
                )
        except ClusterError as error:
            if "already exists" in str(error.__cause__):
                return False
            raise
        return True

    def stop(self, id_: str) -> None:
        """Asks for the end of a job; Ray gives it three seconds before it is killed."""
        with server_errors(self.url):
            self.client.stop_job(id_)


@contextlib.contextmanager
def server_errors(url: str) -> Iterator[None]:
    """Maps what Ray's client raises to ``ClusterError``."""
    try:
        yield
    except (
        RayError,
        requests.RequestException,
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:
        raise _explain(error, url) from error


def _explain(error: Exception, url: str) -> ClusterError:
    # Ray's own class of refusals is not public; its words on them are.
    text = str(error)
    if isinstance(error, RayError) and "uthentication" in type(error).__name__ + text:
        return ClusterError(f"{url} does not let this client in: the token is missing or wrong", AUTH_HINT)
    if isinstance(error, ConnectionError | requests.ConnectionError):
        return ClusterError(f"nothing answers at {url}", "is the head node up, and is this its dashboard?")
    if "Version check returned 404" in text or isinstance(
        error, requests.JSONDecodeError | KeyError | TypeError
    ):
        return ClusterError(f"{url} is no job server", "is it a Ray head node's dashboard?")
    if "exceeds the maximum size" in text:
        return ClusterError(_last_line(text), "ship less with --working-dir, and put data on shared storage")
    return ClusterError(f"{url}: {_last_line(text) or type(error).__name__}", _hint_for(text))


def _hint_for(message: str) -> str:
    if "No such file or directory: 'pip'" in message:
        return (
            "nodes need pip on their PATH to install the wheel; or install trtfleet there and use --no-ship"
        )
    if "requires a different Python" in message:
        return "trtfleet needs Python 3.11 or newer on the cluster, the same version on all nodes"
    return ""


def _last_line(message: str) -> str:
    """The line that says most, without a traceback above or empty lines below it."""
    lines = [" ".join(line.split()) for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR:", "RuntimeError:", "FileNotFoundError:"))]
    return (errors or lines or ["Ray gives no reason"])[-1][:_MOST_DETAIL]


def _submission(job: JobDetails) -> Submission:
    return Submission(
        id=job.submission_id or job.job_id or "",
        status=str(job.status),
        notes=dict(job.metadata or {}),
        exit_code=job.driver_exit_code,
        message=job.message or "",
        start_ms=job.start_time or 0,
    )
