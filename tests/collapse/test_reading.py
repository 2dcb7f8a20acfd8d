"""Readers of matrices and labels: what was written is read, in any blocks and in bounded memory."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from reading_files import WRITERS, only, refused, values, write_csv, write_lists, write_safetensors

from dcjax.collapse.reading import array_files, matrix, open_matrices, read_labels, table_files

DTYPES = [np.float32, np.float64, np.float16, np.int64, np.int8, np.uint16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", WRITERS)
def test_reads_what_was_written(tmp_path, name, dtype):
    z = values(dtype)
    WRITERS[name](tmp_path / name, z)
    found = only(tmp_path / name)
    assert (found.name, found.rows, found.columns, found.shape) == (name, 37, 5, (37, 5))
    assert found.dtype == z.dtype
    for max_rows in (1, 4, 37, 1000):
        blocks = list(found.blocks(max_rows))
        assert max(map(len, blocks)) <= max_rows
        assert all(block.dtype == z.dtype for block in blocks)
        np.testing.assert_array_equal(np.concatenate(blocks), z)
    np.testing.assert_array_equal(found.array(), z)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("header", ["", "a{0}b{0}c{0}d{0}e", "0{0}1{0}2{0}3{0}4", '"a"{0} "b,c"{0}d{0}{0}'])
def test_csv(tmp_path, separator, header):
    z = np.random.default_rng(0).normal(size=(37, 5))
    write_csv(tmp_path / "z.csv", z, separator, header.format(separator))
    found = only(tmp_path / "z.csv")
    assert (found.rows, found.columns, found.dtype) == (None, 5, np.float64)
    for max_rows in (1, 4, 37, 1000):
        np.testing.assert_array_equal(np.concatenate(list(found.blocks(max_rows))), z)
    np.testing.assert_array_equal(found.array(), z)


def test_csv_cells_that_are_not_finite(tmp_path):
    (tmp_path / "z.csv").write_bytes(b'\xef\xbb\xbf1,,3\r\nnan,-inf," 5 "\r\n"6", 7,1e999\r\n\r\n')
    expected = [[1, np.nan, 3], [np.nan, np.nan, 5], [6, 7, np.nan]]
    np.testing.assert_array_equal(only(tmp_path / "z.csv").array(), expected)


def test_the_smallest_buffers(tmp_path, monkeypatch):
    """One row at a time, read in pieces that end inside a number."""
    monkeypatch.setattr(array_files, "PIECE_BYTES", 7)
    for module in (matrix, array_files, table_files):
        monkeypatch.setattr(module, "BUFFER_BYTES", 1)
    z = values(np.float64)
    for name in [name for name in WRITERS if "parquet" not in name]:
        WRITERS[name](tmp_path / name, z)
        np.testing.assert_array_equal(np.concatenate(list(only(tmp_path / name).blocks(3))), z)
    write_csv(tmp_path / "z.csv", z)
    np.testing.assert_array_equal(only(tmp_path / "z.csv").array(), z)


def test_bfloat16(tmp_path):
    z = values(ml_dtypes.bfloat16)
    write_safetensors(tmp_path / "z.safetensors", {"z": z})
    found = only(tmp_path / "z.safetensors")
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(np.concatenate(list(found.blocks(8))).astype(float), z.astype(float))
    np.save(tmp_path / "z.npy", z)
    assert "bfloat16" in refused(tmp_path / "z.npy")


def test_against_the_safetensors_library(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    arrays = {"a": values(), "b": values(np.int16), "mask": values(np.bool_), "bias": np.ones(3)}
    library.save_file(arrays, tmp_path / "z.safetensors", metadata={"format": "np"})
    found = {array.name: array.array() for array in open_matrices(tmp_path / "z.safetensors")}
    assert found.keys() == {"z.safetensors:a", "z.safetensors:b"}
    for name, array in found.items():
        np.testing.assert_array_equal(array, arrays[name[-1]])


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_chooses_among_arrays(tmp_path, suffix):
    arrays = {"a": values(), "bias": np.ones(3, np.float32), "mask": values(np.bool_), "b": values(np.int8)}
    kernel = arrays["kernel"] = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    path = tmp_path / f"z{suffix}"
    write_safetensors(path, arrays) if suffix == ".safetensors" else np.savez(path, **arrays)
    assert [array.name for array in open_matrices(path)] == [f"z{suffix}:a", f"z{suffix}:b"]
    found = open_matrices(path, ndim=(2, 4))[-1]
    assert (found.shape, found.rows, found.columns) == ((2, 3, 4, 5), 2, 5)
    np.testing.assert_array_equal(found.array(kernel.nbytes), kernel)
    with pytest.raises(ValueError, match="takes at least 480 bytes; at most 479"):
        found.array(kernel.nbytes - 1)
    with pytest.raises(ValueError, match=r"only \[n, d\]"):
        found.blocks(4)
    with pytest.raises(ValueError, match="at least 1, found 0"):
        open_matrices(path)[0].blocks(0)
    with pytest.raises(ValueError, match=r"with 3 axes.*z\.\w+:bias \[3\] float32"):
        open_matrices(path, ndim=(3,))


def test_fortran_order_with_four_axes(tmp_path):
    kernel = np.asfortranarray(np.arange(120).reshape(2, 3, 4, 5))
    np.save(tmp_path / "k.npy", kernel)
    np.testing.assert_array_equal(only(tmp_path / "k.npy", ndim=(4,)).array(), kernel)


def test_array_without_known_rows_is_bounded(tmp_path):
    write_csv(tmp_path / "z.csv", values())
    with pytest.raises(ValueError, match="at most 1000 are read"):
        only(tmp_path / "z.csv").array(1000)


@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_stays_bounded(tmp_path, order, monkeypatch):
    monkeypatch.setattr(array_files, "BUFFER_BYTES", 2**20)
    np.savez_compressed(tmp_path / "z.npz", np.zeros((2**15, 64), np.float32, order=order))  # 8 MiB
    tracemalloc.start()
    for block in only(tmp_path / "z.npz").blocks(2**10):  # 256 KiB
        del block
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * 2**20  # the buffer, and the pieces of 1 MiB that `zipfile` copies


def test_parquet_nulls(tmp_path):
    pa = pytest.importorskip("pyarrow")
    for name, kind in {
        "a": pa.list_(pa.float64()),
        "b": pa.list_(pa.float32(), 2),
        "c": pa.large_list(pa.float16()),
    }.items():
        write_lists(tmp_path / f"{name}.parquet", [None, [1, 2], [None, 3]], kind)
        np.testing.assert_array_equal(only(tmp_path / f"{name}.parquet").array(), [[np.nan] * 2, [1, 2], [np.nan, 3]])
    write_lists(tmp_path / "z.parquet", [1, None], f=[0.5, None])
    np.testing.assert_array_equal(only(tmp_path / "z.parquet").array(), [[1, 0.5], [np.nan] * 2])


def test_parquet_lists_beside_other_columns(tmp_path):
    write_lists(tmp_path / "z.parquet", list(values()), name=["x"] * 37, __index_level_0__=list(range(37)))
    found = only(tmp_path / "z.parquet")
    assert found.name == "z.parquet:z"
    np.testing.assert_array_equal(found.array(), values())


@pytest.mark.parametrize("labels", [np.array([3, -1, 3]), np.array(["a b", "ü", "007"]), np.array([0, 1], np.uint8)])
def test_labels_of_every_format(tmp_path, labels):
    np.save(tmp_path / "y.npy", labels)
    np.savez(tmp_path / "y.npz", z=values(), y=labels, ids=labels)
    np.savez(tmp_path / "only.npz", z=values(), what=labels)
    (tmp_path / "y.txt").write_text("\n".join(map(str, labels)))
    (tmp_path / "y.csv").write_text("Label\n" + "\n".join(map(str, labels)))
    for name in ("y.npy", "y.npz", "only.npz", "y.txt", "y.csv"):
        found = read_labels(tmp_path / name)
        np.testing.assert_array_equal(found, labels)
        assert found.dtype.kind in ("iu" if labels.dtype.kind in "iu" else "U")


def test_labels_of_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    path = tmp_path / "y.parquet"
    for labels in ([3, 1, 2], ["a", "b"]):
        write_lists(path, labels)
        assert read_labels(path).tolist() == labels
    write_lists(path, pa.array(["a", "b", "a"]).dictionary_encode())
    assert read_labels(path).tolist() == ["a", "b", "a"]
    for labels, problem in {(1, None): "has None", (1.5,): "has 1.5", ("x" * 300,): "300 characters"}.items():
        write_lists(path, list(labels))
        assert problem in refused(path, read_labels)
    write_lists(path, [1], more=[2])
    assert "has 1 rows of 2 columns" in refused(path, read_labels)


def test_label_headers(tmp_path):
    path = tmp_path / "y.csv"
    for text, expected in {"genus\n1\n2\n": [1, 2], "cat\ndog\n": ["cat", "dog"], "1\n2\n": [1, 2]}.items():
        path.write_text(text)
        assert read_labels(path).tolist() == expected
    np.save(tmp_path / "y.npy", np.array([b"a", "ü".encode()]))
    assert read_labels(tmp_path / "y.npy").tolist() == ["a", "ü"]
