"""The torture suite: what a run survives, injected on purpose and counted.

    python tests/torture --report=experiments/results/torture.json      (about an hour and a half on one core)
    python tests/torture --only=saves,damage --saves=5 --damage=20      (a minute)

Every part prints a line with its figures; the exit status is 1 if anything was lost, wrong or not named.
"""

import argparse
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

import damage  # noqa: E402  (the folders above)
import devices  # noqa: E402
import disk  # noqa: E402
import kills  # noqa: E402
import phases  # noqa: E402

COUNTS = {
    "kills": 200,
    "terms": 50,
    "saves": 50,
    "damage": 500,
    "hostile": 500,
    "signals": 12,
    "hangs": 6,
    "peers": 3,
    "pairs": 4,
    "late": 4,
    "seed": 0,
}
PARTS: dict[str, Callable[[pathlib.Path, dict[str, int]], Any]] = {
    "kills": lambda folder, counts: kills.kill_runs(folder, counts["kills"], seed=counts["seed"]),
    "terms": lambda folder, counts: kills.kill_runs(
        folder, counts["terms"], number=signal.SIGTERM, seed=counts["seed"]
    ),
    "saves": lambda folder, counts: kills.kill_saves(folder, counts["saves"]),
    "damage": lambda folder, counts: damage.damage_checkpoints(folder, counts["damage"]),
    "hostile": lambda folder, counts: damage.restore_hostile(folder, counts["hostile"]),
    "resume": lambda folder, counts: damage.resume_damaged(folder),
    "signals": lambda folder, counts: phases.signal_phases(folder, counts["signals"]),
    "hangs": lambda folder, counts: phases.hang(folder, counts["hangs"]),
    "disk": lambda folder, counts: disk.full_disk(folder),
    "devices": lambda folder, counts: devices.other_devices(folder),
    "peers": lambda folder, counts: devices.stopped_peer(folder, counts["peers"]),
    "pairs": lambda folder, counts: devices.signalled_pair(folder, counts["pairs"]),
    "late pairs": lambda folder, counts: devices.signalled_at_the_end(folder, counts["late"]),
    "loader": lambda folder, counts: devices.crash_in_the_loader(folder),
}


def bad(value: Any) -> bool:
    """Whether a report names a problem anywhere; every part judges its own figures."""
    return isinstance(value, dict) and (bool(value.get("problems")) or any(map(bad, value.values())))


def main() -> None:
    """Runs the parts one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {', '.join(PARTS)}")
    parser.add_argument("--report", type=pathlib.Path, help="a JSON file, in which the other parts stay as they are")
    for name, count in COUNTS.items():
        parser.add_argument(f"--{name}", type=int, default=count)
    flags = parser.parse_args()
    counts = {name: getattr(flags, name) for name in COUNTS}
    failed = False
    for name in flags.only.split(","):
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="torture-") as folder:
            os.environ.setdefault(
                "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(tempfile.gettempdir()) / "torture-cache")
            )
            found = PARTS[name](pathlib.Path(folder), counts)
        failed |= bad(found)
        print(json.dumps({name: found}), flush=True)
        if flags.report:
            report = json.loads(flags.report.read_text()) if flags.report.exists() else {}
            report[name] = {"seconds": round(time.monotonic() - begin), **origin(), "found": found}
            flags.report.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(failed)


def origin() -> dict[str, str]:
    """The commit and the versions of a figure."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout
    import jax

    return {"commit": commit.strip(), "jax": jax.__version__, "python": platform.python_version()}


if __name__ == "__main__":
    main()
