"""The whole pretraining model in PyTorch, written to be fast: what benchmarks compare ours with.

It is the PyTorch module of an export (`modeling_msfl`) with other blocks: one product for query, key and value, and
`scaled_dot_product_attention`. Beside it stand what an export leaves out: the masked passes, the pixel decoder, the language head, the losses. Masks
and negatives are given, so that both sides compute the same numbers; drawing them costs this side nothing, which favours it.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2] / "msfl_jax" / "export" / "pytorch"))
import modeling_msfl
import torch_losses as losses
from modeling_msfl import Msfl, TextEncoder, VisionEncoder, sincos_positions

MAX_LOG_SCALE = 4.605170185988092  # ln 100
FUSED = ("query", "key", "value")  # in this order

Batch = Mapping[str, Tensor]
LocalLoss = Callable[..., Tensor]


class Attention(nn.Module):
    """Multi-head self-attention with one product for query, key and value; `mask` [B, N, N] or [B, 1, N], True where a token sees another."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Mixes tokens [B, N, D]."""
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, None if mask is None else mask[:, None])
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(modeling_msfl.Block):
    """A block of the export with the attention above."""

    def __init__(self, kind: str, size: SimpleNamespace):
        super().__init__(kind, size)
        self.attn = Attention(size.width, size.heads)


def blocks(kind: str, size: SimpleNamespace) -> nn.ModuleList:
    """A stack of blocks."""
    return nn.ModuleList([Block(kind, size) for _ in range(size.depth)])


def take(rows: Tensor, indices: Tensor) -> Tensor:
    """The rows [B, n, D] of each example at its own indices [B, n]."""
    return rows.gather(1, indices[:, :, None].expand(-1, -1, rows.shape[2]))


class Vision(VisionEncoder):
    """The image encoder, over all patches or the visible ones."""

    def __init__(self, size: SimpleNamespace, regions: SimpleNamespace):
        super().__init__(size, regions)
        self.blocks = blocks("vit", size)

    def forward(self, pixels: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor | None, Tensor]:
        """Normalised pixels [B, H, W] to patch tokens, class token and raw region tokens; of the patches `kept` [B, n] alone, where given."""
        first, after = int(self.size.cls_token), self.regions.layer
        tokens = region_tokens = self._visible(pixels, kept)
        window = self._seen(kept)
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, window if number <= (after or number) else None)
            region_tokens = tokens if number == after else region_tokens
        tokens = self.norm(tokens)
        region_tokens = region_tokens if after else tokens
        return tokens[:, first:], tokens[:, 0] if first else None, region_tokens[:, first:]

    def cut(self, pixels: Tensor) -> Tensor:
        """Images [B, H, W] as patches [B, P, K]."""
        patch = self.size.patch_size
        cells = pixels.unflatten(2, (self.grid, patch)).unflatten(1, (self.grid, patch)).transpose(2, 3)
        return cells.flatten(3).flatten(1, 2)

    def _visible(self, pixels: Tensor, kept: Tensor | None) -> Tensor:
        """Embedded patches with positions, the class token, if any, first."""
        first, patches = int(self.size.cls_token), self.cut(pixels)
        places = self.pos_embed[:, first:]
        if kept is not None:
            patches, places = take(patches, kept), places[0][kept]
        if self.size.patch_layers == 2:
            patches = F.gelu(self.patch_hidden(patches))
        tokens = self.patch_embed(patches) + places
        if not first:
            return tokens
        cls = self.cls_token + self.pos_embed[:, :1]
        return torch.cat([cls.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)

    def _seen(self, kept: Tensor | None) -> Tensor | None:
        """Which tokens see which, where attention is windowed."""
        if self.window is None or kept is None:
            return self.window
        first = int(self.size.cls_token)
        present = F.pad(kept + first, (first, 0))
        return self.window[0][present[:, :, None], present[:, None]]


class Text(TextEncoder):
    """The report encoder."""

    def __init__(self, size: SimpleNamespace, vocab_size: int):
        super().__init__(size, vocab_size)
        self.blocks = blocks("bert", size)


class PixelDecoder(nn.Module):
    """MAE's decoder."""

    def __init__(self, size: SimpleNamespace, vision: SimpleNamespace):
        super().__init__()
        grid = vision.image_size // vision.patch_size
        self.embed = nn.Linear(vision.width, size.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, size.width))
        self.register_buffer("positions", sincos_positions(grid, size.width)[None], persistent=False)
        self.blocks = blocks("vit", SimpleNamespace(**vars(size), mlp_ratio=4.0))
        self.norm = nn.LayerNorm(size.width, eps=1e-6)
        self.prediction = nn.Linear(size.width, vision.patch_size**2)

    def forward(self, visible: Tensor, cls: Tensor | None, restore: Tensor) -> Tensor:
        """Pixels [B, P, K] of every patch from the tokens [B, n, D] of the visible ones; `restore` [B, P] says where each stands."""
        given = self.embed(visible)
        gaps = self.mask_token.to(given.dtype).expand(len(given), restore.shape[1] - given.shape[1], -1)
        tokens = take(torch.cat([given, gaps], dim=1), restore) + self.positions
        if cls is not None:
            tokens = torch.cat([self.embed(cls[:, None]).to(tokens.dtype), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens, None)
        return self.prediction(self.norm(tokens)[:, -restore.shape[1] :])


class LanguageHead(nn.Module):
    """BERT's masked-language head, on predicted positions only."""

    def __init__(self, width: int, vocab_size: int):
        super().__init__()
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, states: Tensor, words: Tensor) -> Tensor:
        """Logits [B, M, V] of states [B, M, W] over the table of words [V, W]."""
        return F.linear(self.norm(F.gelu(self.dense(states))), words, self.bias)


class Pretraining(Msfl):
    """The model with all that pretraining needs, and its loss.

    Args:
      settings: `config`, a run's configuration as nested namespaces, and `vocab_size`.
      local: the local loss; `torch_losses.local_vectorised`, or another of that signature.
    """

    def __init__(self, settings: SimpleNamespace, local: LocalLoss = losses.local_vectorised):
        super().__init__(settings)
        model, image, text = self.config.model, self.config.image, self.config.text
        if image.target_scale != 1:
            raise ValueError("this peer knows image.target_scale 1 only")
        self.local = local
        self.shares_image, self.shares_report = image.passes == "shared", text.passes == "shared"
        self.vision = Vision(model.vision, self.config.regions)
        self.text = Text(model.text, settings.vocab_size)
        self.pixel_decoder = PixelDecoder(model.pixel_decoder, model.vision)
        self.heads["language"] = LanguageHead(model.text.width, settings.vocab_size)

    def load(self, tensors: Mapping[str, Tensor]) -> "Pretraining":  # type: ignore[override]
        """Takes the tensors of the format "msfl"."""
        self.load_state_dict(fuse(tensors))
        return self

    def forward(self, batch: Batch, dtype: torch.dtype | None = None) -> Tensor:
        """The weighted sum of all four objectives, with instance matching at full weight.

        Args:
          batch: `image` uint8 [B, H, W], `token_ids`, `sentence_ids`, `study_key`, and what was drawn: `kept`, `restore`, `masked`; `masked_ids`,
            `positions`, `targets`, `token_weights`; `report`, `image_index`, `has_report`, `has_image`.
          dtype: of autocast around all but the losses other than local alignment; None leaves it off.
        """
        kind = batch["image"].device.type
        with torch.autocast(kind, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            pixels = self.pixels(batch["image"])
            masked_tokens, masked_states = self.vision(pixels, batch["kept"]), self.text(batch["masked_ids"])
            image, regions = self.project_image(*(masked_tokens if self.shares_image else self.vision(pixels)))
            states = masked_states if self.shares_report else self.text(batch["token_ids"])
            report, sentences, present = self.project_report(states, batch["token_ids"], batch["sentence_ids"])
            logits = self._match(image, report, batch)
            predicted = self.pixel_decoder(*masked_tokens[:2], batch["restore"])
            chosen = take(masked_states, batch["positions"])
            words = self.heads["language"](chosen, self.text.word_embeddings.weight)
            same = batch["study_key"][:, None] == batch["study_key"]
            # Its products are taken in the encoders' dtype, as ours are: autocast knows which of its steps need float32.
            local = self.local(regions, sentences, present, **local_options(self.config), same_study=same)
        with torch.autocast(kind, enabled=False):
            aligned = losses.global_alignment(
                image.float(), report.float(), temperature=self._temperature(), same_study=same
            )
            matched = losses.instance_matching(logits.float(), *self._pairs(batch))
            rebuilt = losses.image_reconstruction(predicted.float(), self._target(pixels), batch["masked"])
            read = losses.masked_language_modeling(words.float(), batch["targets"], batch["token_weights"])
        weights = self.config.objective
        times = 2.0 if weights.reduction == "sum" else 1.0
        aligned = times * (weights.lambda_global * aligned + weights.lambda_local * local.float())
        return aligned + weights.lambda_instance * matched + weights.lambda_modality * (rebuilt + read)

    def _temperature(self) -> Tensor:
        """Learned as a logarithm; held back at .01 in value only, as ours."""
        log_scale = self.temperature["log_scale"]
        return ((log_scale.detach() - MAX_LOG_SCALE).clamp_min(0) - log_scale).exp()

    def _match(self, image: Tensor, report: Tensor, batch: Batch) -> Tensor:
        """Logits [3B]: matched pairs, images with a wrong report, reports with a wrong image."""
        images = torch.cat([image, image, image[batch["image_index"]]])
        return self.match(images, torch.cat([report, report[batch["report"]], report]))

    def _pairs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Which of the 3B pairs match, and their weights."""
        ones = torch.ones_like(batch["has_report"], dtype=torch.float32)
        matched = torch.cat([ones, torch.zeros_like(ones), torch.zeros_like(ones)])
        return matched, torch.cat([ones, batch["has_report"].float(), batch["has_image"].float()])

    def _target(self, pixels: Tensor) -> Tensor:
        patches = self.vision.cut(pixels)
        if not self.config.image.norm_pix:
            return patches
        centred = patches - patches.mean(dim=-1, keepdim=True)
        return centred * (patches.var(dim=-1, keepdim=True) + 1e-6).rsqrt()


def local_options(config: SimpleNamespace) -> dict[str, object]:
    """The configured options of the local loss, by their names in `torch_losses`."""
    names = ("attention", "region_scale", "sentence_scale", "aggregate", "logit_scale")
    return {name: getattr(config.objective.local_alignment, name) for name in names}


def to_torch(arrays: Mapping[str, np.ndarray], device: str) -> dict[str, Tensor]:
    """Arrays of a batch on a device, whole numbers as PyTorch indexes with them, images without their channel."""
    tensors = {}
    for name, array in arrays.items():
        wide = array.astype(np.int64) if array.dtype in (np.int32, np.uint32) else array
        tensors[name] = torch.tensor(wide[..., 0] if name == "image" else wide, device=device)
    return tensors


def fuse(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with query, key and value of each block as one."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        head, _, tail = name.rpartition(".attn.")
        part, _, leaf = tail.partition(".")
        if part not in FUSED:
            result[name] = tensor
        elif part == FUSED[0]:
            result[f"{head}.attn.qkv.{leaf}"] = torch.cat([tensors[f"{head}.attn.{each}.{leaf}"] for each in FUSED])
    return result


def split(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `fuse`."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = tensor.chunk(3) if ".attn.qkv." in name else (tensor,)
        names = [name.replace(".qkv.", f".{part}.") for part in FUSED] if len(parts) == 3 else [name]
        result |= dict(zip(names, parts, strict=True))
    return result
