"""A partition as one HTML file: the original network beside the transformed one."""

from __future__ import annotations

import json
import os
from typing import Any

from ..trt_actors.partition.partition import Partition
from .html_page import facts_list, html_page, write_page
from .partition_scene import scene
from .value_text import counted

__all__ = ["write_partition_html"]

_VIEW = "partition_view"
_SCRIPTS = ("canvas.js", "panel.js", "page.js")


def write_partition_html(partition: Partition, path: str | os.PathLike[str], title: str) -> None:
    """Writes a page that needs nothing but itself and a browser.

    The original network is on the left. On the right each TensorRT segment is one box, and so is a native
    segment with many nodes. A click lists and highlights a segment's nodes. The page asks no network for
    anything: its Content-Security-Policy forbids that, and every script but its own.

    Args:
        partition: What to show.
        path: The file, replaced if it is there.
        title: The page's heading, the model's name for example; like all names of the model it is shown as
            text, whatever is in it.

    Raises:
        OutputError: The file cannot be written.
    """
    parts = {"facts": facts_list(_facts(partition)), "data": _embedded(scene(partition))}
    write_page(html_page(_VIEW, title=title, parts=parts, scripts=_SCRIPTS, has_base=False), path)


def _embedded(content: dict[str, Any]) -> str:
    """JSON that no HTML parser takes for a tag or a comment."""
    text = json.dumps(content, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _facts(partition: Partition) -> list[str]:
    nodes, before = len(partition.cleaned.graph.node), len(partition.original.graph.node)
    is_counted = any(segment.multiply_adds for segment in partition.segments)
    work = [f"{partition.multiply_add_share:.1%} of the multiply-adds in TensorRT"] if is_counted else []
    return [
        counted(nodes, "node") + (f" ({before:,} before cleaning)" if before != nodes else ""),
        counted(len(partition.tensorrt), "TensorRT segment"),
        f"{partition.node_share:.1%} of the nodes in TensorRT",
        *work,
        counted(len(partition.native), "native node"),
        f"asked: {partition.flavour}",
    ]
