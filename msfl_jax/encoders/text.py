"""Report encoder: BERT's architecture, without dropout.

Parameter paths: `word_embeddings`, `position_embeddings`, `token_type_embeddings`, `embeddings_norm`, then the blocks of `layers`.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from msfl_jax.encoders import initializers
from msfl_jax.encoders.layers import BlockSpec, Stream, apply_blocks, layer_norm

TOKEN_TYPES = (
    2  # BERT's table has two rows; reports are always of type 0, the other row lets weights move in and out unchanged
)


class TextTransformer(nn.Module):
    """BERT (Devlin et al. 2019): post-norm blocks over word, position and type embeddings.

    Attributes:
      spec: the blocks, of kind "bert".
      vocab_size: rows of the word table.
      max_tokens: rows of the position table.
    """

    spec: BlockSpec
    vocab_size: int
    max_tokens: int

    @nn.compact
    def __call__(self, token_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Token states; padding (id 0) is seen by no token.

        Raises:
          ValueError: reports are longer than `max_tokens`.
        """
        if token_ids.shape[1] > self.max_tokens:
            raise ValueError(f"reports have {token_ids.shape[1]} tokens; expected at most {self.max_tokens}")
        words = self._table("word_embeddings", self.vocab_size)(token_ids)
        places = self._table("position_embeddings", self.max_tokens)(jnp.arange(token_ids.shape[1]))
        kind = self._table("token_type_embeddings", TOKEN_TYPES)(jnp.zeros((), jnp.int32))
        tokens = layer_norm("bert", self.spec.dtype, "embeddings_norm")(words + places + kind)
        return apply_blocks(self.spec, Stream(tokens, (token_ids != 0)[:, None]))[0].tokens

    def _table(self, name: str, rows: int) -> nn.Embed:
        return nn.Embed(rows, self.spec.width, embedding_init=initializers.normal, name=name)
