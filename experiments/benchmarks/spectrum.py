"""Time, memory and accuracy of the spectrum of an embedding against other ways to compute it.

    python -m experiments.benchmarks.spectrum --rows 50000 --dim 2048 --repeats 3      (four minutes on two cores)
    python -m experiments.benchmarks.spectrum --accuracy

Peers: `numpy`, all rows in memory, `np.cov` and a full SVD, as the authors' script has it; `incremental_pca`, that of
scikit-learn with its own batch size. Ours: `spectrum`, `dcjax.collapse.spectrum` of the float32 rows; `covariance64`
and `covariance32`, the running QR decomposition of `dcjax.collapse.Covariance` in blocks of 4,096 rows. Each is warmed
up on a few rows, then all are interleaved; the best round counts. Memory is the peak of a process of its own above what
it held with the rows loaded. `--accuracy` prints the largest relative error of the eigenvalues of every decade, from 1
down to 1e-12, of rows with a mean of 0 or of 10 times the spread, with a Gram matrix in the rows' own dtype beside the
others. One JSON line per case.
"""

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable

import numpy as np
from sklearn.decomposition import IncrementalPCA

from dcjax.collapse import Covariance, spectrum

BLOCK = 4096
DECADES = 12


def of_numpy(z: np.ndarray) -> np.ndarray:
    """All at once: `np.cov` in float64, then U, S and V."""
    return np.linalg.svd(np.cov(z.T, bias=True))[1]


def of_incremental_pca(z: np.ndarray) -> np.ndarray:
    """All components, from batches of five times the dimension."""
    fitted = IncrementalPCA().fit(z)
    return np.asarray(fitted.explained_variance_) * (len(z) - 1) / len(z)


def of_covariance(z: np.ndarray, dtype: type, block: int = BLOCK) -> np.ndarray:
    """The running QR decomposition."""
    state = Covariance.init(z.shape[1], dtype)
    for start in range(0, len(z), block):
        state = state.update(z[start : start + block])
    return np.asarray(state.singular_values())


def of_gram(z: np.ndarray) -> np.ndarray:
    """The Gram matrix of the centred rows in their own dtype."""
    centred = z - z.mean(axis=0)
    return np.linalg.eigvalsh(centred.T @ centred / len(z))[::-1]


METHODS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "spectrum": spectrum,
    "covariance64": lambda z: of_covariance(z, np.float64),
    "covariance32": lambda z: of_covariance(z, np.float32),
    "numpy": of_numpy,
    "incremental_pca": of_incremental_pca,
}


def rows_of(count: int, dim: int) -> np.ndarray:
    """Normal rows in float32 whose columns' variances fall as 1 / j."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, dim), dtype=np.float32) / np.sqrt(np.arange(1, dim + 1, dtype=np.float32))


def extra_memory(name: str, count: int, dim: int) -> float:
    """The peak of a method in MB, above a process that holds the rows and has used every library on a few of them."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_extra_memory, (name, count, dim))


def _extra_memory(name: str, count: int, dim: int) -> float:
    z = rows_of(count, dim)
    METHODS[name](z[: 2 * 64, :64])
    # The largest size so far, which making the rows has reached: no less than what is held now, so that the difference
    # counts only what the method takes beyond it.
    held = resident()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    filler = np.ones(int(max(before - held, 0) * 2**17) + 1)  # so that the peak is what is held
    held = resident()
    METHODS[name](z)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return round(peak - held + 0 * filler[0], 1)


def resident() -> float:
    """Megabytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def time_all(count: int, dim: int, repeats: int, names: list[str]) -> None:
    """Prints the time and the memory of every method."""
    z = rows_of(count, dim)
    best, values = dict.fromkeys(names, float("inf")), {}
    for name in names:
        METHODS[name](z[:512, :64])
    for _ in range(repeats):
        for name in names:
            start = time.perf_counter()
            values[name] = METHODS[name](z)
            best[name] = min(best[name], time.perf_counter() - start)
    for name in names:
        # float32 rounds the largest value, and np.cov and scikit-learn agree with the rest to their own rounding.
        np.testing.assert_allclose(values[name], values[names[0]], rtol=1e-3, atol=1e-6 * values[names[0]][0])
        record = {
            "method": name,
            "rows": count,
            "dim": dim,
            "seconds": round(best[name], 3),
            "repeats": repeats,
            "extra_mb": extra_memory(name, count, dim),
        }
        print(json.dumps(record), flush=True)


def accuracy() -> None:
    """Prints the errors of every method."""
    dim, count, rng = 4 * DECADES + 1, 20_000, np.random.default_rng(0)
    values = 10.0 ** -np.linspace(0, DECADES, dim)
    normal = rng.standard_normal((count, dim))
    left = np.linalg.qr(normal - normal.mean(axis=0))[0]
    rotation = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    for dtype, mean in ((np.float32, 0.0), (np.float32, 10.0), (np.float64, 0.0), (np.float64, 1e4)):
        z = (np.sqrt(count) * (left * np.sqrt(values)) @ rotation.T + mean / np.sqrt(dim)).astype(dtype)
        exact = z.astype(np.longdouble)
        centred = (exact - exact.mean(axis=0)).astype(np.float64)
        expected = np.linalg.svd(centred, compute_uv=False) ** 2 / count
        methods = METHODS | {
            "covariance64_blocks_of_64": lambda z: of_covariance(z, np.float64, 64),
            "covariance32_blocks_of_64": lambda z: of_covariance(z, np.float32, 64),
            "gram": of_gram,
        }
        for name, method in methods.items():
            if dtype == np.float64 and "32" in name:
                continue
            errors = np.abs(method(z) / expected - 1)
            decade = np.minimum(-np.log10(expected / expected[0]) // 1, DECADES - 1).astype(int)
            worst = [float(f"{errors[decade == k].max():.1e}") for k in range(DECADES)]
            record = {"method": name, "dtype": np.dtype(dtype).name, "mean": mean, "error_by_decade": worst}
            print(json.dumps(record), flush=True)


def main() -> None:
    """Parses the command line and prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--accuracy", action="store_true")
    flags = parser.parse_args()
    if flags.accuracy:
        accuracy()
    else:
        time_all(flags.rows, flags.dim, flags.repeats, flags.methods)


if __name__ == "__main__":
    main()
