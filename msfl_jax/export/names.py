"""The one table of names: where each format keeps what we keep, read in both directions.

A parameter's path is ours (`vision/blocks_0/attn/query/kernel`), its name is the format's (`encoder.layer.0.attention.attention.query.weight`).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

Format = Literal["msfl", "hf_vit", "hf_vit_mae", "hf_bert", "timm", "mae", "maco", "mrm", "clip", "openai"]
FORMATS: tuple[Format, ...] = get_args(Format)
Change = Literal["same", "transposed", "patches", "pixels", "token", "positions", "third"]

BLOCK = re.compile(r"blocks_(\d+)/(.+)")
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
FUSED = ("attn/query", "attn/key", "attn/value")  # in this order

# ours, Hugging Face ViT (the names of transformers 4, which 5 reads too), timm and MAE, CLIP in transformers, CLIP of its authors.
# A name that ends with "_" is followed by weight or bias without a dot.
VIT_BLOCK = (
    ("norm1", "layernorm_before", "norm1", "layer_norm1", "ln_1"),
    ("attn/query", "attention.attention.query", "attn.qkv", "self_attn.q_proj", "attn.in_proj_"),
    ("attn/key", "attention.attention.key", "attn.qkv", "self_attn.k_proj", "attn.in_proj_"),
    ("attn/value", "attention.attention.value", "attn.qkv", "self_attn.v_proj", "attn.in_proj_"),
    ("attn/out", "attention.output.dense", "attn.proj", "self_attn.out_proj", "attn.out_proj"),
    ("norm2", "layernorm_after", "norm2", "layer_norm2", "ln_2"),
    ("fc1", "intermediate.dense", "mlp.fc1", "mlp.fc1", "mlp.c_fc"),
    ("fc2", "output.dense", "mlp.fc2", "mlp.fc2", "mlp.c_proj"),
)
VIT = (
    (
        "patch_embed",
        "embeddings.patch_embeddings.projection",
        "patch_embed.proj",
        "embeddings.patch_embedding",
        "conv1",
    ),
    ("cls_token", "embeddings.cls_token", "cls_token", "embeddings.class_embedding", "class_embedding"),
    (
        "pos_embed",
        "embeddings.position_embeddings",
        "pos_embed",
        "embeddings.position_embedding.weight",
        "positional_embedding",
    ),
    ("norm", "layernorm", "norm", "post_layernorm", "ln_post"),
)
# ours, Hugging Face ViTMAE, MAE
DECODER = (
    ("embed", "decoder_embed", "decoder_embed"),
    ("mask_token", "mask_token", "mask_token"),
    ("pos_embed", "decoder_pos_embed", "decoder_pos_embed"),
    ("norm", "decoder_norm", "decoder_norm"),
    ("prediction", "decoder_pred", "decoder_pred"),
)
# ours, BERT
BERT_BLOCK = (
    ("attn/query", "attention.self.query"),
    ("attn/key", "attention.self.key"),
    ("attn/value", "attention.self.value"),
    ("attn/out", "attention.output.dense"),
    ("norm1", "attention.output.LayerNorm"),
    ("fc1", "intermediate.dense"),
    ("fc2", "output.dense"),
    ("norm2", "output.LayerNorm"),
)
BERT = (
    ("word_embeddings", "embeddings.word_embeddings"),
    ("position_embeddings", "embeddings.position_embeddings"),
    ("token_type_embeddings", "embeddings.token_type_embeddings"),
    ("embeddings_norm", "embeddings.LayerNorm"),
)
LANGUAGE = (
    ("dense", "cls.predictions.transform.dense"),
    ("norm", "cls.predictions.transform.LayerNorm"),
    ("bias", "cls.predictions.bias"),
)


class Row(NamedTuple):
    """One of our parameters and the tensor, or the third of one, that holds it.

    Attributes:
      path: ours; of blocks that are not stacked.
      name: the format's.
      change: what an array goes through on its way out, and back.
      part: which third of a fused tensor it is; 0 elsewhere.
    """

    path: str
    name: str
    change: Change
    part: int = 0


@dataclass(frozen=True)
class Part:
    """Where a format keeps one part of our model.

    Attributes:
      prefix: before all names, as the format's own model writes them.
      block: a block's, with {} for its number; "" where there are none.
      inside: names within a block by our path within it.
      outside: the others.
    """

    prefix: str
    block: str
    inside: Mapping[str, str]
    outside: Mapping[str, str]

    def name(self, path: str) -> str:
        """Of the module or tensor at `path`, below the prefix; "" where the format has none."""
        if match := BLOCK.fullmatch(path):
            inside = self.inside.get(match[2])
            return f"{self.block.format(match[1])}{inside}" if inside else ""
        return self.outside.get(path, "")

    def claims(self, name: str) -> bool:
        """Whether a name below the prefix belongs to this part, whatever the sizes of the model."""
        start = self.block.split("{}")[0]
        blocks = bool(start) and name.startswith(start)
        return blocks or any(name == own or name.startswith(f"{own}.") for own in self.outside.values())


def _column(rows: Iterable[tuple[str, ...]], number: int) -> dict[str, str]:
    return {row[0]: row[number] for row in rows}


def _vit(prefix: str, block: str, column: int) -> Part:
    return Part(prefix, block, _column(VIT_BLOCK, column), _column(VIT, column))


def _decoder(prefix: str, block: str, column: int) -> Part:
    return Part(prefix, block, _column(VIT_BLOCK, column), _column(DECODER, column))


def _bert(prefix: str) -> dict[str, Part]:
    """The report encoder and what stands on it."""
    return {
        "text": Part(f"{prefix}bert.", "encoder.layer.{}.", _column(BERT_BLOCK, 1), _column(BERT, 1)),
        "pooler": Part(f"{prefix}bert.", "", {}, {"": "pooler.dense"}),
        "language": Part(prefix, "", {}, _column(LANGUAGE, 1)),
    }


_HF, _TIMM, _CLIP, _OPENAI = 1, 2, 3, 4  # columns of VIT and VIT_BLOCK
_MAE = {"vision": _vit("", "blocks.{}.", _TIMM), "pixel_decoder": _decoder("", "decoder_blocks.{}.", _TIMM)}

# The parts of our model that a format holds, by our name: a section of the parameters, or one of `heads`.
PARTS: dict[Format, dict[str, Part]] = {
    "hf_vit": {"vision": _vit("", "encoder.layer.{}.", _HF)},
    "hf_vit_mae": {
        "vision": _vit("vit.", "encoder.layer.{}.", _HF),
        "pixel_decoder": _decoder("decoder.", "decoder_layers.{}.", _HF),
    },
    "hf_bert": _bert(""),
    "timm": {"vision": _MAE["vision"]},
    "mae": _MAE,
    "maco": {**_MAE, **_bert("bert_encoder.model."), "image_projection": Part("", "", {}, {"": "img_mlp"})},
    "mrm": {**_MAE, **_bert("bert_encoder.model.")},
    "clip": {"vision": _vit("vision_model.", "encoder.layers.{}.", _CLIP)},
    "openai": {"vision": _vit("visual.", "transformer.resblocks.{}.", _OPENAI)},
}
READ_ONLY: tuple[Format, ...] = ("maco", "mrm", "clip", "openai")
NO_PATCH_BIAS: tuple[Format, ...] = ("clip", "openai")

# Tensors that some files hold a second time: part and name of the copy, and of what it is tied to.
TIED = {
    ("language", "cls.predictions.decoder.weight"): ("text", "embeddings.word_embeddings.weight"),
    ("language", "cls.predictions.decoder.bias"): ("language", "cls.predictions.bias"),
}

# What other releases of the same libraries write, and what we know it as.
ALIASES = (
    (re.compile(r"\bdecoder_encoder\.layer\."), "decoder_layers."),
    (re.compile(r"\bLayerNorm\.gamma$"), "LayerNorm.weight"),
    (re.compile(r"\bLayerNorm\.beta$"), "LayerNorm.bias"),
)

# The tensor by which the prefix of an encoder is found, whatever a file's own wrapping is.
ANCHORS = {"vision": "patch_embed", "text": "word_embeddings"}


def part_of(path: str) -> tuple[str, str]:
    """The part a path belongs to and the rest of it: a section, or one of the heads."""
    section, _, rest = path.partition("/")
    if section != "heads":
        return section, rest
    head, _, rest = rest.partition("/")
    return head, rest


def rows(form: Format, paths: Iterable[str], prefixes: Mapping[str, str] | None = None) -> list[Row]:
    """The table for a model's parameters: those that the format holds, in the order of `paths`.

    Args:
      form: of the names.
      paths: of our parameters, blocks apart.
      prefixes: by part, where they are others than the format's own.
    """
    if form == "msfl":
        return [Row(path, msfl_name(path), "transposed" if path.endswith("/kernel") else "same") for path in paths]
    found = (_row(form, path, prefixes or {}) for path in paths)
    return [row for row in found if row is not None]


def msfl_name(path: str) -> str:
    """The name in our own format: the path with dots, blocks numbered as in a ModuleList, leaves named as PyTorch's."""
    *modules, leaf = path.split("/")
    dotted = ".".join(re.sub(r"^blocks_(\d+)$", r"blocks.\1", module) for module in modules)
    return f"{dotted}.{LEAVES.get(leaf, leaf)}"


def _row(form: Format, path: str, prefixes: Mapping[str, str]) -> Row | None:
    part, rest = part_of(path)
    if part not in PARTS[form]:
        return None
    names = PARTS[form][part]
    prefix = prefixes.get(part, names.prefix)
    if rest in names.outside:  # a tensor of its own, not one of a layer
        return Row(path, prefix + names.outside[rest], _change(part, rest, ""))
    module, _, leaf = rest.rpartition("/")
    name = names.name(module)
    if not name:
        return None
    within = match[2] if (match := BLOCK.fullmatch(module)) else module
    fused = within in FUSED and names.inside["attn/query"] == names.inside["attn/key"]
    change = "third" if fused else _change(part, within, leaf)
    joint = "" if name.endswith("_") else "."
    return Row(path, f"{prefix}{name}{joint}{LEAVES[leaf]}", change, FUSED.index(within) if fused else 0)


def _change(part: str, module: str, leaf: str) -> Change:
    """What an array of a format other than our own goes through."""
    if part == "vision" and module == "patch_embed" and leaf == "kernel":
        return "patches"
    if part == "pixel_decoder" and module == "prediction":
        return "pixels"
    if module in ("cls_token", "mask_token"):
        return "token"
    if module in ("pos_embed", "position_embeddings"):
        return "positions"
    return "transposed" if leaf == "kernel" else "same"
