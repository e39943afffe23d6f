"""A linear probe outside of this package, on exported weights, against ours."""

import jax.numpy as jnp
import numpy as np
import pytest

from msfl_jax.encoders import patchify
from msfl_jax.export.parity import our_module
from msfl_jax.metrics import auc
from msfl_jax.tasks.probe import fit_probe
from msfl_jax.tasks.run import encode_images

from .models import see

torch = pytest.importorskip("torch")
linear_model = pytest.importorskip("sklearn.linear_model")
preprocessing = pytest.importorskip("sklearn.preprocessing")
metrics = pytest.importorskip("sklearn.metrics")

IMAGES, L2 = 120, 1e-3


@pytest.fixture(scope="module")
def study():
    """Noise, and in half of the images a square at a random place; three in four are trained on."""
    rng = np.random.default_rng(0)
    images = rng.integers(60, 160, (IMAGES, 32, 32), np.uint8)
    labels = np.arange(IMAGES) // 4 % 2
    for image in images[labels == 1]:
        row, column = rng.integers(0, 24, 2)
        image[row : row + 8, column : column + 8] += 60
    return images, labels.astype(np.float32), np.arange(IMAGES) % 4 != 3


@pytest.mark.parametrize("name", ["demo", "windowed"])
def test_pytorch_and_scikit_learn_reach_our_auc(exported, study, name):
    """On image embeddings of our own module."""
    run, folder, _ = exported(name)
    ours = np.concatenate([encode_images(run, image[None, ..., None], batch_size=1)[0] for image in study[0]])
    reaches_our_auc(ours, our_module().Msfl.load(folder).embed_image(study[0]).numpy(), study)


@pytest.fixture(scope="module")
def shaded():
    """Noise, and in half of the images an upper half that is usually brighter: with 768 features of 90 images, squares are lost in the noise."""
    rng = np.random.default_rng(1)
    labels = np.arange(IMAGES) // 4 % 2
    images = rng.integers(60, 160, (IMAGES, 32, 32)).astype(np.float64)
    images[:, :16] += rng.normal(30 * labels, 15)[:, None, None]
    return images.clip(0, 255).astype(np.uint8), labels.astype(np.float32), np.arange(IMAGES) % 4 != 3


def test_pytorch_and_scikit_learn_reach_our_auc_on_vit_model(exported, shaded):
    """On the mean of the patch tokens that `transformers.ViTModel` makes of the exported `vision/`."""
    transformers = pytest.importorskip("transformers")
    run, folder, _ = exported("b16")
    options, size = run.config.image, run.config.model.vision
    pixels = np.float32(shaded[0].repeat(2, axis=1).repeat(2, axis=2) / 255 - options.mean) / np.float32(
        options.deviation
    )
    vit = transformers.ViTModel.from_pretrained(folder / "vision", add_pooling_layer=False).eval()
    ours, theirs = [], []
    for start in range(0, IMAGES, 24):
        grey = pixels[start : start + 24]
        with torch.no_grad():
            tokens = vit(torch.tensor(grey)[:, None].expand(-1, 3, -1, -1)).last_hidden_state
        theirs.append(tokens[:, 1:].mean(dim=1).numpy())
        patches = patchify(jnp.asarray(grey[..., None]), size.patch_size)
        ours.append(np.asarray(see(run.model, run.params, patches))[:, 1:].mean(axis=1))
    reaches_our_auc(np.concatenate(ours), np.concatenate(theirs), shaded)


def reaches_our_auc(ours, theirs, study):
    """Whether probes that others fit to their features reach what ours reaches on ours."""
    _, labels, train = study
    weights, bias = fit_probe(ours[train], labels[train, None], L2)
    expected = auc((ours[~train] @ weights + bias)[:, 0], labels[~train])
    theirs = theirs.astype(np.float64)
    scaler = preprocessing.StandardScaler().fit(theirs[train])
    probe = linear_model.LogisticRegression(C=1 / (train.sum() * L2), tol=1e-10, max_iter=10_000)
    probe.fit(scaler.transform(theirs[train]), labels[train])
    found = metrics.roc_auc_score(labels[~train], probe.decision_function(scaler.transform(theirs[~train])))
    assert 0.55 < expected < 1
    assert found == pytest.approx(expected, abs=1e-3)
    assert plain_pytorch(theirs, labels, train) == pytest.approx(expected, abs=1e-3)


def plain_pytorch(features, labels, train):
    """AUC of a probe that LBFGS fits."""
    x, y = torch.tensor(features), torch.tensor(labels, dtype=torch.float64)
    x = (x - x[train].mean(dim=0)) / x[train].std(dim=0, correction=0)
    parameters = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        margin = x[train] @ parameters[:-1] + parameters[-1]
        value = torch.nn.functional.binary_cross_entropy_with_logits(margin, y[train])
        value = value + L2 / 2 * parameters[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    scores = x[~train] @ parameters[:-1].detach()
    return metrics.roc_auc_score(labels[~train], scores.numpy())
