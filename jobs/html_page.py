"""What the HTML reports share: the page around them, its style, and that it asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from ..datasets.storage import foreign_errors
from ..errors import OutputError

__all__ = ["facts_list", "html_page", "table", "write_page"]

_SHARED = "page_view"


def html_page(
    view: str,
    *,
    title: str,
    parts: Mapping[str, str],
    scripts: Sequence[str] = (),
    has_base: bool = True,
) -> bytes:
    """Makes a page that needs nothing but itself and a browser.

    Its Content-Security-Policy forbids it to ask any network for anything, and every style and script but
    its own.

    Args:
        view: The folder of ``page.html``, ``page.css`` and the scripts. The first is the body, with
            ``@@name@@`` for each part and ``@@script@@`` for the scripts.
        title: Of the page, as text; the body has it as ``@@title@@``.
        parts: What else the body has, as HTML, by name.
        scripts: Files of the page's own script, in order.
        has_base: Whether the style that reports share stands in front of the page's own.
    """
    style = (_file(_SHARED, "base.css") if has_base else "") + _file(view, "page.css")
    script = "\n".join(_file(view, name) for name in scripts)
    shown = html.escape(title)
    body = _filled(_file(view, "page.html").rstrip("\n"), {**parts, "title": shown, "script": script})
    whole = {"policy": _policy(style, script), "title": shown, "style": style, "body": body}
    return _filled(_file(_SHARED, "page.html"), whole).encode("utf-8", "replace")


def write_page(page: bytes, path: str | os.PathLike[str]) -> None:
    """Writes a page to a local file, which is replaced if it is there.

    Raises:
        OutputError: The file cannot be written.
    """
    with foreign_errors(OutputError, f"{os.fspath(path)} cannot be written"):
        Path(path).write_bytes(page)


def facts_list(facts: Iterable[str]) -> str:
    """Texts as the items of a list."""
    return "".join(f"<li>{html.escape(fact)}</li>" for fact in facts)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls sideways where it is too wide; heads and cells are HTML."""
    head = "".join(f"<th>{one}</th>" for one in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _file(view: str, name: str) -> str:
    return (files("trtfleet.jobs") / view / name).read_text(encoding="utf-8")


def _filled(text: str, parts: Mapping[str, str]) -> str:
    # In one pass: a name that looks like a placeholder stays what it is.
    return re.sub(r"@@([a-z-]+)@@", lambda found: parts[found[1]], text)


def _policy(style: str, script: str) -> str:
    rules = ["default-src 'none'", f"style-src '{_digest(style)}'"]
    rules += [f"script-src '{_digest(script)}'"] if script else []
    rules += ["base-uri 'none'", "form-action 'none'"]
    rules += ["trusted-types 'none'", "require-trusted-types-for 'script'"] if script else []
    return "; ".join(rules)


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
