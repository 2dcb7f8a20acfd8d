"""The exception that a user's mistake raises, and the one that something outside of the run does."""

import difflib
from collections.abc import Iterable


class SettingError(ValueError):
    """A setting, file or folder that cannot be used as it stands.

    The message is a single line: the setting, the value found and what would be right. The commands print it without a
    traceback and leave with exit status 2; library callers catch it as a `ValueError`.
    """


class InterruptedRunError(RuntimeError):
    """One of several processes failed, or lost the others; the same command goes on from the last checkpoint.

    The message is a single line, which the commands print before they leave with exit status 1.
    """


def unknown_name(setting: str, name: str, table: Iterable[str]) -> SettingError:
    """The error for a name that is not in a table: it lists the known ones and suggests the nearest."""
    names = sorted(table)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    # A list of all config keys would bury the hint.
    known = "" if near and len(names) > 20 else f"; known: {', '.join(names)}"
    return SettingError(f"{setting} '{name}' is not known{hint}{known}")
