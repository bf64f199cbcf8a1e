"""Following a job from afar: its log as it grows, over connections that break, and Ctrl-C meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from typing import Any

import aiohttp

from ..errors import ClusterError
from .submission import JobServer, Submission

__all__ = ["follow"]

_AGAIN_S = 10.0
_PAUSE_S = 1.0


def follow(
    server: JobServer,
    id_: str,
    *,
    show: Callable[[str], None],
    say: Callable[[str], None],
    patience_s: float = 60.0,
) -> Submission:
    """Shows a job's log from its first line until the job is over.

    The first Ctrl-C only asks; a second one within ten seconds stops the job, and the log goes on to its end.
    A third one leaves at once.

    Args:
        server: Where the job is.
        id_: Its submission id.
        show: Gets the log in pieces, which may end within a line.
        say: Gets lines about the job itself.
        patience_s: How long the server may be away before that is an error.

    Returns:
        The job, which is over.

    Raises:
        ClusterError: The server is away or does not know the job.
        KeyboardInterrupt: The job was stopped by Ctrl-C, or at a third one.
    """
    return asyncio.run(_Watch(server, id_, show, say, patience_s).run())


class _Watch:
    def __init__(
        self,
        server: JobServer,
        id_: str,
        show: Callable[[str], None],
        say: Callable[[str], None],
        patience_s: float,
    ) -> None:
        self._server = server
        self._id = id_
        self._show = show
        self._say = say
        self._patience_s = patience_s
        self._seen = 0
        self._asked_s = float("-inf")
        self._stopping: asyncio.Task[None] | None = None

    async def run(self) -> Submission:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        # Elsewhere than in the main thread there are no signals to wait for.
        with contextlib.suppress(ValueError, RuntimeError):
            loop.add_signal_handler(signal.SIGINT, self._interrupted, task)
        try:
            return await self._until_over()
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    async def _until_over(self) -> Submission:
        last_s = time.monotonic()
        while True:
            try:
                job = await asyncio.to_thread(self._server.of, self._id)
                if job.is_over:
                    self._advance(await asyncio.to_thread(self._server.client.get_job_logs, self._id), 0)
                    if job.status == "STOPPED" and self._stopping:
                        raise KeyboardInterrupt
                    return job
                last_s = time.monotonic()
            except (ClusterError, RuntimeError, OSError) as error:
                if time.monotonic() - last_s > self._patience_s:
                    raise ClusterError(
                        f"job {self._id} is out of sight: {error}",
                        "it may still run; the same command with --resume follows it, or starts it again",
                    ) from error
            with contextlib.suppress(aiohttp.ClientError, RuntimeError, OSError):
                await self._tail()
            await asyncio.sleep(_PAUSE_S / 4 if self._seen else _PAUSE_S)

    async def _tail(self) -> None:
        position = 0
        async for text in self._server.client.tail_job_logs(self._id):
            self._advance(text, position)
            position += len(text)

    def _advance(self, text: str, position: int) -> None:
        """Shows what is new of a piece of the log that begins at a position, in characters."""
        new = text[max(0, self._seen - position) :]
        if new:
            self._seen = position + len(text)
            self._show(new)

    def _interrupted(self, task: asyncio.Task[Any] | None) -> None:
        if self._stopping and task:
            task.cancel()
        elif time.monotonic() - self._asked_s < _AGAIN_S:
            self._say(f"stopping job {self._id}; Ctrl-C again leaves at once")
            self._stopping = asyncio.create_task(self._stop())
        else:
            self._asked_s = time.monotonic()
            self._say(
                f"job {self._id} goes on; Ctrl-C again within {_AGAIN_S:g} seconds stops it on the cluster "
                "(Ctrl-\\ leaves it running, and --resume follows it again)"
            )

    async def _stop(self) -> None:
        try:
            await asyncio.to_thread(self._server.stop, self._id)
        except ClusterError as error:
            self._say(f"cannot stop job {self._id}: {error}")
            self._stopping = None
