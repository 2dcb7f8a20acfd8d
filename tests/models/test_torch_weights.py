"""Weights to torchvision's names and back, and the same outputs and gradients as PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dcjax.models.resnet import make_encoder
from dcjax.models.torch_weights import from_torch, to_torch
from dcjax.runtime.errors import SettingError

WIDTH = 1 / 16


@functools.cache
def _encoder(name, stem):
    """An encoder with every leaf off its starting value: zero scales and zero means would hide mistakes."""
    encoder = make_encoder(name, width=WIDTH, stem=stem)
    init = functools.partial(encoder.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    rng = np.random.default_rng(0)

    def fill(leaf):
        if len(leaf.shape) == 1:  # scales, biases, means and variances
            return 0.5 + rng.random(leaf.shape, np.float32)
        return rng.standard_normal(leaf.shape, np.float32) * np.float32(np.sqrt(2 / np.prod(leaf.shape[:3])))

    return encoder, jax.tree.map(fill, shapes)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_round_trip(name):
    _, variables = _encoder(name, "imagenet")
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)
    state = to_torch(variables)
    assert state["conv1.weight"].shape == (4, 3, 7, 7)
    state |= {"fc.weight": np.zeros(1), "fc.bias": np.zeros(1), "bn1.num_batches_tracked": np.zeros((), np.int64)}
    restored = from_torch(state, shapes)
    assert jax.tree.structure(restored) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, restored, variables)


def test_mistakes_are_named():
    _, variables = _encoder("resnet18", "small")
    state = to_torch(variables)
    with pytest.raises(SettingError, match=r"lacks layer2\.0\.downsample\.0\.weight;"):
        from_torch({k: v for k, v in state.items() if k != "layer2.0.downsample.0.weight"}, variables)
    with pytest.raises(SettingError, match=r"no place in the encoder for layer1\.0\.conv3\.weight;"):
        from_torch(state | {"layer1.0.conv3.weight": np.zeros((1, 1, 1, 1))}, variables)
    with pytest.raises(SettingError, match=r"bn1\.weight \[5\] \(expected \[4\]\)"):
        from_torch(state | {"bn1.weight": np.zeros(5)}, variables)
    biases = {key: value for key, value in state.items() if key.endswith("bias")}
    with pytest.raises(SettingError, match=r"lacks .* and \d+ more;"):
        from_torch(biases, variables)
    with pytest.raises(SettingError, match="is no variable of an encoder"):
        to_torch({"params": {"head": {"table": np.zeros(3)}}})


def _torch_peer(name, stem, variables):
    torch = pytest.importorskip("torch")
    from experiments.benchmarks import torch_resnet

    model = torch_resnet.make(name, WIDTH, stem)
    model.load_state_dict({key: torch.from_numpy(value) for key, value in to_torch(variables).items()})
    return torch, model


def test_names_are_those_of_pytorch():
    _, variables = _encoder("resnet18", "imagenet")
    _, model = _torch_peer("resnet18", "imagenet", variables)
    names = {key for key in model.state_dict() if "num_batches_tracked" not in key}
    assert names == set(to_torch(variables))
    jax.tree.map(np.testing.assert_array_equal, from_torch(model.state_dict(), variables), variables)


@pytest.mark.parametrize(
    ("name", "stem", "size"),
    [("resnet18", "imagenet", 33), pytest.param("resnet18", "small", 8, marks=pytest.mark.slow)],
)
def test_equals_pytorch(name, stem, size):
    encoder, variables = _encoder(name, stem)
    torch, model = _torch_peer(name, stem, variables)
    images = np.random.default_rng(1).standard_normal((6, size, size, 3), np.float32)
    weights = np.random.default_rng(2).standard_normal((6, encoder.features), np.float32)
    tensor = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    @jax.jit
    def run(variables, images):
        def loss(params):
            r, updated = encoder.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return jnp.sum(r * weights), (r, updated["batch_stats"])

        gradients, (r, stats) = jax.grad(loss, has_aux=True)(variables["params"])
        return encoder.apply(variables, images, train=False), r, stats, gradients

    r_eval, r_train, stats, gradients = run(variables, images)
    with torch.no_grad():
        expected = model.eval()(tensor).numpy()
    np.testing.assert_allclose(r_eval, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())

    output = model.train()(tensor)
    expected = output.detach().numpy()
    np.testing.assert_allclose(r_train, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    torch.sum(output * torch.from_numpy(weights)).backward()
    # The same tree carries the gradients by name; statistics are compared through the means, which both average alike.
    named = to_torch({"params": gradients, "batch_stats": stats})
    for key, parameter in model.named_parameters():
        expected = parameter.grad.numpy()
        # Float32 through eighteen layers of batch statistics over few values.
        np.testing.assert_allclose(named[key], expected, rtol=0, atol=2e-4 * np.abs(expected).max(), err_msg=key)
    for key, buffer in model.named_buffers():
        if key.endswith("running_mean"):
            np.testing.assert_allclose(named[key], buffer.numpy(), rtol=1e-4, atol=1e-4, err_msg=key)


def test_running_variance_differs_from_pytorch_by_the_known_factor():
    encoder, variables = _encoder("resnet18", "small")
    torch, model = _torch_peer("resnet18", "small", variables)
    images = np.random.default_rng(1).standard_normal((6, 8, 8, 3), np.float32)
    _, updated = jax.jit(functools.partial(encoder.apply, train=True, mutable=["batch_stats"]))(variables, images)
    model.train()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    before, count = np.asarray(variables["batch_stats"]["bn1"]["var"]), 6 * 8 * 8
    biased = (np.asarray(updated["batch_stats"]["bn1"]["var"]) - 0.9 * before) / 0.1
    unbiased = (model.bn1.running_var.numpy() - 0.9 * before) / 0.1
    np.testing.assert_allclose(unbiased, biased * count / (count - 1), rtol=1e-4)


def test_resnet50_equals_pytorch():
    encoder, variables = _encoder("resnet50", "imagenet")
    torch, model = _torch_peer("resnet50", "imagenet", variables)
    images = np.random.default_rng(1).standard_normal((2, 33, 33, 3), np.float32)
    r = jax.jit(functools.partial(encoder.apply, train=False))(variables, images)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(r, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
