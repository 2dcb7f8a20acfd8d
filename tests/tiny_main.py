"""`dcjax.main`, which knows the encoder of the tests."""

import helpers  # noqa: F401  (adds the encoder)

from dcjax.main import main
from dcjax.runtime import cli

if __name__ == "__main__":
    cli.run(main)
