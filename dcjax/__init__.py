"""dcjax: dimensional collapse in contrastive self-supervised learning, in JAX."""

import warnings as _warnings

from dcjax.runtime import cli as _cli
from dcjax.runtime import versions as _versions

__version__ = "0.1.0"

# Here and not at the start of a command: `python -m dcjax.toy` loads JAX with its package, before the command runs.
_problem = _versions.jax_problem()
if _problem and _versions.is_command():
    _cli.leave(2, _problem)
if _problem:
    _warnings.warn(_problem, RuntimeWarning, stacklevel=2)
