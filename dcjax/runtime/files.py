"""Files that are whole or absent: they are written under another name first, then renamed."""

import os
import pathlib
from typing import Any

import numpy as np


def replace_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file so that an interruption leaves either the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def replace_npz(path: pathlib.Path, arrays: dict[str, Any]) -> None:
    """Writes an .npz file so that an interruption leaves either the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:  # NumPy would add .npz to a file name
        np.savez(file, **arrays)
    os.replace(partial, path)
