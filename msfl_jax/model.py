"""Encoders and heads composed: a batch in, its embeddings and reconstructions out.

`Model` is static (hashable, no arrays in it); parameters are a plain nested dictionary, the same for every choice of objectives. Paths, below
`vision`, `text`, `pixel_decoder`, `heads` and `temperature`, are a contract and are listed in the modules that own them; `heads` holds
`image_projection`, `region_projection` (where regions have their own), `region_norm` (where regions are taken inside the encoder), `pooler` or
`report_projection` (by `text.pool`), `sentence_projection`, `matching`, `language`.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key, UInt8

from msfl_jax import encoders, heads, model_rules
from msfl_jax.config import Config
from msfl_jax.encoders import TRAINED_HERE, BlockSpec, PatchMasking, SpecialTokens, TokenMasking, VisionTokens
from msfl_jax.vectors import unit

Params = Mapping[str, Any]
MAX_LOG_SCALE = 4.605170185988092  # ln 100: cosines are divided by at least .01 (CLIP)
ENCODERS = ("vision", "text", "pixel_decoder")  # whose products are taken in `compute_dtype`


class Keys(NamedTuple):
    """The randomness of one step, by purpose; typed PRNG keys.

    Attributes:
      image_mask: which patches are hidden.
      text_mask: which tokens are hidden, and behind what.
      negatives: which hard negatives are drawn.
    """

    image_mask: Key[Array, ""]
    text_mask: Key[Array, ""]
    negatives: Key[Array, ""]

    @classmethod
    def at(cls, seed: Array | int, step: Array | int) -> "Keys":
        """The keys of a step: a function of (seed, step), so that nothing random is state."""
        base = jax.random.fold_in(jax.random.key(seed), step)
        # All at once: the same keys as one by one, from fewer operations to compile.
        return cls(*jax.vmap(partial(jax.random.fold_in, base))(jnp.arange(len(cls._fields))))


class Masks(NamedTuple):
    """What is hidden in one step; rows of the batch first in every array."""

    image: PatchMasking
    text: TokenMasking


class Features(NamedTuple):
    """What the objectives see of a batch; all floats are float32.

    B studies, P regions, S sentences, D and E the widths of embeddings and regions, K pixels of a patch, M predicted tokens, V words. The fields
    from `pixel_prediction` on are None where the run does without reconstruction.
    """

    image_embedding: Float32[Array, "B D"]
    report_embedding: Float32[Array, "B D"]
    regions: Float32[Array, "B P E"]
    sentences: Float32[Array, "B S E"]
    sentence_mask: Bool[Array, "B S"]
    temperature: Float32[Array, ""]
    pixel_prediction: Float32[Array, "B P K"] | None = None
    pixel_target: Float32[Array, "B P K"] | None = None
    pixel_masked: Bool[Array, "B P"] | None = None
    token_logits: Float32[Array, "B M V"] | None = None
    token_targets: Int[Array, "B M"] | None = None
    token_weights: Float32[Array, "B M"] | None = None


@dataclasses.dataclass(frozen=True)
class Model:
    """The model of a run; make it with `Model.create`.

    Attributes:
      config: the run's configuration.
      vocab_size: rows of the word table.
      special: tokens that masking leaves alone.
    """

    config: Config
    vocab_size: int
    special: SpecialTokens = dataclasses.field(default=TRAINED_HERE, kw_only=True)

    @classmethod
    def create(cls, config: Config, *, vocab_size: int, special: SpecialTokens = TRAINED_HERE) -> "Model":
        """The model of a configuration.

        Args:
          config: all of it; sizes and options are read from it, paths are not.
          vocab_size: words of the tokenizer. A larger `model.text.vocab_size` makes room for more.
          special: the tokenizer's, needed by masking; the default is for one that was trained here.

        Raises:
          UserError: parts that do not fit each other.
        """
        rows = config.model.text.vocab_size or vocab_size
        model_rules.check(config, rows, vocab_size)
        return cls(config, rows, special=special)

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Fresh float32 parameters, all of them whatever the objectives: runs that differ in objectives start equal.

        Each part draws from the key and its own name, so that no part's numbers depend on which others exist.
        """
        decoder, text = self.pixel_decoder, self.text
        grid, pixels = decoder.grid, self.config.model.vision.patch_size**2
        states = jnp.zeros((1, self.config.model.vision.width))
        cls = states if self.vision.class_token else None
        return {
            "vision": _init(self.vision, key, "vision", jnp.zeros((1, grid**2, pixels))),
            "text": _init(text, key, "text", jnp.zeros((1, text.max_tokens), jnp.int32)),
            "pixel_decoder": _init(
                decoder, key, "pixel_decoder", states[:, None], cls, jnp.zeros((1, grid**2), jnp.int32)
            ),
            "heads": {name: _init(module, key, name, *inputs) for name, (module, inputs) in self._heads().items()},
            "temperature": {"log_scale": -jnp.log(jnp.float32(self.config.objective.global_alignment.temperature))},
        }

    def features(self, params: Params, batch: Mapping[str, Array], keys: Keys, *, parts: int = 1) -> Features:
        """Everything the objectives need of a batch.

        With `image.passes` "two", embeddings come from the whole image, and a second pass over visible patches feeds the reconstruction; with
        "shared", one masked pass feeds all: then only visible patches are pooled, and regions are those of the visible patches, in random order
        (P is their number). Likewise for `text.passes`. Where `lambda_modality` is 0 no second pass is computed; a shared pass stays masked, so
        that such an ablation changes the loss alone.

        Args:
          params: as `init` makes them.
          batch: `image` uint8 [B, H, W, 1], H and W `image.target_scale` times the encoder's; `token_ids` and `sentence_ids` int32 [B, T].
          keys: of this step.
          parts: equal parts of consecutive rows, those of one device each, that are sorted by length apart where `text.length_buckets` is set.
        """
        return self.features_behind(params, batch, self.draw_masks(batch, keys), parts=parts)

    def draw_masks(self, batch: Mapping[str, Array], keys: Keys) -> Masks:
        """What is hidden of each image and each report: a function of the keys and the whole batch."""
        image, text, vision = self.config.image, self.config.text, self.config.model.vision
        patches = vision.grid**2
        visible = encoders.count_visible(patches, image.mask_ratio)
        rules = {"rate": text.mask_rate, "replacement": text.mask_replacement}
        special = {"vocab_size": self.vocab_size, "special": self.special}
        return Masks(
            encoders.random_masking(keys.image_mask, len(batch["image"]), patches, visible),
            encoders.mask_tokens(keys.text_mask, batch["token_ids"], **rules, **special),
        )

    def features_behind(
        self, params: Params, batch: Mapping[str, Array], masks: Masks, *, parts: int = 1, reconstruct: bool = True
    ) -> Features:
        """`features` with masks that have been drawn; without `reconstruct` none of what only reconstruction needs."""
        token_ids, scale = batch["token_ids"], self.config.image.target_scale
        reconstruct = reconstruct and bool(self.config.objective.lambda_modality)
        dtype = self.config.model.compute_dtype
        params = {**params, **{name: encoders.cast_products(params[name], dtype) for name in ENCODERS}}
        patches = self._patches(encoders.shrink(batch["image"], scale))
        tokens, masked_tokens = self._image_passes(params, patches, masks.image, reconstruct)
        states, masked_states = self._report_passes(params, token_ids, masks.text, parts, reconstruct)
        image_embedding, regions = self._project_image(params, tokens)
        report_embedding, sentences, present = self._project_report(params, states, token_ids, batch["sentence_ids"])
        features = Features(
            image_embedding, report_embedding, regions, sentences, present, temperature=self.temperature(params)
        )
        if not reconstruct:
            return features
        target = encoders.patchify(self._pixels(batch["image"], scale), self.config.model.vision.patch_size * scale)
        rebuilt = self._rebuild(params, masked_tokens, masks.image, target)
        return features._replace(**rebuilt, **self._predict(params, masked_states, masks.text))

    def encode_image(
        self, params: Params, image: UInt8[Array, "B H W 1"]
    ) -> tuple[Float32[Array, "B D"], Float32[Array, "B P E"]]:
        """Image and region embeddings of whole images; regions row by row.

        Raises:
          ValueError: images have another size than the model's.
        """
        return self._project_image(params, self._see(params, self._patches(image)))

    def encode_patches(self, params: Params, image: UInt8[Array, "B H W 1"]) -> Float32[Array, "B P D"]:
        """Each patch pooled and projected as if it were the image: what global alignment alone says about places (MaCo's grounding)."""
        tokens = self._see(params, self._patches(image)).patches
        alone = tokens.reshape(-1, 1, tokens.shape[-1])
        each = VisionTokens(patches=alone, cls=alone[:, 0], regions=alone)
        pooled = encoders.pool_image(each, self.config.image.pool)
        width = self.config.model.embedding_width
        projected = _apply(heads.projection(width), params["heads"]["image_projection"], pooled)
        return projected.reshape(*tokens.shape[:2], width)

    def encode_report(
        self, params: Params, token_ids: Int32[Array, "B T"], sentence_ids: Int32[Array, "B T"]
    ) -> tuple[Float32[Array, "B D"], Float32[Array, "B S E"], Bool[Array, "B S"]]:
        """Report embedding, sentence embeddings and which of them exist; S is `text.max_sentences`, plus 1 in front with `include_cls`."""
        states = self._read(params, token_ids)
        return self._project_report(params, states, token_ids, sentence_ids)

    def match(
        self, params: Params, image_embedding: Float32[Array, "N D"], report_embedding: Float32[Array, "N D"]
    ) -> Float32[Array, " N"]:
        """Logits that report i belongs to image i (eq. 4).

        The head sees unit vectors times sqrt(D): on embeddings of any norm, a product fusion collapses the contrastive losses.
        """
        scale = image_embedding.shape[-1] ** 0.5
        image, report = unit(image_embedding) * scale, unit(report_embedding) * scale
        return _apply(self._matching, params["heads"]["matching"], image, report)

    def temperature(self, params: Params) -> Float32[Array, ""]:
        """What cosines are divided by: learned as a logarithm and at least .01 (CLIP), or as configured."""
        log_scale = params["temperature"]["log_scale"]
        if not self.config.objective.global_alignment.learn_temperature:
            log_scale = jax.lax.stop_gradient(log_scale)
        # Held back in value only: a plain minimum has no gradient beyond the limit and would never come back from there.
        beyond = jax.lax.stop_gradient(jnp.maximum(log_scale - MAX_LOG_SCALE, 0))
        return jnp.exp(beyond - log_scale)

    @property
    def vision(self) -> encoders.VisionTransformer:
        """The image encoder, whose parameters are `params["vision"]`."""
        size, regions = self.config.model.vision, self.config.regions
        return encoders.VisionTransformer(
            spec=self._blocks("vit", size.depth, size.width, size.heads, size.mlp_ratio),
            grid=size.grid,
            patch_layers=size.patch_layers,
            positions=size.positions,
            class_token=size.cls_token,
            region_layer=regions.layer,
            window_radius=regions.window_radius,
        )

    @property
    def text(self) -> encoders.TextTransformer:
        """The report encoder, whose parameters are `params["text"]`."""
        size = self.config.model.text
        spec = self._blocks("bert", size.depth, size.width, size.heads, size.mlp_ratio)
        return encoders.TextTransformer(spec, vocab_size=self.vocab_size, max_tokens=size.max_tokens)

    @property
    def pixel_decoder(self) -> encoders.PixelDecoder:
        """The decoder of masked patches, whose parameters are `params["pixel_decoder"]`."""
        size, vision = self.config.model.pixel_decoder, self.config.model.vision
        spec = self._blocks("vit", size.depth, size.width, size.heads, 4.0)
        return encoders.PixelDecoder(
            spec, grid=vision.grid, pixels=(vision.patch_size * self.config.image.target_scale) ** 2
        )

    def _blocks(self, kind: Literal["vit", "bert"], depth: int, width: int, heads: int, mlp_ratio: float) -> BlockSpec:
        model = self.config.model
        hidden = int(width * mlp_ratio)
        how = (model.compute_dtype, model.scan_layers, model.remat, model.flat_products)
        # By device and not inside the program: JAX refuses to trace cuDNN's kernel where there is none.
        cuda = model.attention == "cudnn" and "cuda" in jax.devices()[0].client.platform_version
        attention = "cudnn" if cuda else "xla"
        return BlockSpec(kind, depth, width, heads, hidden, *how, attention=attention)

    @property
    def _matching(self) -> heads.MatchingHead:
        options = self.config.objective.instance_matching
        return heads.MatchingHead(
            self.config.model.matching_width, fusion=options.fusion, activation=options.activation
        )

    @property
    def _language(self) -> heads.LanguageHead:
        return heads.LanguageHead(self.config.model.compute_dtype)

    def _heads(self) -> dict[str, tuple[nn.Module, tuple[Array, ...]]]:
        """Each head with inputs of the right shape, by its name in the parameters."""
        model, regions = self.config.model, self.config.regions
        seen, read = jnp.zeros((1, model.vision.width)), jnp.zeros((1, model.text.width))
        pooled = jnp.zeros((1, model.vision.width * (2 if self.config.image.pool == "mean_max" else 1)))
        pair = jnp.zeros((1, model.embedding_width))
        words = jnp.zeros((self.vocab_size, model.text.width))
        parts: dict[str, tuple[nn.Module, tuple[Array, ...]]] = {
            "image_projection": (heads.projection(model.embedding_width), (pooled,)),
            "sentence_projection": (heads.projection(model.region_width), (read,)),
            "matching": (self._matching, (pair, pair)),
            "language": (self._language, (read[None], words)),
        }
        if self.config.text.pool != "mean":
            parts["pooler"] = (heads.pooler(model.embedding_width), (read,))
        else:
            parts["report_projection"] = (heads.projection(model.embedding_width), (read,))
        if regions.projection == "own":
            parts["region_projection"] = (heads.projection(model.region_width), (seen,))
        if regions.layer:
            parts["region_norm"] = (heads.region_norm(), (seen,))
        return parts

    def _patches(self, image: UInt8[Array, "B H W 1"]) -> Float32[Array, "B P K"]:
        return encoders.patchify(self._pixels(image, scale=1), self.config.model.vision.patch_size)

    def _pixels(self, image: UInt8[Array, "B H W 1"], scale: int) -> Float32[Array, "B H W 1"]:
        """Normalised images of `scale` times the encoder's resolution."""
        options, side = self.config.image, self.config.model.vision.image_size * scale
        if image.shape[1:3] != (side, side):  # positions out of range would be clipped without a word
            raise ValueError(f"images have {image.shape[1]} x {image.shape[2]} pixels; expected {side} x {side}")
        return encoders.normalise_image(
            image, normalisation=options.normalisation, mean=options.mean, deviation=options.deviation
        )

    def _see(self, params: Params, patches: Array) -> VisionTokens:
        """Tokens of all patches."""
        return _apply(self.vision, params["vision"], patches)

    def _read(self, params: Params, token_ids: Array) -> Float[Array, "B T W"]:
        """Token states of reports."""
        return _apply(self.text, params["text"], token_ids)

    def _image_passes(
        self, params: Params, patches: Array, masking: PatchMasking, reconstruct: bool
    ) -> tuple[Any, Any]:
        """Tokens for alignment, and tokens of the masked pass, None if there is none; two passes go through each block together."""
        shared = self.config.image.passes == "shared"
        whole, visible = (patches, None), (encoders.take(patches, masking.kept), masking.kept)
        views = [visible] if shared else [whole, visible][: 1 + reconstruct]
        tokens = _apply(self.vision, params["vision"], *views, method="together")
        return tokens[0], tokens[-1] if shared or reconstruct else None

    def _project_image(
        self, params: Params, tokens: VisionTokens
    ) -> tuple[Float32[Array, "B D"], Float32[Array, "B P E"]]:
        model, head = self.config.model, params["heads"]
        pooled = encoders.pool_image(tokens, self.config.image.pool)
        image_embedding = _apply(heads.projection(model.embedding_width), head["image_projection"], pooled)
        regions = tokens.regions
        if self.config.regions.layer:
            regions = _apply(heads.region_norm(), head["region_norm"], regions)
        name = "region_projection" if self.config.regions.projection == "own" else "image_projection"
        return image_embedding, _apply(heads.projection(model.region_width), head[name], regions)

    def _rebuild(self, params: Params, visible: VisionTokens, masking: PatchMasking, target: Array) -> dict[str, Array]:
        predicted = _apply(self.pixel_decoder, params["pixel_decoder"], visible.patches, visible.cls, masking.restore)
        target = encoders.normalise_patches(target) if self.config.image.norm_pix else target
        return {"pixel_prediction": predicted, "pixel_target": target, "pixel_masked": masking.masked}

    def _report_passes(
        self, params: Params, token_ids: Array, masking: TokenMasking, parts: int, reconstruct: bool
    ) -> tuple[Any, Any]:
        """States for alignment, and states of the masked pass, None if there is none; two passes are computed as one."""
        encode, how = partial(self._read, params), {"buckets": self.config.text.buckets, "parts": parts}
        if self.config.text.passes == "shared":
            states = encoders.read_by_length(encode, masking.token_ids, **how)
            return states, states
        if not reconstruct:
            return encoders.read_by_length(encode, token_ids, **how), None
        return encoders.read_both(encode, token_ids, masking.token_ids, **how)

    def _project_report(
        self, params: Params, states: Array, token_ids: Array, sentence_ids: Array
    ) -> tuple[Float32[Array, "B D"], Float32[Array, "B S E"], Bool[Array, "B S"]]:
        options, model, head = self.config.text, self.config.model, params["heads"]
        units, present = self._sentence_units(params, states, token_ids, sentence_ids)
        if self.config.objective.local_alignment.include_cls:
            units = jnp.concatenate([states[:, :1].astype(units.dtype), units], axis=1)
            present = jnp.concatenate([token_ids[:, :1] != 0, present], axis=1)
        sentences = _apply(heads.projection(model.region_width), head["sentence_projection"], units)
        pooled = encoders.pool_report(states, token_ids, options.pool)
        if options.pool == "mean":
            projected = _apply(heads.projection(model.embedding_width), head["report_projection"], pooled)
        else:
            projected = _apply(heads.pooler(model.embedding_width), head["pooler"], pooled)
        return jnp.tanh(projected) if options.pool == "cls" else projected, sentences, present

    def _sentence_units(
        self, params: Params, states: Array, token_ids: Array, sentence_ids: Array
    ) -> tuple[Float32[Array, "B S W"], Bool[Array, "B S"]]:
        """Vectors of sentences in the width of the encoder, and which exist; read in their report, or each alone (S more passes)."""
        count, pool = self.config.text.max_sentences, self.config.text.sentence_pool
        if pool != "separate":
            return encoders.pool_sentences(states, sentence_ids, count, pool)
        alone = encoders.separate_sentences(token_ids, sentence_ids, count)
        first = _apply(self.text, params["text"], alone.reshape(-1, alone.shape[-1]))[:, 0]
        present = (sentence_ids[:, None, :] == jnp.arange(1, count + 1)[None, :, None]).any(axis=-1)
        return first.reshape(alone.shape[0], count, -1).astype(jnp.float32), present

    def _predict(self, params: Params, states: Array, masking: TokenMasking) -> dict[str, Array]:
        """The language head on predicted positions only: on all, it would be a tenth of a step."""
        chosen = encoders.take(states, masking.positions)
        words = params["text"]["word_embeddings"]["embedding"]
        logits = _apply(self._language, params["heads"]["language"], chosen, words)
        return {"token_logits": logits, "token_targets": masking.targets, "token_weights": masking.weights}


def _apply(module: nn.Module, params: Params, *inputs: Any, method: str | None = None) -> Any:
    return module.apply({"params": params}, *inputs, method=method)


def _init(module: nn.Module, key: Array, name: str, *inputs: Any) -> Any:
    """Parameters drawn from the key and the part's name."""
    return module.init(jax.random.fold_in(key, zlib.crc32(name.encode())), *inputs)["params"]
