"""The exceptions for a user's mistake and for a run that is cut off, and the wording of their messages."""

import difflib
from collections.abc import Iterable, Sequence


class SettingError(ValueError):
    """A setting, file or folder cannot be used as it stands.

    The message is a single line: the setting, the value found and what would be right. The commands print it without a
    traceback and end with exit status 2; library callers can catch it as a `ValueError`.
    """


class InterruptedRunError(RuntimeError):
    """A run cannot go on at this moment; the same command resumes later, from the last checkpoint.

    One of several processes failed or lost the others, another process trains the run, or a file cannot be read now.

    The message is a single line, which the commands print before they end with exit status 1.
    """


class StoppedRunError(InterruptedRunError):
    """SIGINT or SIGTERM stopped the run; the state is saved, and the same command resumes from there."""


def unknown_name(setting: str, name: str, table: Iterable[str]) -> SettingError:
    """The error for a name that is not in a table; it suggests the nearest name and lists the known ones."""
    return SettingError(not_known(setting, name, table))


def not_known(setting: str, name: str, table: Iterable[str]) -> str:
    """The message of `unknown_name`, for the plain `ValueError` of a lower layer."""
    names = sorted(table)
    hint = did_you_mean(name, names)
    # A list of all config keys would bury the hint.
    known = "" if hint and len(names) > 20 else f"; known: {', '.join(names)}"
    return f"{setting} '{name}' is not known{hint}{known}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint at the nearest known name; empty if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def some(names: Sequence[str]) -> str:
    """The first five names of a list, and how many there are."""
    return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")


def printable(text: str, most: int = 500) -> str:
    """The text without line breaks and control characters, cut to so many characters."""
    text = text if len(text) <= most else f"{text[:most]}..."
    return "".join(c if c.isprintable() else "?" for c in text.replace("\n", " "))


def first_line(error: Exception) -> str:
    """The first line of another library's message, or the error's type if it has no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
