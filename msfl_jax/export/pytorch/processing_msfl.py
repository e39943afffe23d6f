"""What stands before and behind the networks of `modeling_msfl`: square views, token ids, scores and heat-maps, as plain functions."""

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import functional

_RESERVED = re.compile(r"\[(?:PAD|UNK|CLS|SEP|MASK)\]")  # spelled out in a text they are no special tokens
_UNDERSCORES = re.compile(r"_{2,}")  # what de-identification left
# What may end a sentence within a text, or begin an item of a list: more than does, so that no second sentence passes for a part of the first.
_SECOND = re.compile(
    r"""[.?!]["')\]\u201d\u2019]*(?:\s+\S|[A-Z][a-z]|\d{1,2}[.)]\s)  # a stop, and something behind it
    |\n\s*\S                                                     # another line
    |(?<!\S)(?:\(?\d{1,2}[.)](?=\s|[A-Z])|[-*\u2022]\s)         # a number or a bullet""",
    re.VERBOSE,
)
_WORD = re.compile(r"\w")

VARIANCE_FLOOR = 1e-6  # an image of one grey value becomes 0 everywhere

Text = str | Sequence[str]


class Words:
    """Texts as token ids, by the `tokenizer.json` of an export."""

    def __init__(self, file: Path, max_tokens: int, max_sentences: int):
        from tokenizers import Tokenizer

        self.backend, self.length, self.most = Tokenizer.from_file(str(file)), max_tokens, max_sentences
        self.backend.no_padding()
        self.backend.no_truncation()

    def __call__(self, texts: Sequence[Text]) -> tuple[Tensor, Tensor]:
        """Token ids [N, T] and the sentence of each token [N, T]: 1 to S, 0 for special tokens and padding."""
        if isinstance(texts, str):
            raise ValueError("found one string; expected a list of texts")
        rows = [self._assemble(one_sentence(text) if isinstance(text, str) else text) for text in texts]
        return torch.tensor([row[0] for row in rows]), torch.tensor([row[1] for row in rows])

    def _assemble(self, sentences: Sequence[str]) -> tuple[list[int], list[int]]:
        """[CLS] sentences [SEP] padding; a sentence that does not fit is left out, and the first is cut where none would fit."""
        encoded = [words for sentence in sentences if (words := self._encode(sentence))]
        if encoded and min(map(len, encoded)) > self.length - 2:
            encoded = [encoded[0][: self.length - 2]]
        tokens, owners, kept = [self._special("[CLS]")], [0], 0
        for words in encoded:
            if kept < self.most and len(tokens) + len(words) < self.length:
                kept += 1
                tokens, owners = tokens + words, owners + [kept] * len(words)
        padding = self.length - len(tokens) - 1
        return [*tokens, self._special("[SEP]"), *[0] * padding], owners + [0] * (padding + 1)

    def _special(self, token: str) -> int:
        found = self.backend.token_to_id(token)
        if found is None:
            raise ValueError(f"tokenizer.json has no {token}")
        return found

    def _encode(self, sentence: str) -> list[int]:
        clean = " ".join(_UNDERSCORES.sub("[DEID]", sentence).split())
        clean = _RESERVED.sub(lambda match: match[0].lower(), clean)
        return self.backend.encode(clean, add_special_tokens=False).ids


def one_sentence(text: str) -> list[str]:
    """The text as a list of one sentence, or of none where it has no word.

    Raises:
      ValueError: it may be several. The library splits texts by rules for radiology reports, which stay there; here the caller says what the
        sentences are, also that "approx. 3 cm" is one: ["approx. 3 cm"].
    """
    if _SECOND.search(text.lstrip()):
        raise ValueError(
            "a text may hold several sentences; give each text as the list of its sentences: [['First.', 'Second.']]"
        )
    return [text] if _WORD.search(text) else []


def unit(vectors: Tensor) -> Tensor:
    """Vectors scaled to length 1; a zero vector stays zero."""
    length = vectors.norm(dim=-1, keepdim=True)
    return vectors / torch.where(length > 0, length, 1)


def score(image: Tensor, positive: Tensor, negative: Tensor, rule: str) -> Tensor:
    """Scores [B] by the embeddings of prompts [A, D] and [C, D], in float64."""
    image, positive, negative = (vectors.double() for vectors in (image, positive, negative))
    if rule == "maco":
        return image @ (positive.mean(dim=0) - negative.mean(dim=0))
    image, positive, negative = (functional.normalize(vectors, dim=-1) for vectors in (image, positive, negative))
    if rule == "chexzero":
        return ((image @ positive.T)[:, :, None] - (image @ negative.T)[:, None]).sigmoid().mean(dim=(1, 2))
    sides = (functional.normalize(side.mean(dim=0), dim=0) for side in (positive, negative))
    return image @ (next(sides) - next(sides))


def local_similarity(regions: Tensor, sentences: Tensor, present: Tensor, *, region_scale: float) -> Tensor:
    """Cosine [B, N] of each text's sentence with the regions that it attends to; of several sentences, the best."""
    regions, sentences = regions.double(), functional.normalize(sentences.double(), dim=-1)
    products = torch.einsum("bpe,nse->bnsp", regions, sentences)
    cosines = products / regions.norm(dim=-1).clamp_min(1e-12)[:, None, None]
    attention = (region_scale * cosines).softmax(dim=-1)
    contexts = torch.einsum("bnsp,bpe->bnse", attention, regions).norm(dim=-1).clamp_min(1e-12)
    similarity = (attention * products).sum(dim=-1) / contexts
    best = similarity.masked_fill(~present, -torch.inf).amax(dim=-1)
    return torch.where(present.any(dim=-1), best, 0.0)


def shifted(views: Tensor, down: int, right: int) -> Tensor:
    """Views `down` and `right` pixels further on in the image; edges are repeated."""
    rows, columns = (
        (torch.arange(side, device=views.device) + step).clamp(0, side - 1)
        for side, step in zip(views.shape[1:], (down, right), strict=True)
    )
    return views[:, rows][:, :, columns]


def equalized(image: Tensor) -> Tensor:
    """Grey levels uint8 [H, W] spread so that each share of the range holds as many pixels, to the last level as OpenCV does it."""
    counts = torch.bincount(image.flatten().long().cpu(), minlength=256)
    darkest = int(counts.nonzero()[0])
    others = image.numel() - int(counts[darkest])
    if not others:
        return image
    scale = torch.tensor(255.0) / others
    table = ((counts.cumsum(0) - counts[darkest]) * scale).round().clamp(0, 255).to(torch.uint8)
    return table.to(image.device)[image.long()]


def normalised(views: Tensor, options: SimpleNamespace) -> Tensor:
    """Grey levels [B, H, W] as the model sees them, by the run's `image` settings."""
    pixels = views.float() / 255.0
    if options.normalisation == "fixed":
        return (pixels - options.mean) / options.deviation
    centred = pixels - pixels.mean(dim=(1, 2), keepdim=True)
    return centred * (centred.square().mean(dim=(1, 2), keepdim=True) + VARIANCE_FLOOR).rsqrt()


def square_views(images: Tensor, size: int, fit: str) -> Tensor:
    """Images [B, H, W] as squares of `size`: "crop" takes the centred square, "pad" adds black, "squash" stretches.

    Shrunk by area averaging, enlarged by cubic interpolation, as the images that the model was trained on; OpenCV may round few pixels to the next
    grey level, and "squash" of an image that is smaller than the view along one side only is coarser than its own.
    """
    height, width = images.shape[1:]
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        images = images[:, top : top + side, left : left + side]
    elif fit == "pad":
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        images = functional.pad(images, (left, side - width - left, top, side - height - top))
    height, width = images.shape[1:]
    if (height, width) == (size, size):
        return images
    resample = cubic_matrix if height < size and width < size else area_matrix
    pixels = resample(height, size) @ images.double() @ resample(width, size).T
    halved = (height, width) == (2 * size, 2 * size)  # where OpenCV rounds halves up, elsewhere to even numbers
    pixels = (pixels + 0.5).floor() if halved else pixels.round()
    return pixels.clamp(0, 255).to(torch.uint8)


def area_matrix(length: int, size: int) -> Tensor:
    """Row i holds the share of each input in the i-th of `size` equal parts of `length`."""
    edges, inputs = (
        torch.arange(size + 1, dtype=torch.float64) * length / size,
        torch.arange(length, dtype=torch.float64),
    )
    overlap = torch.minimum(edges[1:, None], inputs + 1) - torch.maximum(edges[:-1, None], inputs)
    return overlap.clamp_min(0) * size / length


def cubic_matrix(length: int, size: int) -> Tensor:
    """Row i holds the weights of Keys' cubic kernel with a = -.75, edges repeated."""
    centre = (torch.arange(size, dtype=torch.float64) + 0.5) * length / size - 0.5
    inputs = torch.arange(-2, length + 2, dtype=torch.float64)
    far, a = (centre[:, None] - inputs).abs(), -0.75
    near, beyond = (a + 2) * far**3 - (a + 3) * far**2 + 1, a * (far**3 - 5 * far**2 + 8 * far - 4)
    weights = torch.where(far <= 1, near, torch.where(far < 2, beyond, 0.0))
    matrix = torch.zeros(size, length, dtype=torch.float64)
    return matrix.index_add(1, inputs.long().clamp(0, length - 1), weights)


def linear_matrix(length: int, size: int) -> Tensor:
    """Row i holds the weights of the two inputs around the centre of output i, edges repeated."""
    centre = ((torch.arange(size, dtype=torch.float64) + 0.5) * length / size - 0.5).clamp(0, length - 1)
    return (1 - (centre[:, None] - torch.arange(length)).abs()).clamp_min(0)


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing on the grid, cut off at 4 sigma and reflected at the edges."""
    if sigma == 0:
        return maps
    size, radius = maps.shape[-1], int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    place = (torch.arange(size)[:, None] + offsets) % (2 * size)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix.scatter_add_(1, torch.minimum(place, 2 * size - 1 - place), (kernel / kernel.sum()).expand(size, -1))
    return (matrix @ maps.double() @ matrix.T).to(maps.dtype)


def enlarge(maps: Tensor, size: tuple[int, int], fit: str, margin: float) -> Tensor:
    """Maps [K, G, G] in the pixels [K, H, W] of the image that was looked at; NaN where it was not, and in the margin."""
    side = {"crop": min(size), "pad": max(size)}.get(fit)
    lengths = size if side is None else (side, side)
    heat = linear_matrix(maps.shape[1], lengths[0]) @ maps.double() @ linear_matrix(maps.shape[2], lengths[1]).T
    pixels, shown, source = torch.full((len(maps), *size), torch.nan), [], []
    for length, whole in zip(lengths, size, strict=True):
        start, edge = (whole - length) // 2, round(length * margin)
        first, last = max(start + edge, 0), min(start + length - edge, whole)
        shown, source = [*shown, slice(first, last)], [*source, slice(first - start, last - start)]
    pixels[:, shown[0], shown[1]] = heat[:, source[0], source[1]].float()
    return pixels
