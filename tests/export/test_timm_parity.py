"""timm's names: against its published list of parameters, and, where timm is installed, against its model in both directions."""

import importlib.machinery
import importlib.util
import sys
import types

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from msfl_jax.export.huggingface import write_folders
from msfl_jax.export.mapping import from_format, to_format
from msfl_jax.export.names import rows

from .models import PATCH, SIDE, colour_images, make, patches, random_params, see, shapes

# Of timm's vit_base_patch16_224 without a classifier; the blocks are alike.
OUTSIDE = {
    "cls_token": (1, 1, 768),
    "pos_embed": (1, 197, 768),
    "patch_embed.proj.weight": (768, 3, 16, 16),
    "patch_embed.proj.bias": (768,),
    "norm.weight": (768,),
    "norm.bias": (768,),
}
BLOCK = {
    "norm1.weight": (768,),
    "norm1.bias": (768,),
    "attn.qkv.weight": (2304, 768),
    "attn.qkv.bias": (2304,),
    "attn.proj.weight": (768, 768),
    "attn.proj.bias": (768,),
    "norm2.weight": (768,),
    "norm2.bias": (768,),
    "mlp.fc1.weight": (3072, 768),
    "mlp.fc1.bias": (3072,),
    "mlp.fc2.weight": (768, 3072),
    "mlp.fc2.bias": (768,),
}


class Named(type):
    """A class that has every attribute: its own name."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class EmptyTorchvision:
    """Serves empty `torchvision` modules: timm imports it at start, its transformers never use it, and it has no build for every PyTorch."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = self.anything
        return module

    def exec_module(self, module):
        pass

    @staticmethod
    def anything(name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Named(name, (), {})


@pytest.fixture
def timm(monkeypatch):
    pytest.importorskip("torch")
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed: pip install --no-deps timm")
    if importlib.util.find_spec("torchvision") is None:
        if importlib.util.find_spec(
            "transformers"
        ):  # it asks once and remembers: before there seems to be a torchvision
            importlib.import_module("transformers.utils").is_torchvision_available()
        monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, EmptyTorchvision()])
    found = importlib.import_module("timm")
    yield found
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]


def test_the_names_and_shapes_are_those_of_vit_base_patch16_224():
    model = make(model__vision__image_size=224, model__vision__depth=12)
    params = {"vision": jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes(model)["vision"])}
    tensors = to_format(params, "timm", model.config)
    expected = OUTSIDE | {f"blocks.{i}.{name}": shape for i in range(12) for name, shape in BLOCK.items()}
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected
    assert len(expected) == 150


def test_query_key_and_value_are_fused_in_this_order():
    model = make()
    params = random_params(model)
    fused = to_format(params, "timm", model.config)["blocks.1.attn.qkv.weight"]
    for i, name in enumerate(("query", "key", "value")):
        own = params["vision"]["blocks"]["attn"][name]["kernel"][1]
        np.testing.assert_array_equal(fused[768 * i : 768 * (i + 1)], own.T)
    parts = [row.part for row in rows("timm", ["vision/blocks_0/attn/key/kernel", "vision/blocks_0/attn/out/kernel"])]
    assert parts == [1, 0]


def test_maes_fine_tuning_code_takes_the_file_of_an_export(timm, runs_by_name, tmp_path):
    """As MAE's and MRM's scripts load it: without strictness, into a ViT with pooled patches, where head and last norm alone may be missing."""
    import torch
    from safetensors.torch import load_file

    assert write_folders(runs_by_name("b16"), tmp_path) == []
    tensors = load_file(tmp_path / "timm_vit.safetensors")
    sizes = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": 768, "depth": 2, "num_heads": 12}
    tuned = timm.models.vision_transformer.VisionTransformer(**sizes, num_classes=14, global_pool="avg")
    report = tuned.load_state_dict(tensors, strict=False)
    assert set(report.missing_keys) == {"head.weight", "head.bias", "fc_norm.weight", "fc_norm.bias"}
    assert set(report.unexpected_keys) == {"norm.weight", "norm.bias"}
    assert torch.equal(tuned.state_dict()["blocks.1.attn.qkv.weight"], tensors["blocks.1.attn.qkv.weight"])


def test_vit_base_patch16_224_takes_the_file_of_an_export_and_sees_what_ours_sees(timm, runs_by_name, tmp_path):
    import torch
    from safetensors.torch import load_file

    run = runs_by_name("b16")
    write_folders(run, tmp_path)
    theirs = timm.create_model("vit_base_patch16_224", num_classes=0, depth=2, img_size=SIDE).eval()
    theirs.load_state_dict(load_file(tmp_path / "timm_vit.safetensors"), strict=True)
    grey = patches()
    with torch.no_grad():
        found = theirs.forward_features(torch.tensor(colour_images(grey))).numpy()
    assert_allclose(see(run.model, run.params, grey), found, rtol=0, atol=1e-5)


def test_mgcas_image_encoder_takes_the_file_of_an_export(runs_by_name, tmp_path):
    """MGCA's encoder is a ViT of its own in a module of its own (mgca/models/backbones), which is given the weights without strictness."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    run = runs_by_name("b16")
    write_folders(run, tmp_path)
    encoder = mgca_encoder(torch).eval()
    report = encoder.model.load_state_dict(load_file(tmp_path / "timm_vit.safetensors"), strict=False)
    assert (report.missing_keys, report.unexpected_keys) == ([], [])
    grey = patches()
    with torch.no_grad():
        cls, tokens = encoder(torch.tensor(colour_images(grey)))
    expected = see(run.model, run.params, grey)
    assert_allclose(cls, expected[:, 0], rtol=0, atol=1e-5)
    assert_allclose(tokens, expected[:, 1:], rtol=0, atol=1e-5)


def mgca_encoder(torch, width=768, heads=12, depth=2):
    """A module with MGCA's names: `model` is the ViT; it returns the class token and the patches after the last norm."""
    nn = torch.nn

    class Holder(nn.Module):
        """Parts by name."""

        def __init__(self, **parts):
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part)

    def block():
        attention = Holder(qkv=nn.Linear(width, 3 * width), proj=nn.Linear(width, width))
        mlp = Holder(fc1=nn.Linear(width, 4 * width), fc2=nn.Linear(4 * width, width))
        norms = {name: nn.LayerNorm(width, eps=1e-6) for name in ("norm1", "norm2")}
        return Holder(attn=attention, mlp=mlp, **norms)

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Holder(
                cls_token=nn.Parameter(torch.zeros(1, 1, width)),
                pos_embed=nn.Parameter(torch.zeros(1, (SIDE // PATCH) ** 2 + 1, width)),
                patch_embed=Holder(proj=nn.Conv2d(3, width, PATCH, PATCH)),
                blocks=nn.ModuleList(block() for _ in range(depth)),
                norm=nn.LayerNorm(width, eps=1e-6),
            )

        def forward(self, images):
            vit = self.model
            tokens = vit.patch_embed.proj(images).flatten(2).transpose(1, 2)
            tokens = torch.cat([vit.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + vit.pos_embed
            for part in vit.blocks:
                mixed = part.attn.qkv(part.norm1(tokens)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
                mixed = nn.functional.scaled_dot_product_attention(*mixed).transpose(1, 2).flatten(2)
                tokens = tokens + part.attn.proj(mixed)
                tokens = tokens + part.mlp.fc2(nn.functional.gelu(part.mlp.fc1(part.norm2(tokens))))
            tokens = vit.norm(tokens)
            return tokens[:, 0], tokens[:, 1:]

    return Encoder()


def test_timms_model_and_ours_are_one(timm):
    import torch

    model = make(model__vision__positions="learned")
    torch.manual_seed(0)
    sizes = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": 768, "depth": 2, "num_heads": 12, "num_classes": 0}
    theirs = timm.models.vision_transformer.VisionTransformer(**sizes).eval()
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    found, diff = from_format(tensors, "timm", model.config, shapes(model))
    assert not diff
    grey = patches()
    with torch.no_grad():
        expected = theirs.forward_features(torch.tensor(colour_images(grey))).numpy()
    assert_allclose(see(model, found, grey), expected, rtol=0, atol=1e-5)

    params = random_params(model)
    exported = {name: torch.tensor(tensor) for name, tensor in to_format(params, "timm", model.config).items()}
    theirs.load_state_dict(exported, strict=True)
    with torch.no_grad():
        expected = theirs.forward_features(torch.tensor(colour_images(grey))).numpy()
    assert_allclose(see(model, params, grey), expected, rtol=0, atol=1e-5)
