"""The exception that a user's mistake raises, and the one that something outside of the run does."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Sequence


class SettingError(ValueError):
    """A setting, file or folder that cannot be used as it stands.

    The message is a single line: the setting, the value found and what would be right. The commands print it without a
    traceback and leave with exit status 2; library callers catch it as a `ValueError`.
    """


class InterruptedRunError(RuntimeError):
    """One of several processes failed, or lost the others; the same command goes on from the last checkpoint.

    The message is a single line, which the commands print before they leave with exit status 1.
    """


class StoppedRunError(InterruptedRunError):
    """SIGINT or SIGTERM came; the state is saved, and the same command goes on from there."""


@contextlib.contextmanager
def section(name: str) -> Iterator[None]:
    """Names the config section in a `ValueError` of a lower layer, whose message begins with its own argument."""
    try:
        yield
    except SettingError:
        raise
    except ValueError as error:
        raise SettingError(f"{name}.{error}") from error


def unknown_name(setting: str, name: str, table: Iterable[str]) -> SettingError:
    """The error for a name that is not in a table: it lists the known ones and suggests the nearest."""
    return SettingError(not_known(setting, name, table))


def not_known(setting: str, name: str, table: Iterable[str]) -> str:
    """The message of `unknown_name`, for the plain `ValueError` of a lower layer."""
    names = sorted(table)
    hint = did_you_mean(name, names)
    # A list of all config keys would bury the hint.
    known = "" if hint and len(names) > 20 else f"; known: {', '.join(names)}"
    return f"{setting} '{name}' is not known{hint}{known}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The hint at the known name that is nearest; empty where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def some(names: Sequence[str]) -> str:
    """The first five names of a list, and how many there are."""
    return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")


def first_line(error: Exception) -> str:
    """The first line of another library's message, or the name of an error without one."""
    return (str(error).splitlines() or [type(error).__name__])[0]
