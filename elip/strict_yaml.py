"""YAML that people write: of two equal names none is lost, and a value cannot hold itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def read_yaml(text: str) -> Any:
    """Return what a text of YAML holds: plain values only, each name of a mapping once.

    Raises:
        yaml.YAMLError: It is no such text, whatever is wrong with it.
    """
    try:
        return _Loader(text).get_single_data()
    except (ValueError, LookupError, AttributeError, RecursionError) as error:
        # From values that are none of their kind (`2020-13-01`, `!!int ""`), and from great depth.
        raise yaml.YAMLError(f"a value cannot be read ({error})") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """Return what a file of YAML holds, which is `name: value` lines.

    Raises:
        ValueError: It cannot be read, or holds something else; the message names it.
    """
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    except (OSError, ValueError) as error:  # the second: no system has such a name
        raise ValueError(f"Cannot read {str(path)!r}: {error}.") from error
    return mapping(content, str(path))


def mapping(value: Any, where: str) -> dict[str, Any]:
    """Return a value that must be a mapping with text for names.

    Args:
        value: What was read.
        where: Its place, for the message.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {value!r}; it must be a mapping (`name: value` lines).")
    for key in value:
        if not isinstance(key, str):
            raise ValueError(f"{where} has the name {key!r}; a name is text (put it in quotes).")
    return value


class _Loader(yaml.SafeLoader):
    """Looks at names and aliases before merge keys (`<<`) are resolved, which may repeat a name."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._open: set[str | None] = set()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) and event.anchor in self._open:
            told = f"*{event.anchor} stands within what it names"
            raise yaml.MarkedYAMLError(problem=told, problem_mark=self.get_mark())
        anchor = getattr(event, "anchor", None)
        if anchor is None or isinstance(event, yaml.AliasEvent):
            return super().compose_node(parent, index)
        self._open.add(anchor)
        node = super().compose_node(parent, index)
        self._open.discard(anchor)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                told = f"{key.value!r} stands twice; one of the two would be lost"
                raise yaml.MarkedYAMLError(problem=told, problem_mark=key.start_mark)
            seen.add((key.tag, str(key.value)))
        return node
