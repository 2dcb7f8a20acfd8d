"""The settings that an entry of a table, a class or a function, takes."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def accepted(entry: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that `entry` has a parameter for; of a Linen module these are its attributes."""
    parameters = inspect.signature(entry).parameters
    return {name: value for name, value in settings.items() if name in parameters}
