"""The image encoder of a pretrained model with a linear head: images in, one logit per finding out.

Parameter paths: `vision` as in pretraining (without `norm` where the final norm is dropped), `head/fc_norm` (unless it is a probe), `head/fc`.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Float32, Key, UInt8

from input_pipeline.errors import CheckpointError
from msfl_jax import encoders
from msfl_jax.config import Config
from msfl_jax.encoders.layers import layer_norm
from msfl_jax.model import Model, Params

DROP_PATH = "drop_path"


class Head(nn.Module):
    """LayerNorm and a linear layer whose kernel starts near 0 (MAE's and the siblings' truncated normal of deviation 2e-5).

    Attributes:
      outputs: findings.
      norm: whether there is the LayerNorm; a linear probe does without.
    """

    outputs: int
    norm: bool = True

    @nn.compact
    def __call__(self, pooled: Float[Array, "B C"]) -> Float32[Array, "B L"]:
        """Logits of pooled tokens, float32."""
        if self.norm:
            pooled = layer_norm("vit", "float32", "fc_norm")(pooled)
        return nn.Dense(self.outputs, kernel_init=nn.initializers.truncated_normal(2e-5), name="fc")(pooled)


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A classifier of images; static, its parameters are a plain nested dictionary.

    Attributes:
      config: of the pretraining run, which says how the encoder is made and how pixels are normalised.
      outputs: findings.
      image_size: side of the images in pixels; 0 is that of pretraining.
      pool: mean of the patch tokens, or mean and maximum side by side.
      final_norm: whether the pretrained norm behind the last block stays (MaCo and MRM drop it).
      drop_path: of the last block, while training.
      head_norm: whether pooled tokens are normalised before the linear layer; frozen features of a probe are not.
    """

    config: Config
    outputs: int
    image_size: int = 0
    pool: Literal["mean", "mean_max"] = "mean"
    final_norm: bool = False
    drop_path: float = 0.0
    head_norm: bool = True

    @property
    def side(self) -> int:
        """Pixels along one side of the images."""
        return self.image_size or self.config.model.vision.image_size

    @property
    def vision(self) -> encoders.VisionTransformer:
        """The encoder, whose parameters are `params["vision"]`."""
        return finetuned_vision(self.config, image_size=self.side, drop_path=self.drop_path, final_norm=self.final_norm)

    @property
    def _head(self) -> Head:
        return Head(self.outputs, norm=self.head_norm)

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Fresh parameters: an encoder as pretraining starts from, and a head."""
        first, second = jax.random.split(key)
        patches = jnp.zeros((1, self.vision.grid**2, self.config.model.vision.patch_size**2))
        width = self.config.model.vision.width * (2 if self.pool == "mean_max" else 1)
        return {
            "vision": self.vision.init(first, patches)["params"],
            "head": self._head.init(second, jnp.zeros((1, width)))["params"],
        }

    def initial(self, key: Key[Array, ""], pretrained: Params | None) -> dict[str, Any]:
        """Parameters before fine-tuning: those of `init`, with the encoder of a pretrained model (all of its parameters) where one is given."""
        params = jax.jit(self.init)(key)
        if pretrained is None:
            return params
        return params | {"vision": transfer_vision(pretrained["vision"], params["vision"], self.vision.class_token)}

    def features(
        self, params: Params, image: UInt8[Array, "B H W 1"], key: Key[Array, ""] | None = None
    ) -> Float32[Array, "B C"]:
        """Pooled tokens, before the head's norm; `key` draws what drop-path leaves out, None leaves nothing out.

        Raises:
          ValueError: images have another size than the classifier's.
        """
        tokens = see(self.config, self.vision, params, image, self.side, key)
        return encoders.pool_image(tokens, self.pool)

    def logits(
        self, params: Params, image: UInt8[Array, "B H W 1"], key: Key[Array, ""] | None = None
    ) -> Float32[Array, "B L"]:
        """Log-odds of each finding; `key` as in `features`."""
        return self.classify(params, self.features(params, image, key))

    def classify(self, params: Params, features: Float[Array, "B C"]) -> Float32[Array, "B L"]:
        """Log-odds from `features`."""
        logits: Any = self._head.apply({"params": params["head"]}, features)
        return logits


def finetuned_vision(
    config: Config, *, image_size: int, drop_path: float = 0.0, final_norm: bool = True
) -> encoders.VisionTransformer:
    """The image encoder of a pretraining run for images of another size, with stochastic depth.

    Fixed positions are those of the same places in the image on the grid of pretraining; learned ones need `transfer_vision`.

    Raises:
      CheckpointError: the size is no multiple of the model's patches.
    """
    patch = config.model.vision.patch_size
    if image_size % patch:
        raise CheckpointError(
            f"image_size is {image_size}; expected a multiple of the model's patches of {patch} pixels"
        )
    vision = Model(config, vocab_size=0).vision
    spec = dataclasses.replace(vision.spec, drop_path=drop_path)
    return vision.clone(spec=spec, grid=image_size // patch, pretrained_grid=vision.grid, final_norm=final_norm)


def see(
    config: Config,
    vision: encoders.VisionTransformer,
    params: Params,
    image: UInt8[Array, "B H W 1"],
    side: int,
    key: Key[Array, ""] | None = None,
) -> encoders.VisionTokens:
    """Tokens of whole images by a fine-tuned encoder.

    Args:
      config: of the pretraining, for normalisation and patch size.
      vision: as `finetuned_vision` makes it.
      params: with the encoder's under "vision".
      image: of `side` x `side` pixels.
      side: in pixels.
      key: draws what drop-path leaves out; None leaves nothing out.

    Raises:
      ValueError: images have another size.
    """
    if image.shape[1:3] != (side, side):
        raise ValueError(f"images have {image.shape[1]} x {image.shape[2]} pixels; expected {side} x {side}")
    options = config.image
    pixels = encoders.normalise_image(
        image, normalisation=options.normalisation, mean=options.mean, deviation=options.deviation
    )
    patches = encoders.patchify(pixels, config.model.vision.patch_size)
    tokens: Any = vision.apply({"params": params["vision"]}, patches, rngs={} if key is None else {DROP_PATH: key})
    return tokens


def transfer_vision(pretrained: Params, like: Params, class_token: bool) -> dict[str, Any]:
    """Parameters of a pretrained encoder for one of another resolution and with or without the final norm.

    Learned positions are interpolated (bicubic, a = -.5; PyTorch's has a = -.75); all others are taken as they are.

    Args:
      pretrained: of the encoder, as its run has them.
      like: arrays or shapes of the encoder that will use them.
      class_token: whether the first position is that of a class token, which is not interpolated.

    Raises:
      CheckpointError: the two are no encoders of one kind.
    """
    missing = sorted(like.keys() - pretrained.keys())
    if missing:
        raise CheckpointError(f"the pretrained encoder has no {', '.join(missing)}; expected one of the same model")
    chosen = {name: pretrained[name] for name in like}
    if "pos_embed" in chosen and chosen["pos_embed"].shape != like["pos_embed"].shape:
        chosen["pos_embed"] = interpolate_positions(chosen["pos_embed"], like["pos_embed"].shape[1], class_token)
    return chosen


def interpolate_positions(table: Float[Array, "1 N D"], tokens: int, class_token: bool) -> Float[Array, "1 M D"]:
    """A square table of learned positions for another grid of patches; M = `tokens`, with the class token first in both or neither."""
    first = int(class_token)
    old, new = (round((count - first) ** 0.5) for count in (table.shape[1], tokens))
    grid = table[:, first:].reshape(1, old, old, -1)
    resized = jax.image.resize(grid, (1, new, new, grid.shape[-1]), "cubic").reshape(1, new * new, -1)
    return jnp.concatenate([table[:, :first], resized], axis=1)


def masked_cross_entropy(
    logits: Float[Array, "B L"], truth: Float[Array, "B L"]
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """Binary cross-entropy of each known label, in nats.

    Args:
      logits: log-odds.
      truth: 1 present, 0 absent, NaN left out.

    Returns:
      Sum over the known labels, and how many there are; the gradient of what is left out is 0.
    """
    known = ~jnp.isnan(truth)
    losses = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), jnp.where(known, truth, 0.0))
    return jnp.where(known, losses, 0.0).sum(), known.sum().astype(jnp.float32)


def label_truth(labels: Float[Array, "B F"], columns: Array | tuple[int, ...], blank: str) -> Float[Array, "B L"]:
    """Chosen columns of a build's labels as truth: 1, 0, or NaN where a label is uncertain (-1), or blank and `blank` is "ignore"."""
    chosen = labels[:, jnp.asarray(columns)]
    certain = jnp.where(chosen == -1, jnp.nan, chosen)
    return jnp.where(jnp.isnan(chosen), 0.0, certain) if blank == "negative" else certain
