"""An HTTP proxy in front of an S3 server that makes requests go wrong, by plan.

It stands between the product and a real server: what it lets through is carried out for real, and what it
drops after that was carried out too, which the client cannot know.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

__all__ = ["Fault", "FaultProxy", "Request"]

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}
_DELAY_S = 0.3
_XML = (
    '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{code}</Message>'
    "<RequestId>1</RequestId></Error>"
)


class Fault(Enum):
    """What may happen to a request."""

    DROP_BEFORE = "dropped before it is carried out"
    DROP_AFTER = "dropped after it was carried out"
    DELAY = "delayed"
    ERROR_500 = "500 before it is carried out"
    ERROR_500_AFTER = "500 after it was carried out"
    ERROR_503 = "503"
    SLOW_DOWN = "503 SlowDown"
    TIME_OUT = "no answer until the client gives up, before it is carried out"
    TIME_OUT_AFTER = "no answer until the client gives up, after it was carried out"


_ERRORS = {
    Fault.ERROR_500: (500, "InternalError"),
    Fault.ERROR_500_AFTER: (500, "InternalError"),
    Fault.ERROR_503: (503, "ServiceUnavailable"),
    Fault.SLOW_DOWN: (503, "SlowDown"),
}
_CARRIED_OUT = {Fault.DROP_AFTER, Fault.DELAY, Fault.ERROR_500_AFTER, Fault.TIME_OUT_AFTER}


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request that came.

    Attributes:
        number: In order of arrival, from 0.
        method: HTTP method.
        path: With the query.
        is_conditional: Whether it is to create an object only where there is none.
    """

    number: int
    method: str
    path: str
    is_conditional: bool


Rule = Callable[[Request], Fault | None]


class FaultProxy:
    """The proxy, as a context manager; ``url`` is where it listens.

    Args:
        target: URL of the server.
        patience_s: How long a request that times out is held; longer than clients wait.

    Attributes:
        rule: Decides what happens to each request; None lets it through. May be exchanged at any time.
        seen: Every request with its fault.
    """

    def __init__(self, target: str, patience_s: float = 5.0) -> None:
        self._target = urlsplit(target)
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self.rule: Rule = lambda request: None
        self.seen: list[tuple[Request, Fault | None]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def restart(self, rule: Rule) -> None:
        """Counts requests from 0 again, under another rule."""
        with self._lock:
            self.seen = []
            self.rule = rule

    @property
    def faults(self) -> int:
        """How many requests went wrong since the last start."""
        return sum(fault is not None for _, fault in self.seen)

    def decide(self, method: str, path: str, *, is_conditional: bool) -> Fault | None:
        """What happens to the next request."""
        with self._lock:
            request = Request(number=len(self.seen), method=method, path=path, is_conditional=is_conditional)
            fault = self.rule(request)
            self.seen.append((request, fault))
        return fault

    def hold(self) -> None:
        """Waits until clients have given up."""
        self._closing.wait(self._patience_s)

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Any:
        """Has the server carry out a request; its status, headers and body."""
        connection = http.client.HTTPConnection(
            self._target.hostname or "", self._target.port or 80, timeout=30
        )
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()


def _handler(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # The head and the body of an answer are written one after the other.
        disable_nagle_algorithm = True

        def log_message(self, format: str, *arguments: Any) -> None:
            """Says nothing."""

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:
                # The client gave up first.
                return

        def _serve(self) -> None:
            body = self._body()
            fault = proxy.decide(self.command, self.path, is_conditional="If-None-Match" in self.headers)
            answer = None
            if fault is None or fault in _CARRIED_OUT:
                headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
                answer = proxy.forward(self.command, self.path, headers, body)
            if fault in (Fault.TIME_OUT, Fault.TIME_OUT_AFTER):
                proxy.hold()
            if fault in (Fault.DROP_BEFORE, Fault.DROP_AFTER, Fault.TIME_OUT, Fault.TIME_OUT_AFTER):
                self._drop()
                return
            if fault is Fault.DELAY:
                time.sleep(_DELAY_S)
            if fault in _ERRORS:
                status, code = _ERRORS[fault]
                answer = (status, [("Content-Type", "application/xml")], _XML.format(code=code).encode())
            assert answer is not None
            self._answer(*answer)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(chunks)

        def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            self.send_response_only(status)
            length = str(len(body))
            for name, value in headers:
                if name.lower() == "content-length":
                    # That of the object where only its head was asked for.
                    length = value if self.command == "HEAD" else length
                elif name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _drop(self) -> None:
            self.close_connection = True
            # At once and for all: not even an orderly end of the connection.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()

    return Handler
