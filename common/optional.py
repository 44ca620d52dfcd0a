"""Packages that only some commands need."""

from __future__ import annotations

import importlib
from typing import Any

from common.errors import InputError


def import_optional(module: str, advice: str) -> Any:
    """Import a module that may not be installed.

    Raises:
        InputError: with this advice, if it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(advice if isinstance(error, ModuleNotFoundError) else f"{advice} ({error})") from error
