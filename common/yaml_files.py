"""YAML settings files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from common.errors import InputError


class _Loader(yaml.SafeLoader):
    """Refuses a name that a mapping has twice, as YAML asks; other loaders keep the last one."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        names = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in names[:number]:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is there twice", problem_mark=key.start_mark)
        return node


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """Return the fields of a YAML file.

    Args:
        path: the file.
        what: what it should contain, for messages, such as "a recipe".

    Raises:
        InputError: if it is missing or not a YAML mapping.
    """
    if not path.is_file():
        raise InputError(f"no such file, expected {what} in YAML", path=path)
    try:
        contents = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        raise InputError(f"not YAML: {getattr(error, 'problem', error)}", path=path, line=line) from error
    if not isinstance(contents, dict):
        raise InputError(f"expected {what}: a YAML mapping of fields to values", path=path)
    return contents


def describe_field_error(error: Exception) -> str:
    """Return an error from reading a file's fields as text: a missing field or one of the wrong type."""
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else f"a field has the wrong type: {error}"
