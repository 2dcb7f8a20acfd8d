"""What manifests cost: a save with and without hashing, and the check of a checkpoint, for states of some sizes.

    python -m experiments.benchmarks.checkpoint --megabytes 6 400

Saves with and without the hashes take turns in one process; the best round of each counts. Hashing runs in a thread
beside the training: `hash_s` is what it takes there, `check_s` what a resume or a reader waits before it restores, and
`share` is `hash_s` over the time of the default `checkpoint_every_steps` steps of `--step_seconds` each. One JSON line
for each size.
"""

import argparse
import contextlib
import json
import pathlib
import tempfile
import time

import jax
import numpy as np

from dcjax.schema import Config
from dcjax.training import checkpoint
from dcjax.training.checkpoint import Checkpointer
from dcjax.training.manifest import check_step


def timed(megabytes: int, *, repeats: int, step_seconds: float) -> dict[str, float]:
    """The best seconds of the parts for a state of random parameters in 64 arrays."""
    rng = np.random.default_rng(0)
    rows = megabytes * 10**6 // (64 * 4 * 256)
    state = {f"w{k}": jax.numpy.asarray(rng.standard_normal((rows, 256), np.float32)) for k in range(64)}
    found: dict[str, list[float]] = {"hash_s": [], "save_s": [], "save_without_s": [], "check_s": [], "restore_s": []}
    write = checkpoint.write_manifest

    def hashed(*args: object, **kwargs: object) -> None:
        begin = time.perf_counter()
        write(*args, **kwargs)  # pyright: ignore[reportArgumentType]
        found["hash_s"].append(time.perf_counter() - begin)

    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        with contextlib.closing(Checkpointer(workdir)) as checkpointer:
            for step in range(2 * repeats):
                checkpoint.write_manifest = hashed if step % 2 else lambda *_, **__: None
                begin = time.perf_counter()
                checkpointer.save(step, state=state, position={"unlogged": {}}, config={})
                checkpointer.wait()
                found["save_s" if step % 2 else "save_without_s"].append(time.perf_counter() - begin)
                if step % 2:
                    begin = time.perf_counter()
                    assert not check_step(workdir / "checkpoints" / str(step)).problem
                    found["check_s"].append(time.perf_counter() - begin)
                    template = jax.tree.map(
                        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
                    )
                    begin = time.perf_counter()
                    jax.block_until_ready(checkpointer.restore_state(step, template))
                    found["restore_s"].append(time.perf_counter() - begin)
    best = {name: round(min(seconds), 4) for name, seconds in found.items()}
    interval = Config().checkpoint_every_steps * step_seconds
    return {"megabytes": megabytes, **best, "share": best["hash_s"] / interval, "step_seconds": step_seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[6, 400])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--step_seconds", type=float, default=0.126, help="of a step (default: the quickstart's, CPU)")
    flags = parser.parse_args()
    for megabytes in flags.megabytes:
        print(json.dumps(timed(megabytes, repeats=flags.repeats, step_seconds=flags.step_seconds)), flush=True)


if __name__ == "__main__":
    main()
