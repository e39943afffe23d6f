"""The image encoder of a pretrained model with a decoder of masks: images in, logits of background and foreground per pixel out.

Parameter paths: `vision` as in pretraining without `norm` (the decoder reads raw tokens of four blocks), `decoder` as in
`msfl_jax.encoders.segmentation_decoders`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Key, UInt8

from input_pipeline.errors import UserError
from msfl_jax import encoders, losses
from msfl_jax.classifier import finetuned_vision, see, transfer_vision
from msfl_jax.config import Config
from msfl_jax.encoders import Masks, SegmentationDecoder
from msfl_jax.model import Params
from msfl_jax.objective import Tally
from msfl_jax.segmentation_config import SegmentationConfig, SegmentationHeadConfig


@dataclasses.dataclass(frozen=True)
class Segmenter:
    """A model of masks; static, its parameters are a plain nested dictionary.

    Attributes:
      config: of the pretraining run, which says how the encoder is made and how pixels are normalised.
      image_size: side of the images in pixels.
      layers: blocks that the decoder reads, counted from 1.
      head: kind and width of the decoder.
      drop_path: of the last block, while training.
    """

    config: Config
    image_size: int
    layers: tuple[int, int, int, int]
    head: SegmentationHeadConfig
    drop_path: float = 0.0

    @classmethod
    def create(cls, config: SegmentationConfig, pretraining: Config) -> "Segmenter":
        """The segmenter of a configuration on the encoder of a pretraining run.

        Raises:
          UserError: a layer is no block of that encoder.
        """
        depth, layers = pretraining.model.vision.depth, config.encoder.layers
        if max(layers) > depth:
            raise UserError(f"config: 'encoder.layers' is {layers}; expected blocks 1 to {depth} of this encoder")
        size = config.encoder.image_size or pretraining.model.vision.image_size
        chosen = layers if any(layers) else encoders.spread_layers(depth)
        return cls(pretraining, size, chosen, config.head, config.encoder.drop_path)

    @property
    def vision(self) -> encoders.VisionTransformer:
        """The encoder, whose parameters are `params["vision"]`."""
        whole = finetuned_vision(self.config, image_size=self.image_size, drop_path=self.drop_path, final_norm=False)
        return whole.clone(taps=self.layers)

    @property
    def decoder(self) -> SegmentationDecoder:
        """The decoder, whose parameters are `params["decoder"]`."""
        return SegmentationDecoder(self.head.kind, self.head.channels, self.config.model.compute_dtype)

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Fresh parameters: an encoder as pretraining starts from, and a decoder."""
        first, second = jax.random.split(key)
        size, patches = self.config.model.vision, self.vision.grid**2
        tokens = (jnp.zeros((1, patches, size.width)),) * len(self.layers)
        return {
            "vision": self.vision.init(first, jnp.zeros((1, patches, size.patch_size**2)))["params"],
            "decoder": self.decoder.init(second, tokens)["params"],
        }

    def initial(self, key: Key[Array, ""], pretrained: Params | None) -> dict[str, Any]:
        """Parameters before fine-tuning: those of `init`, with the encoder of a pretrained model (all of its parameters) where one is given."""
        params = self.init(key)
        if pretrained is None:
            return params
        return params | {"vision": transfer_vision(pretrained["vision"], params["vision"], self.vision.class_token)}

    def masks(self, params: Params, image: UInt8[Array, "B H W 1"], key: Key[Array, ""] | None = None) -> Masks:
        """Logits at the decoder's resolutions; `key` draws what drop-path leaves out, None leaves nothing out.

        Raises:
          ValueError: images have another size than the segmenter's.
        """
        tokens = see(self.config, self.vision, params, image, self.image_size, key)
        found: Any = self.decoder.apply({"params": params["decoder"]}, tokens.layers)
        return found

    def margin(self, params: Params, image: UInt8[Array, "B H W 1"]) -> Float32[Array, "B H W"]:
        """Logit of the foreground minus that of the background at every pixel of the view; above 0 the foreground is the larger (argmax)."""
        logits = self.masks(params, image).logits
        return encoders.enlarge(logits[..., 1:] - logits[..., :1], image.shape[1:3])[..., 0]

    def loss(
        self, params: Params, batch: Mapping[str, Array], key: Key[Array, ""] | None = None
    ) -> tuple[Float32[Array, ""], dict[str, Tally]]:
        """Focal and dice of the decoder and, if there is one, the auxiliary head, at the resolution of the masks.

        Args:
          params: as `init` makes them.
          batch: `image` uint8 [B, H, W, 1] and `mask` bool [B, H, W].
          key: of the step.

        Returns:
          The weighted sum, and its two parts by name.
        """
        found, mask, head = self.masks(params, batch["image"], key), batch["mask"], self.head
        main = _at_pixels(found.logits, mask, head.focal_weight, head.dice_weight)
        tallies = {"loss/masks": Tally(main, jnp.float32(1.0))}
        if found.auxiliary is None:
            return main, tallies
        weights = (head.auxiliary_focal_weight, head.auxiliary_dice_weight)
        auxiliary = _at_pixels(found.auxiliary, mask, *weights)
        return main + auxiliary, tallies | {"loss/auxiliary": Tally(auxiliary, jnp.float32(1.0))}


def _at_pixels(
    logits: Float32[Array, "B h w 2"], mask: Bool[Array, "B H W"], focal_weight: float, dice_weight: float
) -> Float32[Array, ""]:
    enlarged = encoders.enlarge(logits, mask.shape[1:3])
    return losses.segmentation(enlarged, mask, focal_weight=focal_weight, dice_weight=dice_weight)
