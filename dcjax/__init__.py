"""dcjax: dimensional collapse in contrastive self-supervised learning, in JAX.

The modules listed in `__all__` are imported when they are first used; `import dcjax` alone does not load JAX.
"""

import importlib as _importlib
import typing as _typing
import warnings as _warnings

from dcjax.runtime import cli as _cli
from dcjax.runtime import versions as _versions

if _typing.TYPE_CHECKING:
    from dcjax import collapse, config, data, evaluation, losses, models, pretrain, schema, toy
    from dcjax.encoder import Encoder, load_encoder
    from dcjax.runtime.errors import InterruptedRunError, SettingError, StoppedRunError

__version__ = "0.1.0"
__all__ = [
    "Encoder",
    "InterruptedRunError",
    "SettingError",
    "StoppedRunError",
    "collapse",
    "config",
    "data",
    "evaluation",
    "load_encoder",
    "losses",
    "models",
    "pretrain",
    "schema",
    "toy",
]
_FROM = {"Encoder": "encoder", "load_encoder": "encoder"} | dict.fromkeys(
    ("InterruptedRunError", "SettingError", "StoppedRunError"), "runtime.errors"
)


def __getattr__(name: str) -> _typing.Any:
    if name not in __all__:
        raise AttributeError(f"module 'dcjax' has no attribute '{name}'")
    module = _importlib.import_module(f"dcjax.{_FROM.get(name, name)}")
    return getattr(module, name) if name in _FROM else module


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


# Checked here, since the start of a command is too late: `python -m dcjax.toy` first loads JAX with its package.
_problem = _versions.jax_problem()
if _problem and _versions.is_command():
    _cli.leave(2, _problem)
if _problem:
    _warnings.warn(_problem, RuntimeWarning, stacklevel=2)
