"""Recipes may be strangers': YAML by the safe loader, of bounded size and depth, aliases counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from psd.checks import Refused, brief

LIMIT = 1 << 16  # bytes; a recipe has a few thousand
DEPTH = 20
DIGITS = 30
VALUES = 10_000


class _Loader(yaml.SafeLoader):
    """Ten lines of aliases can stand for more values than a memory holds, so what they stand for is counted."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth, self.sizes = 0, dict[yaml.Node | None, int]()

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        self.depth += 1
        if self.depth > DEPTH:
            raise Refused(f"it is nested more than {DEPTH} levels deep; a recipe has sections of settings")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if is_alias and node not in self.sizes:
            raise Refused("an alias stands inside of what it names; write its value out")
        if not is_alias:
            children = node.value if isinstance(node, yaml.CollectionNode) else ()
            if isinstance(node, yaml.MappingNode):
                _check_keys(node)
                children = [child for pair in node.value for child in pair]
            self.sizes[node] = 1 + sum(self.sizes[child] for child in children)
            if self.sizes[node] > VALUES:
                raise Refused(f"with its aliases it holds more than {VALUES:,} values; write them out")
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merged keys give way to a mapping's own, where it is merged again too: PyYAML 6.0.4 mistakes that."""
        super().flatten_mapping(node)
        node.value = list({key.value: (key, value) for key, value in node.value}.values())

    def construct_number(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > DIGITS:
            raise Refused(f"line {node.start_mark.line + 1} has a number of {len(node.value)} digits; {DIGITS} may be")
        return self.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)


def _check_keys(node: yaml.MappingNode) -> None:
    where, seen = f"the mapping that begins in line {node.start_mark.line + 1}", set()
    for key, _ in node.value:
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            raise Refused(f"{where} has a key that is no text, {brief(key.value)}; put it into quotes")
        if key.value in seen:
            raise Refused(f"{where} has the key {brief(key.value)} twice; leave one out")
        seen.add(key.value)


def read(path: Path) -> Any:
    """What a file holds; ValueError naming the file, and what in it cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(LIMIT + 1)
        if len(content) > LIMIT:
            raise Refused(f"it is larger than {LIMIT:,} bytes; name the YAML file of a recipe")
        return yaml.load(content.decode("utf-8"), _Loader)  # a SafeLoader, and stricter  # nosec B506
    except (yaml.YAMLError, ValueError) as error:  # ValueErrors: no UTF-8, dates that are none
        raise Refused(f"{path}: not readable as YAML: {_told(error)}") from None


def _told(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).splitlines()[0]
