"""The package in a minute: python tests/smoke.py

Trains, probes and resumes a tiny quickstart, compares the tiled and the sharded loss with the plain one, and has a
theorem checked. `.ci/smoke` runs it with the lowest and the newest versions of the dependencies.

A script and not a marker of pytest, because it needs the package's own dependencies alone, as a user installs them:
those of the test tools neither supply a package that is missing from pyproject.toml nor keep a version away.
"""

import importlib.resources
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import warnings

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["MPLBACKEND"] = "Agg"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiling is nearly all of the time
# What a coming version takes away it announces to the module that uses it; what others use is theirs to mend.
warnings.filterwarnings("error", module=r"dcjax\b")

import jax  # noqa: E402  (the environment above must be set before JAX starts)
import numpy as np  # noqa: E402
from helpers import as_flags, tiny_config, vmapped_product_error  # noqa: E402

from dcjax.collapse import METRICS, Covariance, Quantities, judge, metrics, spectrum  # noqa: E402
from dcjax.evaluation.protocol import probe  # noqa: E402
from dcjax.losses import info_nce, nt_xent  # noqa: E402
from dcjax.main import main  # noqa: E402
from dcjax.pretrain import pretrain  # noqa: E402
from dcjax.runtime.mesh import make_mesh  # noqa: E402


def quickstart_resumes(folder: pathlib.Path) -> None:
    """Four steps, probed; then the same from the checkpoint of step 2, bit for bit."""
    config = tiny_config()
    main([*as_flags(config), f"--workdir={folder / 'whole'}"])
    probe(folder / "whole", features="all")
    for name in ("metrics.jsonl", "probe.json", "spectrum.npz", "spectrum.png"):
        assert (folder / "whole" / name).stat().st_size, name
    shutil.copytree(folder / "whole", folder / "resumed")
    shutil.rmtree(folder / "resumed" / "checkpoints" / "4")
    resumed, whole = pretrain(config, folder / "resumed"), pretrain(config, folder / "whole")
    assert int(resumed.step) == int(whole.step) == 4
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def losses_agree(mesh: jax.sharding.Mesh) -> None:
    """Value and gradient, tile by tile and over eight devices, against all logits at once."""
    z, z_prime = np.random.default_rng(0).standard_normal((2, 64, 16)).astype(np.float32)
    for loss in (info_nce, nt_xent):
        settings = {"plain": {}, "tiled": {"block_size": 24}, "sharded": {"mesh": mesh}}
        found = {
            name: jax.jit(
                jax.value_and_grad(lambda z, loss=loss, given=given: loss(z, z_prime, temperature=0.1, **given))
            )(z)
            for name, given in settings.items()
        }
        for name in ("tiled", "sharded"):
            # The logits are up to 10 and 128 are summed: some tens of roundings of float32.
            for one, two in zip(found[name], found["plain"], strict=True):
                np.testing.assert_allclose(one, two, rtol=2e-5, atol=2e-6, err_msg=f"{loss.__name__}, {name}")


def a_theorem_holds(folder: pathlib.Path) -> None:
    """`python -m dcjax.toy --theorem 1` finds its claims true, in a process of its own with double precision."""
    command = [sys.executable, "-m", "dcjax.toy", "--theorem", "1", f"--out={folder / 'toy'}"]
    env = {**os.environ, "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((folder / "toy").glob("*.png"))


def embeddings_are_judged() -> None:
    """Every measure has a value, the running covariance agrees with NumPy's, and a lost direction is found."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(400, 16)).astype(np.float32)
    z_prime = z + rng.normal(size=z.shape).astype(np.float32) / 4
    assert set(metrics(z, z_prime, labels=np.arange(400) % 4)) == set(METRICS)
    empty = Covariance.init(16)
    state = jax.jit(lambda rows: empty.update(rows[:300]).merge(empty.update(rows[300:])))(z)
    expected = np.linalg.eigvalsh(np.cov(z.T, bias=True))[::-1]
    np.testing.assert_allclose(spectrum(z), expected, rtol=1e-10)
    np.testing.assert_allclose(state.singular_values(), expected, rtol=1e-5)  # float32
    z[:, 3] = z[:, 5]
    assert judge(Quantities(z)).kind == "dimensional"


def jit_is_right() -> None:
    """What jax 0.10.2 computes wrong, in case a later one does again."""
    assert vmapped_product_error(np.float32, 32_769) < 1e-5


def the_package_is_whole() -> None:
    """What is no Python module was installed as well."""
    files = importlib.resources.files("dcjax")
    assert (files / "py.typed").is_file()


if __name__ == "__main__":
    start = time.perf_counter()
    the_package_is_whole()
    jit_is_right()
    embeddings_are_judged()
    losses_agree(make_mesh(8))
    with tempfile.TemporaryDirectory() as name:
        quickstart_resumes(pathlib.Path(name))
        a_theorem_holds(pathlib.Path(name))
    seconds = time.perf_counter() - start
    print(f"smoke: right with Python {sys.version.split()[0]} and jax {jax.__version__} in {seconds:.0f} s")
