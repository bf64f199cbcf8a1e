"""YAML without what makes a small file large or slow: references, endless numbers, deep nesting."""

from __future__ import annotations

from typing import Any

import yaml

__all__ = ["read_yaml"]

_MOST_DIGITS = 64
_MOST_DEPTH = 16


class _PlainLoader(yaml.SafeLoader):
    """Refuses aliases, numbers of more than 64 characters, and nesting beyond 16 levels."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """One node of the file; every level of nesting passes here."""
        if self.check_event(yaml.AliasEvent):
            event = self._next()
            raise yaml.composer.ComposerError(
                None, None, f"*{event.anchor} refers to another value: write it out", event.start_mark
            )
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise yaml.composer.ComposerError(
                None, None, f"it is nested more than {_MOST_DEPTH} deep", self._next().start_mark
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _next(self) -> Any:
        return self.peek_event()  # type: ignore[no-untyped-call]

    def number(self, node: yaml.ScalarNode) -> int | float:
        """A number, whole or not."""
        if len(node.value) > _MOST_DIGITS:
            raise yaml.constructor.ConstructorError(
                None, None, f"a number of {len(node.value):,} characters", node.start_mark
            )
        if node.tag == "tag:yaml.org,2002:int":
            return self.construct_yaml_int(node)
        return self.construct_yaml_float(node)


for _tag in ("int", "float"):
    _PlainLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", _PlainLoader.number)


def read_yaml(text: bytes) -> Any:
    """Reads one document of YAML.

    Raises:
        yaml.YAMLError: It is not YAML, or holds what is refused here.
        ValueError: A number or a date cannot be.
    """
    return yaml.load(text, _PlainLoader)
