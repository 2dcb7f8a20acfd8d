"""LARS with the learning rate applied after the momentum, and the paper's schedule."""

from typing import Any

import jax
import optax

from dcjax.runtime.errors import SettingError


def warmup_cosine(*, learning_rate: float, warmup_steps: int, total_steps: int, final_scale: float) -> optax.Schedule:
    """Linear warm-up from 0, then a cosine to `final_scale * learning_rate`, evaluated at every step.

    Args:
      learning_rate: the peak, reached after `warmup_steps`.
      warmup_steps: length of the warm-up in steps; 0 for none.
      total_steps: length of the run in steps, warm-up included.
      final_scale: the last learning rate as a share of the peak (0.001 in the paper's recipe).

    Returns:
      A function from the step (0-based) to the learning rate.

    Raises:
      ValueError: a warm-up that is negative or not shorter than the run, or a learning rate that is not positive.
    """
    if not learning_rate > 0:
        raise SettingError(f"optimizer.learning_rate must be positive, found {learning_rate}")
    if not 0 <= warmup_steps < total_steps:
        raise SettingError(
            f"optimizer.warmup_steps (or warmup_epochs) must be at least 0 and shorter than the run, "
            f"found {warmup_steps} of {total_steps} steps"
        )
    # optax ends the decay where `count` equals `decay_steps`; the last step of the run is count total_steps - 1.
    return optax.schedules.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=total_steps,
        end_value=learning_rate * final_scale,
    )


def matrices_only(params: Any) -> Any:
    """Marks the parameters that weight decay and the trust ratio apply to: all but the 1-D ones (biases, BN scales)."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def lars(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float, weight_decay: float, trust_coefficient: float
) -> optax.GradientTransformation:
    """LARS: g' = g + wd p; mu = m mu + (eta |p| / |g'|) g'; p = p - lr mu.

    The trust ratio is 1 where |p| or |g'| is 0; 1-D parameters take neither decay nor trust ratio. The learning rate
    multiplies the momentum buffer when it is used, not what goes into it: `optax.lars` scales before the momentum,
    which is another update as soon as the learning rate changes.

    Args:
      learning_rate: a number or a schedule of the step.
      momentum: m, in [0, 1).
      weight_decay: wd, at least 0.
      trust_coefficient: eta, positive.

    Returns:
      The gradient transformation.

    Raises:
      ValueError: a setting out of its range.

    References:
      You, Gitman & Ginsburg, "Large Batch Training of Convolutional Networks", 2017; Jing et al., ICLR 2022, appendix
      (recipe).
    """
    if not 0 <= momentum < 1:
        raise SettingError(f"optimizer.momentum must be in [0, 1), found {momentum}")
    if not weight_decay >= 0:
        raise SettingError(f"optimizer.weight_decay must be at least 0, found {weight_decay}")
    if not trust_coefficient > 0:
        raise SettingError(f"optimizer.trust_coefficient must be positive, found {trust_coefficient}")
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=matrices_only),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient), matrices_only),
        optax.trace(decay=momentum),
        optax.scale_by_learning_rate(learning_rate),
    )
