"""A YAML loader that rejects what plain YAML accepts silently: repeated keys, and aliases."""

from typing import Any

import yaml


def load(text: str) -> Any:
    """Raises yaml.YAMLError, or RecursionError for text that is nested too deeply."""
    return yaml.load(text, Loader=_StrictLoader)  # noqa: S506, a SafeLoader


def lines_of_keys(text: str) -> dict[str, tuple[int, int]]:
    """The first and the last line of each key with its value, by its dotted path; lines count from 1.

    `text` has been loaded before.
    """
    lines: dict[str, tuple[int, int]] = {}

    def visit(node: yaml.Node | None, path: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                name = f"{path}{key.value}"
                lines[name] = key.start_mark.line + 1, max(key.start_mark.line + 1, _last_line(value))
                visit(value, f"{name}.")

    visit(yaml.compose(text, Loader=_StrictLoader), "")
    return lines


def _last_line(node: yaml.Node) -> int:
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:  # its own end is the next key
        last = node.value[-1]
        return _last_line(last[1] if isinstance(last, tuple) else last)
    end: int = node.end_mark.line + bool(node.end_mark.column)
    return end


class _StrictLoader(yaml.SafeLoader):
    """In plain YAML a later key replaces an earlier one, and nested aliases can expand beyond any memory."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            alias: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, f"the alias *{alias.anchor} is not supported; write the value itself", alias.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            keys.append(key)
        return super().construct_mapping(node, deep)
