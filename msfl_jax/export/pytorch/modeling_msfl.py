"""The exported model in PyTorch; it needs `torch`, `safetensors` and, for texts, `tokenizers`.

In the folder of an export, or with that folder on sys.path:

    from modeling_msfl import Msfl
    model = Msfl.load()
    heat = model.ground(image, ["opacity in the left lower lobe"])

Images are uint8 arrays or tensors of grey levels, [H, W] or [B, H, W] of any size, or a list of such; none is flipped. A text is one sentence, or a
list of those of a report. B images, N texts, P regions row by row, S sentences, D and E the widths of global and local embeddings.

Parameters are named by the paths of the JAX model, as `vision.blocks.0.attn.query.weight`. All is computed in float32.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from processing_msfl import (
    Text,
    Words,
    enlarge,
    equalized,
    local_similarity,
    normalised,
    score,
    shifted,
    smooth,
    square_views,
    unit,
)
from torch import Tensor, nn
from torch.nn import functional

MIN_TEMPERATURE = 0.01
AFLOC_MARGIN = 1 / 16  # of the view's side, left out on each edge by the protocol "afloc"
RULES = ("cosine", "maco", "chexzero", "gloria")


class Attention(nn.Module):
    """Multi-head self-attention; `mask` [B, N, N] or [B, 1, N] is True where a token sees another."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Mixes tokens [B, N, D]."""
        query, key, value = (
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None], torch.finfo(logits.dtype).min)
        return self.out((logits.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and an MLP with exact GELU: "vit" normalises before both, "bert" after."""

    def __init__(self, kind: str, size: SimpleNamespace):
        super().__init__()
        self.before = kind == "vit"
        epsilon, hidden = 1e-6 if self.before else 1e-12, int(size.width * size.mlp_ratio)
        self.norm1, self.norm2 = (nn.LayerNorm(size.width, eps=epsilon) for _ in range(2))
        self.attn = Attention(size.width, size.heads)
        self.fc1, self.fc2 = nn.Linear(size.width, hidden), nn.Linear(hidden, size.width)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """One block; tokens [B, N, D]."""
        if self.before:
            tokens = tokens + self.attn(self.norm1(tokens), mask)
            return tokens + self._mlp(self.norm2(tokens))
        tokens = self.norm1(tokens + self.attn(tokens, mask))
        return self.norm2(tokens + self._mlp(tokens))

    def _mlp(self, tokens: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(tokens)))


class VisionEncoder(nn.Module):
    """ViT over grey patches, with or without a class token; blocks up to `regions.layer` may see a window only."""

    def __init__(self, size: SimpleNamespace, regions: SimpleNamespace):
        super().__init__()
        self.size, self.regions, self.grid = size, regions, size.image_size // size.patch_size
        pixels, width, tokens = size.patch_size**2, size.width, self.grid**2 + size.cls_token
        if size.patch_layers == 2:
            self.patch_hidden = nn.Linear(pixels, width)
        self.patch_embed = nn.Linear(width if size.patch_layers == 2 else pixels, width)
        if size.cls_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if size.positions == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        else:
            fixed = functional.pad(sincos_positions(self.grid, width), (0, 0, int(size.cls_token), 0))[None]
            self.register_buffer("pos_embed", fixed, persistent=False)
        window = window_mask(self.grid, regions.window_radius, size.cls_token) if regions.window_radius else None
        self.register_buffer("window", window, persistent=False)
        self.blocks = nn.ModuleList([Block("vit", size) for _ in range(size.depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Normalised pixels [B, H, W] to patch tokens [B, P, D] and class token [B, D] after the final norm, and raw region tokens [B, P, D]."""
        first, after = int(self.size.cls_token), self.regions.layer
        tokens = region_tokens = self._embed(pixels)
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, self.window if number <= (after or number) else None)
            region_tokens = tokens if number == after else region_tokens
        tokens = self.norm(tokens)
        region_tokens = region_tokens if after else tokens
        return tokens[:, first:], tokens[:, 0] if first else None, region_tokens[:, first:]

    def _embed(self, pixels: Tensor) -> Tensor:
        patch = self.size.patch_size
        cut = pixels.unflatten(2, (self.grid, patch)).unflatten(1, (self.grid, patch)).transpose(2, 3)
        tokens = cut.flatten(3).flatten(1, 2)
        if self.size.patch_layers == 2:
            tokens = functional.gelu(self.patch_hidden(tokens))
        tokens = self.patch_embed(tokens)
        if self.size.cls_token:
            tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return tokens + self.pos_embed


class TextEncoder(nn.Module):
    """BERT without dropout; id 0 is padding and seen by no token."""

    def __init__(self, size: SimpleNamespace, vocab_size: int):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, size.width)
        self.position_embeddings = nn.Embedding(size.max_tokens, size.width)
        self.token_type_embeddings = nn.Embedding(2, size.width)
        self.embeddings_norm = nn.LayerNorm(size.width, eps=1e-12)
        self.blocks = nn.ModuleList([Block("bert", size) for _ in range(size.depth)])

    def forward(self, token_ids: Tensor) -> Tensor:
        """Ids [N, T] to token states [N, T, W]."""
        places = self.position_embeddings.weight[: token_ids.shape[1]]
        tokens = self.word_embeddings(token_ids) + places + self.token_type_embeddings.weight[0]
        tokens, mask = self.embeddings_norm(tokens), (token_ids != 0)[:, None]
        for block in self.blocks:
            tokens = block(tokens, mask)
        return tokens


class MatchingHead(nn.Module):
    """Does this report belong to this image? Fusion, then two dense layers."""

    def __init__(self, embedding: int, width: int, options: SimpleNamespace):
        super().__init__()
        self.options = options
        self.hidden = nn.Linear(embedding * (2 if options.fusion in ("concat", "sum_product") else 1), width)
        self.logit = nn.Linear(width, 1)

    def forward(self, image: Tensor, report: Tensor) -> Tensor:
        """Logits [N] of pairs of embeddings [N, D]."""
        image, report = (unit(vectors) * vectors.shape[-1] ** 0.5 for vectors in (image, report))
        parts = {"sum": [image + report], "product": [image * report], "concat": [image, report]}
        parts["sum_product"] = [image + report, image * report]
        hidden = self.hidden(torch.cat(parts[self.options.fusion], dim=-1))
        activations = {"gelu": functional.gelu, "relu": functional.relu, "none": lambda x: x}
        return self.logit(activations[self.options.activation](hidden))[:, 0]


class Msfl(nn.Module):
    """Images and report sentences in common spaces: one of whole images and reports, one of regions and sentences."""

    def __init__(self, settings: SimpleNamespace):
        super().__init__()
        self.config = config = settings.config
        model = config.model
        self.aligns_locally = config.objective.lambda_local > 0  # else regions and sentences are as initialised
        self.equalizes = getattr(settings, "equalize", False)  # the images that it was trained on were
        self.folder = Path(__file__).parent
        self.words: Words | None = None
        self.vision = VisionEncoder(model.vision, config.regions)
        self.text = TextEncoder(model.text, settings.vocab_size)
        seen, read, image = model.vision.width, model.text.width, model.vision.width
        heads = {
            "image_projection": nn.Linear(image * (2 if config.image.pool == "mean_max" else 1), model.embedding_width),
            "report_projection" if config.text.pool == "mean" else "pooler": nn.Linear(read, model.embedding_width),
            "sentence_projection": nn.Linear(read, model.region_width),
            "matching": MatchingHead(model.embedding_width, model.matching_width, config.objective.instance_matching),
        }
        if config.regions.projection == "own":
            heads["region_projection"] = nn.Linear(seen, model.region_width)
        if config.regions.layer:
            heads["region_norm"] = nn.LayerNorm(seen, eps=1e-6)
        self.heads = nn.ModuleDict(heads)
        self.temperature = nn.ParameterDict({"log_scale": nn.Parameter(torch.zeros(()))})

    @classmethod
    def load(cls, folder: Path | str = Path(__file__).parent) -> "Msfl":
        """The model of an export, ready for use; its decoders, which reconstruction alone needs, are left where they are."""
        from safetensors.torch import load_file

        folder = Path(folder)
        model = cls(json.loads((folder / "config.json").read_text(), object_hook=lambda part: SimpleNamespace(**part)))
        tensors = load_file(folder / "model.safetensors")
        decoders = ("pixel_decoder.", "heads.language.")
        model.load_state_dict({name: tensor for name, tensor in tensors.items() if not name.startswith(decoders)})
        model.folder = folder
        return model.eval()

    @torch.no_grad()
    def embed_image(self, images: Any) -> Tensor:
        """Global embeddings [B, D] of images."""
        return self.encode_image(self.views(images))[0]

    @torch.no_grad()
    def regions(self, images: Any) -> Tensor:
        """Local embeddings [B, P, E] of images; without local alignment, patches as global alignment sees them, [B, P, D].

        With `grounding.shifts` n above 1, each image is looked at n x n times, fractions of a patch apart, and P is n * n times as large.
        """
        views, shifts, patch = self.views(images), self.config.grounding.shifts, self.config.model.vision.patch_size
        steps = [patch * (2 * k + 1 - shifts) // (2 * shifts) for k in range(shifts)]
        looks = torch.stack([self._look(shifted(views, down, right)) for down in steps for right in steps])
        cells = looks.unflatten(2, (self.vision.grid, self.vision.grid)).unflatten(0, (shifts, shifts))
        return cells.permute(2, 3, 0, 4, 1, 5).flatten(1, 4)

    @torch.no_grad()
    def embed_text(self, texts: Sequence[Text]) -> Tensor:
        """Global embeddings [N, D] of texts."""
        return self.encode_report(*self.tokenize(texts))[0]

    @torch.no_grad()
    def sentences(self, texts: Sequence[Text]) -> tuple[Tensor, Tensor]:
        """Local embeddings [N, S, E] of the sentences of each text, and which of them exist [N, S]."""
        _, units, present = self.encode_report(*self.tokenize(texts))
        first = int(self.config.objective.local_alignment.include_cls)  # that unit is the whole report
        return units[:, first:], present[:, first:]

    @torch.no_grad()
    def zero_shot(
        self, images: Any, findings: Mapping[str, tuple[Sequence[Text], Sequence[Text]]], rule: str | None = None
    ) -> dict[str, Tensor]:
        """Scores [B] by finding, higher is more likely present.

        Args:
          images: any number that fits into memory at once.
          findings: a pair of lists by name: texts that say that it is there, and texts that say that it is not.
          rule: one of RULES; None takes the run's own. "maco" gives log-odds, "chexzero" probabilities, the others differences of cosines.
        """
        if rule not in (None, *RULES):
            raise ValueError(f"rule is {rule!r}; expected one of {', '.join(RULES)}")
        own = self.config.zero_shot.rule
        chosen: str = rule or ("cosine" if own == "gloria" and not self.aligns_locally else own)
        if chosen == "gloria" and not self.aligns_locally:
            raise ValueError("rule 'gloria' needs local alignment, which this model was trained without")
        embedding, regions = self.encode_image(self.views(images))
        found = {}
        for name, (positive, negative) in findings.items():
            present, absent = self.embed_text(positive), self.embed_text(negative)
            found[name] = score(embedding, present, absent, "cosine" if chosen == "gloria" else chosen)
            if chosen == "gloria":
                scale = self.config.objective.local_alignment.region_scale
                local = local_similarity(regions, *self.sentences(positive), region_scale=scale)
                found[name] = 0.5 * (found[name] + local.max(dim=1).values)
        return found

    @torch.no_grad()
    def ground(self, image: Any, phrases: Sequence[Text]) -> Tensor:
        """Heat [K, H, W] of K phrases in the pixels of one image [H, W]; NaN where the model did not look.

        The run's own protocol and smoothing; a phrase of several sentences is their mean.
        """
        options, (height, width) = self.config.grounding, torch.as_tensor(image).shape
        regions, asked = self.regions(image)[0], self._phrase_embeddings(phrases)
        if options.protocol == "biovil":  # the others take raw products
            regions, asked = (
                vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12) for vectors in (regions, asked)
            )
        maps = (asked @ regions.T).unflatten(1, (round(len(regions) ** 0.5), -1)).cpu()
        maps = smooth(maps, options.sigma * options.shifts)
        return enlarge(
            maps, (height, width), self.config.data.fit, AFLOC_MARGIN if options.protocol == "afloc" else 0.0
        )

    def match(self, image_embedding: Tensor, report_embedding: Tensor) -> Tensor:
        """Logits [N] that report i belongs to image i."""
        return self.heads["matching"](image_embedding, report_embedding)

    def cosine_temperature(self) -> float:
        """What global alignment divides cosines by."""
        return max(math.exp(-self.temperature["log_scale"].item()), MIN_TEMPERATURE)

    def views(self, images: Any) -> Tensor:
        """Images as the model sees them: uint8 [B, size, size]; of that size they are cut no more."""
        if isinstance(images, list | tuple):
            return torch.cat([self.views(image) for image in images])
        images, size = torch.as_tensor(images), self.config.model.vision.image_size
        if images.dtype != torch.uint8 or images.ndim not in (2, 3):
            raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; expected uint8 [H, W] or [B, H, W]")
        images = images if images.ndim == 3 else images[None]
        if self.equalizes and len(images):
            images = torch.stack([equalized(image) for image in images])
        return square_views(images, size, self.config.data.fit).to(self._device)

    def tokenize(self, texts: Sequence[Text]) -> tuple[Tensor, Tensor]:
        """Token ids [N, T] and the sentence of each token [N, T]."""
        if self.words is None:
            limits = self.config.model.text.max_tokens, self.config.text.max_sentences
            self.words = Words(self.folder / "text" / "tokenizer.json", *limits)
        token_ids, sentence_ids = self.words(texts)
        return token_ids.to(self._device), sentence_ids.to(self._device)

    def encode_image(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Image embeddings [B, D] and region embeddings [B, P, E] of views; gradients flow."""
        return self.project_image(*self.vision(self.pixels(views)))

    def project_image(self, patches: Tensor, cls: Tensor | None, regions: Tensor) -> tuple[Tensor, Tensor]:
        """As `encode_image`, of the tokens of patches [B, P, W], of the class and of regions [B, P, W]."""
        embedding = self.heads["image_projection"](self._pool(patches, cls))
        regions = self.heads["region_norm"](regions) if self.config.regions.layer else regions
        own = self.config.regions.projection == "own"
        return embedding, self.heads["region_projection" if own else "image_projection"](regions)

    def encode_report(self, token_ids: Tensor, sentence_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Report embeddings [N, D], those of units [N, S, E] (sentences; unit 0 is the report with `include_cls`), which exist [N, S]."""
        return self.project_report(self.text(token_ids), token_ids, sentence_ids)

    def project_report(self, states: Tensor, token_ids: Tensor, sentence_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `encode_report`, of token states [N, T, W] that are there already."""
        pool = self.config.text.pool
        units, present = self._sentence_units(states, token_ids, sentence_ids)
        if self.config.objective.local_alignment.include_cls:
            units = torch.cat([states[:, :1], units], dim=1)
            present = torch.cat([token_ids[:, :1] != 0, present], dim=1)
        if pool == "mean":
            words = (token_ids != 0)[..., None]
            report = self.heads["report_projection"]((states * words).sum(dim=1) / words.sum(dim=1).clamp_min(1))
        else:
            report = self.heads["pooler"](states[:, 0])
        return report.tanh() if pool == "cls" else report, self.heads["sentence_projection"](units), present

    def pixels(self, views: Tensor) -> Tensor:
        """Normalised pixels [B, H, W] of views; the models of `vision/` and `timm_vit.safetensors` see them three times, as colours."""
        return normalised(views, self.config.image)

    def _pool(self, patches: Tensor, cls: Tensor | None) -> Tensor:
        if self.config.image.pool == "cls" and cls is not None:
            return cls
        mean = patches.mean(dim=1)
        return mean if self.config.image.pool == "mean" else torch.cat([mean, patches.amax(dim=1)], dim=-1)

    def _look(self, views: Tensor) -> Tensor:
        if self.aligns_locally:
            return self.encode_image(views)[1]
        alone = self.vision(self.pixels(views))[0].flatten(0, 1)[:, None]
        return self.heads["image_projection"](self._pool(alone, alone[:, 0])).unflatten(0, (len(views), -1))

    def _sentence_units(self, states: Tensor, token_ids: Tensor, sentence_ids: Tensor) -> tuple[Tensor, Tensor]:
        count, pool = self.config.text.max_sentences, self.config.text.sentence_pool
        member = sentence_ids[:, None] == torch.arange(1, count + 1, device=token_ids.device)[:, None]
        present = member.any(dim=-1)
        if pool == "separate":  # each sentence read alone, behind the report's [CLS], whose state it becomes
            order = (~member).int().argsort(dim=-1, stable=True)
            alone = torch.where(member, token_ids[:, None], 0).gather(2, order)
            alone = torch.cat([token_ids[:, None, :1].expand(-1, count, -1), alone[..., :-1]], dim=-1)
            return self.text(alone.flatten(0, 1))[:, 0].unflatten(0, (-1, count)), present
        total = member.to(states.dtype) @ states
        return total / member.sum(dim=-1, keepdim=True).clamp_min(1) if pool == "mean" else total, present

    def _phrase_embeddings(self, phrases: Sequence[Text]) -> Tensor:
        units, present = self.sentences(phrases)
        if not present.any(dim=1).all():
            raise ValueError("a phrase has no word; expected sentences such as 'opacity in the left lung'")
        if not self.aligns_locally:
            return self.embed_text(phrases)
        return (units * present[..., None]).sum(dim=1) / present.sum(dim=1, keepdim=True)

    @property
    def _device(self) -> torch.device:
        return self.vision.patch_embed.weight.device


def sincos_positions(grid: int, width: int) -> Tensor:
    """Fixed codes [P, D] of patch positions, as MAE's: the first half of the width codes the column, the second the row."""
    place = torch.arange(grid, dtype=torch.float64)
    angle = place[:, None] * 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    code = torch.cat([angle.sin(), angle.cos()], dim=1)
    return torch.cat([code.repeat(grid, 1), code.repeat_interleave(grid, dim=0)], dim=1).float()


def window_mask(grid: int, radius: int, class_token: bool) -> Tensor:
    """Which tokens see which [1, N, N]: patches at most `radius` rows and columns away; a class token sees all and is seen by no patch."""
    row, column = torch.arange(grid**2) // grid, torch.arange(grid**2) % grid
    near = ((row[:, None] - row).abs() <= radius) & ((column[:, None] - column).abs() <= radius)
    if class_token:
        near = functional.pad(near, (1, 0, 1, 0))
        near[0] = True
    return near[None]
