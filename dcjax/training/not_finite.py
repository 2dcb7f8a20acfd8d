"""Takes a step that met a number which is not finite once more, and tells where the first such number came from."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dcjax.data import Augmentation
from dcjax.data.augment import two_views
from dcjax.runtime.mesh import batch_sharding, platform, replicated
from dcjax.runtime.randomness import Stream, device_key
from dcjax.training.metrics import GUARDED, NotFiniteError
from dcjax.training.state import TrainState
from dcjax.training.step import TrainStep, make_objective

# The rows of a module's record, each of them a `measure`, in the order in which a step computes them.
INPUT, STATISTICS, OUTPUT, COTANGENT = range(4)

# The remedies, by the kind of the first thing that is not finite.
RATE = "Train with a lower optimizer.learning_rate or a longer warm-up"
REMEDIES = {
    "view": "Look at the settings augment.* and at the images",
    "module": RATE,
    "loss": "Train with a larger loss.temperature",
    "online_loss": RATE,
    "gradient": RATE,
    "update": "Train with a lower optimizer.learning_rate or optimizer.trust_coefficient",
    "norm": RATE,
    "unseen": RATE,
}
FIRST = "the first value that is not finite is"
GROWING = ("module", "gradient", "unseen")  # the compute dtype of the network has a part in these


Measures = Mapping[str, np.ndarray]  # by the path of a leaf


class Cause(NamedTuple):
    """The first thing of a step that is not finite.

    Attributes:
      kind: a key of `REMEDIES`.
      text: its place and its numbers, as a clause that follows a semicolon.
    """

    kind: str
    text: str


def diagnose(
    error: NotFiniteError,
    *,
    network: nn.Module,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    augmentation: Augmentation,
    image_size: int,
    seed: int,
    mesh: Mesh,
    train_step: TrainStep,
    state: TrainState,
    batch: dict[str, jax.Array],
    good_step: int | None,
) -> NotFiniteError:
    """Takes the step of an error twice more: watched inside, and as the run took it. Every process calls this.

    Args:
      error: the error that the run met at a step.
      network, loss, augmentation, image_size, seed, mesh: as `make_train_step` takes them.
      train_step: the compiled step; it is given the state's memory.
      state: the state before the step, which was computed anew.
      batch: the global batch of the step, on the devices.
      good_step: the step of the last checkpoint; None where there is none.

    Returns:
      The error whose one line names the first thing that is not finite, the likely remedy and the last good checkpoint.
    """
    options: Any = dict(loss=loss, augmentation=augmentation, image_size=image_size, seed=seed, mesh=mesh)
    watched = WatchedStep(network, **options, state=state, batch=batch)
    found = watched(state, batch)
    before = measured_leaves(state)
    after, scalars = train_step(state, batch)
    after, scalars = measured_leaves(after), jax.device_get(scalars)
    wrong = [name for name in GUARDED if not math.isfinite(scalars[name])]

    checkpoint = f"the last good checkpoint is that of step {good_step}" if good_step else "there is no checkpoint yet"
    if not wrong:
        first = (good_step or 0) + 1
        steps = f"steps {first} to {error.step} were" if first < error.step else f"step {first} was"
        chance = ", or rounding on a GPU without --xla_gpu_deterministic_ops=true" if platform(mesh) == "gpu" else ""
        return error.explained(
            f"{error.found}; when {steps} repeated, everything was finite. A fault of the hardware is likely (a "
            f"flipped bit, an unstable device{chance}): check the devices; the same command resumes from the last "
            f"checkpoint, and {checkpoint}"
        )
    cause = next(watched.causes(found), None) or cause_after(wrong, found["gradient"], after)
    damaged = [name for name, numbers in before.items() if not is_finite(numbers)]
    if damaged:
        parameters = f"The state before the step was not finite in {damaged[0]}"
        remedy = (
            f"Checkpoint {good_step} may be damaged: move it away to resume from an earlier one"
            if good_step
            else "Look at the initial values of the network"
        )
        checkpoint = f"the last checkpoint is that of step {good_step}" if good_step else checkpoint
    else:
        parameters = "The parameters before the step were finite"
        half = ", or with model.dtype=float32," if watched.half and cause.kind in GROWING else ""
        remedy = REMEDIES[cause.kind] + half + (" in a new --workdir" if cause.kind != "view" else "")
    return error.explained(f"{error.found}; {cause.text}. {parameters}. {remedy}; {checkpoint}")


class WatchedStep:
    """The forward and the backward pass of a step, jitted, which measure what every module takes and gives.

    Called with the state and a batch, it returns the measures of "views" `[2, 4]`, of "modules" `[2, modules, 4, 4]`
    (by view and module, with the rows `INPUT` to `COTANGENT`) and of the leaves of the "gradient", and the "scalars" of
    the objective.

    Args:
      network, loss, augmentation, image_size, seed, mesh: as `make_train_step` takes them.
      state, batch: what it will be called with; only shapes and dtypes are used here.

    Attributes:
      modules: the modules as paths, in the order in which they finish.
      half: whether a module computes in 16 bits.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        loss: Callable[[jax.Array, jax.Array], jax.Array],
        augmentation: Augmentation,
        image_size: int,
        seed: int,
        mesh: Mesh,
        state: TrainState,
        batch: dict[str, jax.Array],
    ):
        def views_of(batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            key = device_key(seed, Stream.AUGMENTATION)
            return two_views(batch["image"], key, batch["position"], size=image_size, settings=augmentation, mesh=mesh)

        def examine(state: TrainState, batch: dict[str, jax.Array]) -> dict[str, Any]:
            x, x_prime = views_of(batch)

            def objective(params: Any, records: jax.Array) -> Any:
                def record(view: int, name: str, inputs: Any, statistics: Any, output: Any) -> Any:
                    return tap(inputs, statistics, output, records[view, self.modules.index(name)])

                watched: Any = WatchedNetwork(network, record)
                value, (_, scalars) = make_objective(watched, loss, seed=seed)(
                    params, state, x, x_prime, batch["label"]
                )
                return value, scalars

            zeros = jnp.zeros((2, len(self.modules), 4, 4), jnp.float32)
            differentiate = jax.grad(objective, argnums=(0, 1), has_aux=True)
            (gradient, records), scalars = differentiate(state.params, zeros)
            views = jnp.stack([measure(x), measure(x_prime)])
            return {"views": views, "modules": records, "scalars": scalars, "gradient": gradient}

        self.modules: list[str] = []
        self.half = False

        def note(view: int, name: str, inputs: Any, statistics: Any, output: Any) -> Any:
            del inputs, statistics
            if name not in self.modules:
                self.modules.append(name)
            self.half |= any(leaf.dtype.itemsize < 4 for leaf in floating(output))
            return output

        listed: Any = WatchedNetwork(network, note)
        objective = make_objective(listed, loss, seed=seed)
        jax.eval_shape(lambda s, b: objective(s.params, s, *views_of(b), b["label"]), state, batch)
        shardings = (replicated(mesh), batch_sharding(mesh))
        self._examine = jax.jit(examine, in_shardings=shardings, out_shardings=replicated(mesh))

    def __call__(self, state: TrainState, batch: dict[str, jax.Array]) -> dict[str, Any]:
        """One step's measures; the state stays as it is."""
        found = self._examine(state, batch)
        return {**jax.device_get(found), "gradient": measured_leaves(found["gradient"])}

    def causes(self, found: dict[str, Any]) -> Iterator[Cause]:
        """All that is not finite among the measures of a step, in the order in which the step computes it."""
        for view, numbers in enumerate(found["views"], start=1):
            if not is_finite(numbers):
                yield Cause("view", f"{FIRST} in view {view} of the images: {in_words(numbers)}")
        for view, records in enumerate(found["modules"], start=1):
            for name, record in zip(self.modules, records, strict=True):
                # Operations between two modules show in the input of the second one.
                for row, part in ((INPUT, "input"), (STATISTICS, "batch statistics"), (OUTPUT, "output")):
                    if not is_finite(record[row]):
                        text = f"{FIRST} in the {part} of {name}, view {view}: {in_words(record[row])}"
                        largest = f", the largest entry of its input is {record[INPUT][3]:.2g}"
                        yield Cause("module", text + (largest if is_finite(record[INPUT]) else ""))
        for name in ("loss", "online_loss"):
            if name in found["scalars"] and not np.isfinite(found["scalars"][name]):
                yield Cause(name, f"every output of the network is finite, but {name} is not{self._of_z(found)}")
        yield from self._backward(found)

    def _backward(self, found: dict[str, Any]) -> Iterator[Cause]:
        # From the loss to the images: the gradient by what a module gives comes before those by its parameters. A
        # module finishes after those inside of it, so its gradient comes first in the reversed order.
        left = dict(found["gradient"])
        for index, name in reversed(list(enumerate(self.modules))):
            for view in (2, 1):
                numbers = found["modules"][view - 1, index, COTANGENT]
                if not is_finite(numbers):
                    kind = "loss" if name == "projector" else "gradient"
                    text = f"{FIRST} in the gradient by the output of {name}, view {view}: {in_words(numbers)}"
                    yield Cause(kind, text)
            own = [leaf for leaf in left if leaf.rpartition("/")[0] == name]
            yield from gradient_causes({leaf: left.pop(leaf) for leaf in own})
        yield from gradient_causes(left)

    def _of_z(self, found: dict[str, Any]) -> str:
        if "projector" not in self.modules:
            return ""
        largest = found["modules"][:, self.modules.index("projector"), OUTPUT, 3].max()
        return f": the largest entry of z is {largest:.2g}"


class WatchedNetwork:
    """Stands in for a network in `make_objective`, which only applies it, and passes every module's call to `watch`.

    Args:
      network: the network.
      watch: a function of the view (0, or 1 in the second application), a module's path, its inputs, its own batch
        statistics and its output, to the output that takes its place.
    """

    def __init__(self, network: nn.Module, watch: Callable[..., Any]):
        self._network, self._watch, self._applied = network, watch, 0
        self._inside: list[tuple[str, ...]] = []

    def apply(self, *args: Any, **kwargs: Any) -> Any:
        """As `network.apply`."""
        view = self._applied
        self._applied += 1

        def intercept(call: Any, given: Any, named: Any, context: nn.module.InterceptorContext) -> Any:
            path = context.module.path
            # A rematerialised module calls itself; only the outer call is watched.
            if context.method_name != "__call__" or not path or path in self._inside:
                return call(*given, **named)
            self._inside.append(path)
            try:
                output = call(*given, **named)
            finally:
                self._inside.pop()
            own = context.module.variables.get("batch_stats", {})
            statistics = [value for value in own.values() if isinstance(value, jax.Array)]
            return self._watch(view, "/".join(path), (given, named), statistics, output)

        with nn.intercept_methods(intercept):
            return self._network.apply(*args, **kwargs)


def tap(inputs: Any, statistics: Any, output: Any, record: jax.Array) -> Any:
    """The output itself, but with the measures of the four arguments of a record as the "derivative" by `record`.

    They cannot be results of the forward pass, since they would have to leave the trace of a rematerialised block.
    Derivatives do leave it, and the gradient by the output is known only there. So a module on which the objective does
    not depend has no record, and the records of a module that is called several times are added.
    """
    measured = jnp.stack([measure(jax.lax.stop_gradient(part)) for part in (inputs, statistics, output)])
    return _tap(output, measured, record)


@jax.custom_vjp
def _tap(output: Any, measured: jax.Array, record: jax.Array) -> Any:
    del measured, record
    return output


def _tap_forward(output: Any, measured: jax.Array, record: jax.Array) -> tuple[Any, jax.Array]:
    del record
    return output, measured


def _tap_backward(measured: jax.Array, cotangent: Any) -> tuple[Any, jax.Array, jax.Array]:
    return cotangent, jnp.zeros_like(measured), jnp.stack([*measured, measure(cotangent)])


_tap.defvjp(_tap_forward, _tap_backward)


def floating(tree: Any) -> list[jax.Array]:
    """The leaves of a tree that can be NaN or infinite."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    return [leaf for leaf in arrays if jnp.issubdtype(leaf.dtype, jnp.inexact)]


def measure(tree: Any, xp: Any = jnp) -> Any:
    """Of a tree, in float32 `[4]`: its entries, those that are NaN, those that are infinite, and the largest finite."""
    found = [xp.zeros(4, xp.float32)]
    for leaf in floating(tree):
        rows = leaf.reshape(leaf.shape[0] if leaf.ndim else 1, -1)
        # int32 by row, since the activations of a large batch have more entries than an int32 or a float32 counts.
        nans, infs = (
            xp.sum(xp.sum(test(rows), axis=1, dtype=xp.int32), dtype=xp.float32) for test in (xp.isnan, xp.isinf)
        )
        largest = xp.max(xp.where(xp.isfinite(rows), xp.abs(rows), 0)).astype(xp.float32)
        found.append(xp.stack([xp.float32(leaf.size), nans, infs, largest]))
    return xp.concatenate([xp.sum(xp.stack(found)[:, :3], axis=0), xp.max(xp.stack(found)[:, 3:], axis=0)])


def measured_leaves(tree: Any) -> dict[str, np.ndarray]:
    """The measures of a tree's leaves by their paths, on the host, where nothing has to be compiled."""
    leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(tree))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): measure(leaf, np) for path, leaf in leaves}


def is_finite(numbers: np.ndarray) -> bool:
    """Whether a `measure` counts neither NaN nor inf."""
    return numbers[1] == numbers[2] == 0


def in_words(numbers: np.ndarray) -> str:
    """The counts of a `measure` that is not finite, and its largest finite entry if it has one."""
    entries, nans, infs, largest = map(float, numbers)
    kinds = " and ".join(f"{count:,.0f} {name}" for count, name in ((nans, "nan"), (infs, "inf")) if count)
    rest = f", the largest finite entry is {largest:.2g}" if nans + infs < entries else ""
    return f"{kinds} of {entries:,.0f} entries{rest}"


def gradient_causes(gradient: Measures) -> Iterator[Cause]:
    """The leaves of a gradient that are not finite."""
    for name, numbers in gradient.items():
        if not is_finite(numbers):
            yield Cause("gradient", f"{FIRST} in the gradient by {name}: {in_words(numbers)}")


def cause_after(wrong: Sequence[str], gradient: Measures, after: Measures) -> Cause:
    """The cause in a step whose gradient is finite: the update, or a norm that overflows.

    Args:
      wrong: the scalars that are not finite.
      gradient, after: measures of the gradient and of the next state, by leaf.
    """
    parts = {
        "gradient_norm": ("gradient", gradient),
        "parameter_norm": ("parameters", _of(after, "params/")),
        "statistics_norm": ("batch statistics", _of(after, "batch_stats/")),
    }
    if wrong[0] == "parameter_norm":
        for name, numbers in (_of(after, "opt_state/") | _of(after, "params/")).items():  # as they are computed
            if not is_finite(numbers):
                return Cause("update", f"the gradient is finite, but then {FIRST} in {name}: {in_words(numbers)}")
    if wrong[0] in parts:
        part, leaves = parts[wrong[0]]
        name = max(leaves, key=lambda name: leaves[name][3])
        largest, entries = float(leaves[name][3]), sum(float(numbers[0]) for numbers in leaves.values())
        if largest > math.sqrt(np.finfo(np.float32).max / entries):
            return Cause(
                "norm",
                f"every entry of the {part} is finite (the largest, {largest:.2g}, is in {name}), but the sum of their "
                "squares overflows",
            )
    return Cause("unseen", f"{wrong[0]} was not finite again, but it was with its modules watched: it nearly overflows")


def _of(leaves: Measures, prefix: str) -> dict[str, np.ndarray]:
    return {name: numbers for name, numbers in leaves.items() if name.startswith(prefix)}
