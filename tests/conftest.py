"""Test set-up: eight virtual CPU devices, a persistent compile cache, strict numerics on request."""

import argparse
import gc
import importlib
import importlib.metadata
import os
import re
import tempfile

PLATFORM = os.environ.get("DCJAX_TEST_PLATFORM", "cpu")
os.environ["JAX_PLATFORMS"] = {"gpu": "cuda,cpu"}.get(PLATFORM, PLATFORM)
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "dcjax-test-compile-cache"))
os.environ.setdefault("MPLBACKEND", "Agg")
# Most tests compile for longer than they run, and few optimisations halve that. `optimised` is for the others;
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 runs all of them as users run the code.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] not in ("0", "false"):
    os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # only profilers read them
    if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):  # later ones refuse the flag
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"  # the older code generator takes a third less
# Tracing makes many objects that live long; looking through them every 700 allocations takes a tenth of the time.
gc.set_threshold(200_000, 50, 100)

import jax  # noqa: E402  (the environment above must be set before JAX starts)
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# The shapes that the annotations of the numeric parts promise are checked in tests, and only there.
CHECKED = ["dcjax.losses", "dcjax.collapse", "dcjax.toy", "dcjax.data.image_ops"]
jaxtyping.install_import_hook(CHECKED, "beartype.beartype")

from helpers import ROOT, ParsedError, double_precision, tiny_config  # noqa: E402

from dcjax.runtime.mesh import order_cpu_collectives  # noqa: E402

order_cpu_collectives()  # as `make_mesh` does for a run: here other code uses the devices first

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture
def strict_dtypes():
    """Numeric code under test must not promote dtypes or ranks silently."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def optimised():
    """Compiles with XLA's optimisations (the older code generator, if it was chosen, stays)."""
    before = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] not in ("0", "false")
    jax.clear_caches()  # a function compiled for another module would keep its program
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()


@pytest.fixture
def unchecked_shapes():
    """Lets wrong shapes through to the function, whose own errors are under test."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def x64():
    """Double precision, for identities and slow references."""
    with double_precision():
        yield


@pytest.fixture(scope="session")
def four_steps(tmp_path_factory):
    """A finished run of 4 steps: its folder and its state. Tests that change it take a copy."""
    from dcjax.pretrain import pretrain  # the other tests need not wait for it

    workdir = tmp_path_factory.mktemp("runs") / "four"
    return workdir, pretrain(tiny_config(), workdir)


@pytest.fixture
def stops_after_parsing(monkeypatch):
    """Lets commands parse their flags and check their config, then raises `ParsedError`."""

    def then_stop(parse):
        def stopping(*arguments, **options):
            parse(*arguments, **options)
            raise ParsedError

        return stopping

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", then_stop(argparse.ArgumentParser.parse_args))
    for file in (file for folder in ("dcjax", "experiments") for file in (ROOT / folder).rglob("*.py")):
        if re.search("^from dcjax.config import .*config_from_flags", file.read_text(), flags=re.MULTILINE):
            module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
            monkeypatch.setattr(module, "config_from_flags", then_stop(module.config_from_flags))
