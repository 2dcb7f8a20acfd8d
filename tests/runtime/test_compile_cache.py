"""The cache of compiled programs: where it lies, what switches it off, and that a second process uses it."""

import os
import subprocess
import sys

import pytest
from helpers import new_process

from dcjax.runtime import compile_cache
from dcjax.runtime.compile_cache import use_compile_cache


@pytest.fixture
def before_jax(monkeypatch):
    monkeypatch.delitem(sys.modules, "jax")  # as at the start of a command


@pytest.mark.usefixtures("before_jax")
@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "HOME"])
def test_the_folder_of_the_user(tmp_path, variable):
    env = {variable: str(tmp_path), "JAX_COMPILATION_CACHE_MAX_SIZE": "7"}
    use_compile_cache(env)
    base = tmp_path if variable == "XDG_CACHE_HOME" else tmp_path / ".cache"
    (folder,) = (base / "dcjax").iterdir()
    assert env["JAX_COMPILATION_CACHE_DIR"] == str(folder)
    assert env["JAX_COMPILATION_CACHE_MAX_SIZE"] == "7"


@pytest.mark.usefixtures("before_jax")
def test_a_user_without_a_home(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(compile_cache.pathlib.Path, "home", no_home)
    env = {}
    use_compile_cache(env)
    assert env == {}


@pytest.mark.usefixtures("before_jax")
def test_it_has_a_bound_and_one_folder_for_each_processor(tmp_path, monkeypatch):
    found = set()
    for processor in ("one", "another"):
        monkeypatch.setattr(compile_cache, "_processor", lambda processor=processor: processor)
        env = {"HOME": str(tmp_path)}
        use_compile_cache(env)
        assert env["JAX_COMPILATION_CACHE_MAX_SIZE"] == str(compile_cache.MAX_BYTES)
        found.add(env["JAX_COMPILATION_CACHE_DIR"])
    assert len(found) == 2


def test_what_leaves_the_environment_alone(tmp_path, monkeypatch):
    env = {"HOME": str(tmp_path)}
    use_compile_cache(env)  # JAX is loaded
    assert env == {"HOME": str(tmp_path)}
    monkeypatch.delitem(sys.modules, "jax")
    off = {"HOME": str(tmp_path), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    use_compile_cache(off)
    assert "JAX_COMPILATION_CACHE_DIR" not in off
    assert not (tmp_path / ".cache").exists()
    own = {"HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": "/elsewhere"}
    use_compile_cache(own)
    assert own == {"HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": "/elsewhere"}
    (tmp_path / "file").write_text("")
    blocked = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    use_compile_cache(blocked)
    assert blocked == {"XDG_CACHE_HOME": str(tmp_path / "file")}


COMMAND = """
from dcjax.runtime import cli
def command(argv):
    import jax
    hits = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if "cache_hits" in event else None)
    print(jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((64, 64))), len(hits))
cli.run(command)
"""


def test_a_second_process_loads_what_the_first_compiled(tmp_path):
    env = new_process(1) | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    env = {
        name: value for name, value in env.items() if name not in ("JAX_COMPILATION_CACHE_DIR", "TF_CPP_MIN_LOG_LEVEL")
    }
    env.pop("JAX_ENABLE_COMPILATION_CACHE", None)
    outputs = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", COMMAND], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "cpu_aot_loader" not in done.stderr
        outputs.append(done.stdout.split())
    (first, no_hits), (second, hits) = outputs
    assert first == second
    assert int(no_hits) == 0 < int(hits)
    assert os.listdir(tmp_path / "dcjax")
