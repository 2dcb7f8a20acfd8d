"""Readers of matrices and labels: files that are damaged, hostile or of another kind raise one line."""

import json
import os
import pickle
import struct
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from reading_files import WRITERS, error_of, only, refused, values, write_csv, write_lists, write_npy, write_safetensors

from dcjax.collapse.reading import matrix, open_matrices, read_labels


def test_parquet_that_cannot_be_used(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "z.parquet"
    write_lists(path, [[1.0, 2.0]] * 5 + [[1.0]])
    assert "1 numbers in row 5 of z; the first has 2" in refused(path)
    write_lists(path, [1.0, 2.0], name=["a", "b"])
    assert "has name string" in refused(path)
    write_lists(path, [], pa.list_(pa.float32(), 3))
    assert "no rows" in refused(path)
    write_lists(path, [None, None], pa.list_(pa.float32()))
    assert "no columns" in refused(path)
    write_lists(path, [[[1.0]]])
    assert "has z list<" in refused(path)
    pq.write_table(pa.table([[1.0], [2.0]], names=["a", "a"]), path)
    assert "share a name" in refused(path)


@pytest.mark.parametrize("column", [[1, None], [[1], None], [[1], [None]]])
def test_parquet_nulls_among_integers(tmp_path, column):
    write_lists(tmp_path / "z.parquet", column)
    assert "nulls in a column of int64" in refused(tmp_path / "z.parquet")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "z.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install pyarrow" in refused(tmp_path / "z.parquet")


def test_missing_folder_empty_and_unknown(tmp_path):
    assert "does not exist" in refused(tmp_path / "z.npy")
    assert "is no file but a folder" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe.npy")
    assert "is no file" in refused(tmp_path / "pipe.npy")
    (tmp_path / "z.pkl").write_bytes(b"x")
    assert "'.pkl'; known: .npy, .npz, .safetensors, .csv, .parquet" in refused(tmp_path / "z.pkl")
    for suffix in ("npy", "npz", "safetensors", "csv", "parquet"):
        (tmp_path / f"empty.{suffix}").touch()
        assert "is empty" in refused(tmp_path / f"empty.{suffix}")
    for suffix in ("npy", "npz", "safetensors"):
        (tmp_path / f"text.{suffix}").write_text("no array\n" * 9)
        refused(tmp_path / f"text.{suffix}")


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_nothing_is_unpickled(tmp_path):
    trap = np.array([Trap(tmp_path / "sprung")] * 3, object)
    np.save(tmp_path / "z.npy", trap)
    np.savez(tmp_path / "z.npz", trap)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(trap))
    for name, problem in {"z.npy": "[3] object", "z.npz": "[3] object", "pickle.npy": "no .npy header"}.items():
        assert problem in refused(tmp_path / name)
        refused(tmp_path / name, read_labels)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({"shape": (-37, 5)}, "cannot hold"),
        ({"shape": (2**62, 2**62)}, "but holds 740"),
        ({"shape": (2**90, 0)}, "cannot hold"),
        ({"shape": (1,) * 99}, "cannot hold"),
        ({"shape": (38, 5)}, "760 bytes, but holds 740"),
        ({"shape": (36, 5)}, "720 bytes, but holds 740"),
        ({"shape": (0, 5)}, "but holds 740"),
        ({"shape": (5, 37, 1)}, "has z.npy [5, 37, 1] float32"),
        ({"shape": (185,)}, "[185] float32"),
        ({"shape": "(37, 5)"}, "shape is not valid"),
        ({"shape": (185,), "descr": "<M8[s]"}, "1480 bytes"),
        ({"shape": (), "descr": "<f4"}, "4 bytes"),
        ({"shape": (37, 5), "descr": "|S4"}, "|S4"),
        ({"shape": (37, 5), "descr": "<U1"}, "<U1"),
        ({"shape": (37, 5), "descr": "<U0"}, "cannot hold"),
        ({"shape": (37, 5), "descr": [("a", "<i2"), ("b", "<i2")]}, "('a'"),
        ({"shape": (37, 5), "descr": "no such"}, "not a valid dtype"),
        ({"shape": (37, 5), "descr": "<f2", "more": 1}, "correct keys"),
        ({"shape": (37, 5), "more": "x" * 20_000}, "up to 10000 bytes"),
        ({"shape": (37, 5), "more": "[" * 5_000}, "keys"),
    ],
)
def test_npy_headers_that_are_wrong(tmp_path, header, problem):
    write_npy(tmp_path / "z.npy", values(), header)
    assert problem in refused(tmp_path / "z.npy")


@pytest.mark.parametrize("array", [np.float32(1), np.zeros((0, 3)), np.zeros((3, 0)), np.zeros((2, 2), np.complex64)])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_that_are_no_matrix(tmp_path, array, suffix):
    np.save(tmp_path / "z.npy", array)
    np.savez(tmp_path / "z.npz", array)
    assert str(list(np.shape(array))) in refused(tmp_path / f"z.{suffix}")


def test_npy_version_that_is_not_known(tmp_path):
    write_npy(tmp_path / "z.npy", values())
    data = (tmp_path / "z.npy").read_bytes()
    (tmp_path / "z.npy").write_bytes(data[:6] + b"\x03" + data[7:])
    assert "version is (3, 0); known: (1, 0), (2, 0)" in refused(tmp_path / "z.npy")


def test_npy_header_of_gigabytes(tmp_path):
    path = tmp_path / "z.npy"
    path.write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{")
    os.truncate(path, 2**33)  # sparse
    tracemalloc.start()
    assert "up to 10000 bytes" in refused(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    write_npy(path, np.zeros(0), {"shape": (1, 2**31)})
    os.truncate(path, path.stat().st_size + 2**33)
    assert "rows of over" in refused(path)


def test_file_that_shrinks_after_it_was_opened(tmp_path):
    for name in ("z.npy", "z.safetensors", "z.npz"):
        WRITERS[name](tmp_path / name, values())
        found = only(tmp_path / name)
        os.truncate(tmp_path / name, 500)
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            list(found.blocks(4))


def zip_header(path, offset, form, value):
    """Overwrites a field of the first entry of a zip's directory."""
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, data.index(b"PK\x01\x02") + offset, value)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("offset", "form", "value", "problem"),
    [
        (8, "<H", 1, "is encrypted"),
        (10, "<H", 14, "zip compression 14"),
        (24, "<I", 2**31, "2147483648 bytes; its bytes in the zip"),
        (24, "<I", 868 + 1, "740 bytes, but holds 741"),
        (24, "<I", 868 - 1, "CRC"),
        (16, "<I", 12345, "CRC"),
        (42, "<I", 7, "magic number"),
    ],
)
def test_zip_directories_that_are_wrong(tmp_path, offset, form, value, problem):
    np.savez_compressed(tmp_path / "z.npz", values())
    zip_header(tmp_path / "z.npz", offset, form, value)
    assert problem in refused(tmp_path / "z.npz")


def test_zip_members_that_are_no_arrays(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("readme.txt", "text")
        archive.writestr("a\n\x1b[31m.npy", b"0" * 10**6)
    assert "a ?[31m has no .npy header" in refused(tmp_path / "z.npz")
    with zipfile.ZipFile(tmp_path / "none.npz", "w") as archive:
        archive.writestr("../../readme.txt", "text")
    assert "has no array" in refused(tmp_path / "none.npz")


def test_zip_directory_of_gigabytes(tmp_path):
    path = tmp_path / "z.npz"
    np.savez(path, values())
    data = path.read_bytes()
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, 2**31, 0, 0)
    with path.open("wb") as file:
        file.write(data)
        file.truncate(2**31)
        file.seek(2**31)
        file.write(end)
    assert "directory takes 2147483648 bytes" in refused(path)


def entry(dtype="F32", shape=(2, 3), offsets=(0, 24)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({"a": entry(), "b": entry()}, "starts at byte 0 of the data; the one before ends at 24"),
        ({"a": entry(), "b": entry(offsets=(20, 44))}, "starts at byte 20"),
        ({"a": entry(), "b": entry(offsets=(30, 54))}, "starts at byte 30"),
        ({"a": entry()}, "holds 48 bytes of data; its header states 24"),
        ({"a": entry(), "b": entry(shape=(2, 6), offsets=(24, 72))}, "holds 48 bytes of data; its header states 72"),
        ({"a": entry(offsets=(24, 0))}, "holds -24 bytes"),
        ({"a": entry(shape=(2, -3))}, "cannot hold"),
        ({"a": entry(shape=(2**62, 2**62))}, "but holds 24 bytes"),
        ({"a": entry(shape=[10**400] * 1000)}, "cannot hold"),
        ({"a": entry(shape=(2, 3.0))}, "needs dtype, shape"),
        ({"a": entry(shape=(True, 3))}, "needs dtype, shape"),
        ({"a": entry(dtype="F4")}, "'F4'; known: I8"),
        ({"a": {"dtype": "F32"}}, "needs dtype, shape"),
        ({"a": entry(offsets=(float("nan"), 24))}, "NaN is no JSON"),
        ([1], "has a list as its header"),
        ({}, "states 0"),
        (b"{" * 100_000, "cannot be read"),
        (b'{"a":' * 100_000, "cannot be read"),
        (b"\xff{}", "cannot be read"),
    ],
)
def test_safetensors_headers_that_are_wrong(tmp_path, header, problem):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    write_safetensors(tmp_path / "z.safetensors", {}, text, bytes(48))
    assert problem in refused(tmp_path / "z.safetensors")


@pytest.mark.parametrize("data", [b"\x01", struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 3) + b"{}"])
def test_safetensors_of_a_few_bytes(tmp_path, data):
    (tmp_path / "z.safetensors").write_bytes(data)
    assert "states a header of" in refused(tmp_path / "z.safetensors")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1,2\n3,4\n5\n", "has 1 cells in line 3; the lines before have 2"),
        ("1,2\n3,4,\n", "has 3 cells in line 2"),
        ("1,2\n3," + "x" * 99 + "\n", f"has '{'x' * 30}...' in line 2, where a number"),
        ("a,b\n1,c\n", "has 'c' in line 2"),
        ("1,a\n1,2\n", "has 'a' in line 1"),
        ("1,2\n\n3,4\n", "has the blank line 2"),
        ('1,2\n3,"4\n5,6\n', "is no CSV in line 2"),
        ("a,b\n", "has no row of numbers"),
        ("\n\n", "has no row of numbers"),
        (",0,1,2,3\n0,5,5,5,5\n", "an index of the rows"),
        (",a\n0,5\n", "an index of the rows"),
        ("1,2\n" + "3" * 2**23, "has over 4194304 characters in line 2"),
        ("1,2\n" + "3" * 2**20, "is no CSV in line 2"),
        ("1;2\n1,5;2\n", "has '1,5' in line 2"),
    ],
)
def test_csv_that_cannot_be_used(tmp_path, text, problem):
    (tmp_path / "z.csv").write_text(text)
    assert problem in refused(tmp_path / "z.csv")


def test_csv_that_is_not_utf_8(tmp_path):
    (tmp_path / "z.csv").write_text("1,2\n", encoding="utf-16")
    assert "'utf-8' codec can't decode" in refused(tmp_path / "z.csv")


def test_labels_that_cannot_be_used(tmp_path, monkeypatch):
    for name, text, problem in [
        ("y.csv", "1,2\n", "has 2 in line 1"),
        ("y.csv", "label\n", "has 0 of"),
        ("y.txt", "a\n\nb\n", "has the blank line 2"),
        ("y.txt", "a" * 300, "up to 300 characters"),
        ("y.txt", "\n", "has 0 of"),
    ]:
        (tmp_path / name).write_text(text)
        assert problem in refused(tmp_path / name, read_labels)
    for array in (values(), np.array([0.5]), np.zeros(0, int), np.array([None])):
        np.save(tmp_path / "y.npy", array)
        assert "needs one array [n] of integers or strings" in refused(tmp_path / "y.npy", read_labels)
    np.savez(tmp_path / "y.npz", a=np.arange(3), b=np.arange(3))
    assert "y.npz:b [3] int64" in refused(tmp_path / "y.npz", read_labels)
    write_npy(tmp_path / "y.npy", np.full(3, 2**31, np.uint32), {"descr": "<U1"})  # no characters
    refused(tmp_path / "y.npy", read_labels)
    monkeypatch.setattr("dcjax.collapse.reading.MAX_LABEL_BYTES", 16)
    (tmp_path / "y.txt").write_text("1\n2\n3\n")
    assert "16 bytes for all" in refused(tmp_path / "y.txt", read_labels)


def damaged(rng, data):
    """The bytes with some of them changed, cut off, left out or repeated."""
    data = bytearray(data)
    at = int(rng.integers(len(data)))
    match rng.integers(4):
        case 0:
            del data[at:]
        case 1:
            del data[at : at + int(rng.integers(1, 9))]
        case 2:
            data[at:at] = data[at : at + int(rng.integers(1, 9))]
        case _:
            for at in rng.integers(len(data), size=rng.integers(1, 4)):
                data[at] = rng.choice([0, 255, 1 << int(rng.integers(8)) ^ data[at], ord("9")])
    return bytes(data)


@pytest.mark.parametrize("name", [*WRITERS, "z.csv"])
def test_damaged_files_raise_only_value_errors(tmp_path, name):
    z = values(n=8, d=3)
    (WRITERS | {"z.csv": write_csv})[name](tmp_path / name, z)
    whole, rng = (tmp_path / name).read_bytes(), np.random.default_rng(0)
    errors = []
    for _ in range(25):
        (tmp_path / name).write_bytes(damaged(rng, whole))
        errors += [error_of(tmp_path / name, read) for read in (open_matrices, read_labels)]
    assert any(errors)


def test_rows_that_metadata_count_wrong(tmp_path):
    np.save(tmp_path / "z.npy", values())
    found = only(tmp_path / "z.npy")
    short = matrix.Matrix(found.name, (38, 5), found.dtype, found.read)
    with pytest.raises(ValueError, match="states 38 rows and holds 37"):
        list(short.blocks(8))
