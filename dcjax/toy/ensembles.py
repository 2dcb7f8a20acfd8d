"""The settings of the paper's toy figures, and their runs."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dcjax.errors import SettingError
from dcjax.toy.simulate import Setting, Trajectory, simulate

# Fig. 3: one linear layer, pairs of inputs that differ by the identity, noise on half of the coordinates of one view.
STRONG = Setting(
    dim=16,
    samples=128,
    data_variance=0.5,
    noise="block",
    two_sided=False,
    init="default",
    loss="info_nce",
    learning_rate=0.1,
)

# Figs. 4 to 6: standard normal inputs, little noise on all coordinates of both views, an initial spectrum that decays.
TWO_LAYERS = Setting(
    dim=16,
    samples=128,
    data_variance=1.0,
    noise="isotropic",
    two_sided=True,
    init="decaying",
    loss="info_nce",
    learning_rate=0.1,
)


def run(
    setting: Setting,
    *,
    amplitudes: Sequence[float],
    seeds: Sequence[int],
    steps: Sequence[int] | np.ndarray,
    depths: Sequence[int] = (1,),
    on_record: Callable[[int], object] | None = None,
    **changes: Any,
) -> Trajectory:
    """Simulates a setting with some of its fields changed.

    Raises:
      ValueError: as `simulate`, or a cell that diverged.
    """
    setting = dataclasses.replace(setting, **changes)
    trajectory = simulate(
        setting,
        depths=list(depths),
        amplitudes=list(amplitudes),
        seeds=list(seeds),
        steps=[int(step) for step in steps],
        on_record=on_record,
    )
    lost = np.argwhere(~np.isfinite(trajectory.weights).all(axis=(3, 4, 5, 6)))
    if len(lost):
        depth, amplitude, seed = lost[0]
        raise SettingError(
            f"the simulation diverged at amplitude {trajectory.amplitudes[amplitude]:g}, depth "
            f"{trajectory.depths[depth]}, seed {trajectory.seeds[seed]} (learning rate {setting.learning_rate:g}); a "
            "smaller --amplitude would be right"
        )
    return trajectory
