"""What the tests of the readers share: files of every format, and the errors from reading them."""

import json
import struct

import jaxtyping
import numpy as np
import pytest

from dcjax.collapse.reading import open_matrices

CODES = {"float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "BF16"}


def values(dtype=np.float32, n=37, d=5):
    """[n, d], all of which every dtype stores exactly."""
    return np.random.default_rng(0).integers(0, 100, (n, d)).astype(dtype)


def write_safetensors(path, arrays, header=None, data=None):
    stated, start = {}, 0
    for name, array in arrays.items():
        kind = array.dtype.name
        code = CODES.get(kind) or kind.replace("uint", "U").replace("int", "I").replace("bool", "BOOL")
        stated[name] = {"dtype": code, "shape": array.shape, "data_offsets": [start, start + array.nbytes]}
        start += array.nbytes
    text = json.dumps(stated).encode() if header is None else header
    data = b"".join(array.tobytes() for array in arrays.values()) if data is None else data
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_npy(path, z, header=None):
    """An .npy file whose header may differ from its data."""
    stated = {"descr": "<f4", "fortran_order": False, "shape": z.shape} | (header or {})
    text = repr(stated).encode() + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + z.tobytes())


def write_csv(path, z, separator=",", header=""):
    lines = [separator.join(map(repr, row)) for row in z.tolist()]
    path.write_text("\n".join([header] * bool(header) + lines) + "\n")


def write_lists(path, lists, kind=None, **others):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"z": pa.array(lists, kind), **others}), path)


def write_table(path, z):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({f"f{i}": column for i, column in enumerate(z.T)}), path, row_group_size=10)


WRITERS = {
    "z.npy": np.save,
    "fortran.npy": lambda path, z: np.save(path, np.asfortranarray(z)),
    "z.npz": lambda path, z: np.savez(path, z),
    "deflated.npz": lambda path, z: np.savez_compressed(path, z),
    "fortran.npz": lambda path, z: np.savez_compressed(path, np.asfortranarray(z)),
    "z.safetensors": lambda path, z: write_safetensors(path, {"z": z}),
    "table.parquet": write_table,
    "lists.parquet": lambda path, z: write_lists(path, list(z)),
}


def only(path, **options):
    (found,) = open_matrices(path, **options)
    return found


def refused(path, read=open_matrices):
    """The message, from opening the file or from reading it."""
    error = error_of(path, read)
    assert error is not None, f"{path} was read"
    return str(error)


def error_of(path, read):
    """The error from reading a file, which is one line that names the file and hides no error of this code; or None."""
    try:
        for array in read(path):
            if read is open_matrices:
                assert sum(map(len, array.blocks(4))) == (array.rows or len(array.array()))
    except ValueError as caught:
        error = caught
    else:
        return None
    cause, message = error.__cause__, str(error)
    assert not isinstance(cause, (AssertionError, AttributeError, NameError, jaxtyping.TypeCheckError)), message
    assert path.name in message
    assert message.isprintable()
    assert len(message) < 600
    return error
