"""What TensorRT says while it parses, builds and loads, kept for our own error messages."""

from __future__ import annotations

from typing import Any

__all__ = ["MessageLog"]

_MOST_KEPT = 200


class MessageLog:
    """Makes loggers that keep warnings and errors instead of printing them."""

    @staticmethod
    def over(api: Any) -> Any:
        """A logger of a flavour's own ``ILogger`` type, with ``messages`` and ``why``."""

        class Log(api.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                api.ILogger.__init__(self)
                self.messages: list[tuple[str, str]] = []

            def log(self, severity: Any, text: str) -> None:
                if severity in (api.ILogger.INTERNAL_ERROR, api.ILogger.ERROR):
                    self._keep("error", text)
                elif severity == api.ILogger.WARNING:
                    self._keep("warning", text)

            def _keep(self, kind: str, text: str) -> None:
                if len(self.messages) < _MOST_KEPT:
                    self.messages.append((kind, " ".join(text.split())))

            def why(self) -> str:
                """The first error in one line, or the last warning; empty when nothing was said."""
                errors = [text for kind, text in self.messages if kind == "error"]
                return (errors or [text for _, text in self.messages[-1:]] or [""])[0][:400]

        return Log()
