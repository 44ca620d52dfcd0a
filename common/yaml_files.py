"""Settings in YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from common.errors import InputError


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The fields in a YAML file.

    Args:
        path: the file.
        what: what it should be, for messages: a recipe.

    Raises:
        InputError: where it is missing or not a YAML mapping.
    """
    if not path.is_file():
        raise InputError(f"no such file, expected {what} in YAML", path=path)
    try:
        contents = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        raise InputError(f"not YAML: {getattr(error, 'problem', error)}", path=path, line=line) from error
    if not isinstance(contents, dict):
        raise InputError(f"expected {what}: a YAML mapping of fields to values", path=path)
    return contents


def what_is_missing(error: Exception) -> str:
    """What reading the fields of a file came upon, for people: a field that is not there, or one of another form."""
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else f"a field has another form: {error}"
