"""Segmentation against PyTorch in float64: losses as mmsegmentation words them, UPerNet as a chain of torch.nn.functional calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose

from msfl_jax.encoders import SegmentationDecoder
from msfl_jax.encoders.segmentation_decoders import adaptive_pool, enlarge
from msfl_jax.losses import focal, segmentation, soft_dice


@pytest.fixture(autouse=True, scope="module")
def float64():
    with jax.enable_x64():
        yield


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(0)
    target = rng.random((3, 5, 4)) < 0.3
    target[1] = False  # no disease
    return rng.normal(size=(3, 5, 4, 2)) * 3, target


def torch_focal(logits, target, gamma=2.0, alpha=0.5):
    """Through binary cross-entropy on one-hot targets."""
    there = F.one_hot(torch.tensor(target).long(), 2).double()
    p = torch.sigmoid(logits)
    missed = (1 - p) * there + p * (1 - there)
    balance = alpha * there + (1 - alpha) * (1 - there)
    return (balance * missed**gamma * F.binary_cross_entropy_with_logits(logits, there, reduction="none")).mean()


def torch_dice(logits, target, weights=(0.0, 1.0)):
    """A loop over classes and images."""
    p, total = torch.softmax(logits, dim=-1), 0.0
    for c in range(2):
        for b in range(len(target)):
            there = torch.tensor(target[b] == bool(c)).double()
            common = 2 * (p[b, ..., c] * there).sum() + 1
            total = total + weights[c] * (1 - common / ((p[b, ..., c] ** 2).sum() + (there**2).sum() + 1)) / len(target)
    return total / 2


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (focal, torch_focal),
        (lambda z, t: focal(z, t, gamma=0.5, alpha=0.25), lambda z, t: torch_focal(z, t, 0.5, 0.25)),
        (soft_dice, torch_dice),
        (lambda z, t: soft_dice(z, t, class_weights=None), lambda z, t: torch_dice(z, t, (1.0, 1.0))),
        (segmentation, lambda z, t: 2 * torch_focal(z, t) + torch_dice(z, t)),
        (
            lambda z, t: segmentation(z, t, focal_weight=0.8, dice_weight=0.4),
            lambda z, t: 0.8 * torch_focal(z, t) + 0.4 * torch_dice(z, t),
        ),
    ],
)
def test_losses_and_gradients(pixels, ours, theirs):
    logits, target = pixels
    value, gradient = jax.value_and_grad(ours)(jnp.asarray(logits), jnp.asarray(target))
    tensor = torch.tensor(logits, requires_grad=True)
    expected = theirs(tensor, target)
    expected.backward()
    assert tensor.grad is not None
    assert_allclose(value, expected.item(), rtol=1e-9)
    assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-9, atol=1e-13)


def first(grid):
    """[B, H, W, C] as PyTorch has it."""
    return torch.tensor(np.asarray(grid, np.float64)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_pooling_and_enlarging(bins):
    grid = np.random.default_rng(1).normal(size=(2, 7, 5, 3))
    pooled = adaptive_pool(jnp.asarray(grid), bins)
    expected = F.adaptive_avg_pool2d(first(grid), bins)
    assert_allclose(first(pooled), expected, rtol=1e-6, atol=1e-6)  # the cells' shares are float32
    expected = F.interpolate(expected, size=(7, 9), mode="bilinear", align_corners=False)
    assert_allclose(first(enlarge(pooled, (7, 9))), expected, rtol=1e-6, atol=1e-6)


class Torch:
    """The same decoder from the same parameters."""

    def __init__(self, params):
        self.params = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf, np.float64)), params)

    def block(self, x, name, groups):
        conv, norm = name["conv"]["kernel"], name["norm"]
        x = F.conv2d(x, conv.permute(3, 2, 0, 1), padding=conv.shape[0] // 2)
        return F.relu(F.group_norm(x, groups, norm["scale"], norm["bias"]))

    def double(self, x, name):
        kernel, bias = name["dense"]["kernel"], name["dense"]["bias"]
        channels = kernel.shape[1] // 4
        weight = kernel.reshape(len(kernel), 2, 2, channels).permute(0, 3, 1, 2)
        return F.conv_transpose2d(x, weight, stride=2) + bias.reshape(4, channels).permute(1, 0).reshape(
            1, channels, 2, 2
        ).repeat(1, 1, x.shape[2], x.shape[3])

    def logits(self, x, name):
        return F.conv2d(x, name["logits"]["kernel"].T[:, :, None, None], name["logits"]["bias"])

    def enlarged(self, x, like):
        return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)

    def __call__(self, grids):
        pyramid, head = self.params["pyramid"], self.params["upernet"]
        fine = self.double(grids[0], pyramid["up0"])
        fine = F.gelu(F.group_norm(fine, 1, pyramid["up0_norm"]["scale"], pyramid["up0_norm"]["bias"]))
        levels = [self.double(fine, pyramid["up1"]), self.double(grids[1], pyramid["up2"]), grids[2]]
        coarse = F.max_pool2d(grids[3], 2)
        auxiliary = self.logits(self.block(grids[2], self.params["auxiliary"]["conv"], 2), self.params["auxiliary"])
        pooled = [self.block(F.adaptive_avg_pool2d(coarse, s), head[f"pool{s}"], 2) for s in (1, 2, 3, 6)]
        context = torch.cat([coarse, *(self.enlarged(x, coarse) for x in pooled)], dim=1)
        ladder = [self.block(x, head[f"lateral{i}"], 2) for i, x in enumerate(levels)]
        ladder.append(self.block(context, head["bottleneck"], 2))
        for i in (2, 1, 0):
            ladder[i] = ladder[i] + self.enlarged(ladder[i + 1], ladder[i])
        out = [self.block(ladder[i], head[f"fpn{i}"], 2) for i in range(3)] + [ladder[3]]
        together = torch.cat([self.enlarged(x, out[0]) for x in out], dim=1)
        return self.logits(self.block(together, head["fusion"], 2), head), auxiliary


def test_upernet_with_its_pyramid_and_auxiliary_head():
    layers = tuple(jax.random.normal(jax.random.key(i), (2, 16, 8), jnp.float64) for i in range(4))
    decoder = SegmentationDecoder("upernet", 16, "float64")
    shapes = jax.eval_shape(decoder.init, jax.random.key(9), layers)["params"]
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 + rng.normal(size=leaf.shape) / 4), shapes)
    found = jax.jit(decoder.apply)({"params": params}, layers)
    expected, auxiliary = Torch(params)([first(layer.reshape(2, 4, 4, 8)) for layer in layers])
    assert found.logits.shape == (2, 16, 16, 2)
    assert_allclose(first(found.logits), expected, rtol=1e-4, atol=1e-4)
    assert_allclose(first(found.auxiliary), auxiliary, rtol=1e-4, atol=1e-4)
