"""`dcjax.main`, in which the first process fails at its fifth step."""

import helpers  # noqa: F401  (adds the encoder of the tests)
import jax

from dcjax.main import main
from dcjax.runtime import cli
from dcjax.training import monitor

push = monitor.Monitor.push


def fail(self, step, metrics):
    push(self, step, metrics)
    if step == 5 and jax.process_index() == 0:
        raise OSError("the disk has gone")


if __name__ == "__main__":
    monitor.Monitor.push = fail
    cli.run(main)
