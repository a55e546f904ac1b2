"""A YAML loader that rejects what plain YAML accepts silently: repeated keys, and aliases."""

from typing import Any

import yaml


def load(text: str) -> Any:
    """Raises yaml.YAMLError, or RecursionError for text that is nested too deeply."""
    return yaml.load(text, Loader=_StrictLoader)  # noqa: S506, a SafeLoader


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
