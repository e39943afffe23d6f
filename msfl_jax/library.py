"""A trained model in a program: `msfl_jax.load(path)` and what can be asked of it.

    >>> import msfl_jax
    >>> model = msfl_jax.load("runs/b16")
    >>> model.embed_image("radiograph.png").shape
    (1, 16)
    >>> model.embed_text(["No edema.", "The heart is normal. No pneumothorax."]).shape
    (2, 16)
    >>> prompts = {"Edema": msfl_jax.Prompts("Edema is seen.", ["No edema.", "There is no edema."])}
    >>> scores = model.zero_shot(["radiograph.png", "another.jpg"], prompts)
    >>> scores["Edema"].shape
    (2,)
    >>> model.ground("radiograph.png", "edema").shape
    (64, 96)

Everything goes the way of `msfl eval` and `msfl ground`, so that numbers equal theirs.
"""

import dataclasses
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Float32, UInt8

from input_pipeline.errors import UserError
from input_pipeline.image_inputs import ImageInput, as_list, read_numbered
from input_pipeline.images import evaluation_view
from msfl_jax.export.layout import is_export, open_export
from msfl_jax.model import Params
from msfl_jax.parallel.mesh import AXES
from msfl_jax.parallel.sharding import sharded_shapes
from msfl_jax.tasks.grounding import ground_phrases
from msfl_jax.tasks.prompts import Prompts
from msfl_jax.tasks.run import (
    DECODERS,
    Run,
    encode_images,
    encode_texts,
    fixed_batches,
    open_run,
    prepare_image,
    to_host,
    without,
)
from msfl_jax.tasks.zero_shot import choose_rule, encode_prompts, score_batch
from msfl_jax.train.checkpoint import DIRECTORY

__all__ = ["LoadedModel", "Prompts", "load"]

_THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, eq=False, repr=False)
class LoadedModel:
    """A trained model, made by `load`.

    Images are single ones or lists of them, each a path (str or Path) or the bytes of a JPEG, PNG or DICOM file, a PIL image, or a NumPy array
    (uint8, or 16 bits scaled from their minimum and maximum; [H, W], or three channels). They are cut and normalised as the run's evaluation does
    it, and equalised where `msfl data build --equalize` made the training data. MIMIC-CXR-JPG and CheXpert are released equalised: for a model of
    those, equalise images of other origin first. Lists are worked off in batches of a few fixed sizes: nothing is compiled again for another number
    of images.

    Errors are one line of `input_pipeline.errors`: UserError (no such file, no image, a text without a word), DataError (a damaged image).

    Attributes:
      run: configuration, parameters (without decoders, which only reconstruct), tokenizer, step and caveats.
    """

    run: Run

    def __repr__(self) -> str:
        """The run and its step; not its parameters."""
        return f"LoadedModel({str(self.run.directory)!r}, step {self.run.step})"

    def embed_image(self, images: ImageInput | Sequence[ImageInput]) -> Float32[np.ndarray, "N D"]:
        """Image embeddings, of any norm, one row per image; a single image has one row.

        Their cosine with those of `embed_text` says how well image and text agree.
        """
        rows = [
            to_host(encode_images(self.run, views, batch_size=size)[0])[: len(views)]
            for views, size in self._views(images)
        ]
        return np.concatenate(rows)

    def embed_text(self, texts: str | Sequence[str]) -> Float32[np.ndarray, "N D"]:
        """Report embeddings, of any norm, one row per text; a single text has one row.

        Args:
          texts: phrases or reports, split into sentences and cut to the model's length as in training. Of a report with headers, models see its
            findings and impression alone: `" ".join(input_pipeline.sections.report_sentences(report))`.

        Raises:
          UserError: a text has no word.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        embedded = encode_texts(self.run, texts)
        usable = embedded.sentence_mask.any(axis=1)
        if not usable.all():
            raise UserError(
                f"text {int(np.argmin(usable)) + 1} of {len(texts)} has no word; expected a sentence or a report"
            )
        return embedded.report_embedding

    def zero_shot(
        self,
        images: ImageInput | Sequence[ImageInput],
        prompts: Mapping[str, Prompts],
        *,
        rule: str | None = None,
    ) -> dict[str, Float[np.ndarray, "N"]]:
        """Scores of images for each finding, higher is more likely present; they are no probabilities.

        Args:
          images: give many at once: the prompts are embedded anew in every call.
          prompts: by finding, `Prompts(positive, negative)`; `msfl_jax.tasks.prompts.load_prompts("nih")` reads a shipped set.
          rule: cosine, maco, chexzero or gloria, see `msfl_jax.tasks.zero_shot.score`; None takes the run's own, as `msfl eval zero-shot` does.

        Raises:
          UserError: no finding, a prompt has no word, there is no such rule, or it needs local alignment, which the model was trained without.
        """
        if not prompts:
            raise UserError("prompts: found no finding; expected {finding: Prompts(positive, negative)}")
        chosen, texts = choose_rule(self.run, rule), encode_prompts(self.run, prompts)
        rows = [
            score_batch(self.run, texts, chosen, size, views)[: len(views), 0] for views, size in self._views(images)
        ]
        return dict(zip(prompts, np.concatenate(rows).T, strict=True))

    @overload
    def ground(
        self, image: ImageInput, phrase: str, *, protocol: str | None = None, sigma: float | None = None
    ) -> Float[np.ndarray, "H W"]: ...

    @overload
    def ground(
        self, image: ImageInput, phrase: Sequence[str], *, protocol: str | None = None, sigma: float | None = None
    ) -> Float[np.ndarray, "K H W"]: ...

    def ground(
        self, image: ImageInput, phrase: str | Sequence[str], *, protocol: str | None = None, sigma: float | None = None
    ) -> Float[np.ndarray, "*k H W"]:
        """Where in an image a phrase is seen: a heat-map in the image's own pixels, NaN where the model did not look.

        A model that was trained without local alignment has no region embeddings: then each patch is seen as if it were the image and the phrase
        read as a report, as in `msfl ground`, and a warning says so.

        Args:
          image: one image.
          phrase: a sentence; or several as a list, which look at the image once and give a map each.
          protocol: biovil (cosines), maco or afloc (raw products), see `msfl_jax.tasks.grounding_protocol`; None takes the run's own.
          sigma: smoothing in patches; None takes the run's own.

        Raises:
          UserError: a phrase has no word, or there is no such protocol.
        """
        if not self.run.aligns_locally:
            warnings.warn(
                "this model was trained without local alignment: the map compares patches, each seen as if it were the image, with the phrase",
                stacklevel=2,
            )
        phrases = [phrase] if isinstance(phrase, str) else list(phrase)
        seen = prepare_image(self.run, read_numbered(image, 1, 1))
        maps = ground_phrases(self.run, seen, phrases, protocol=protocol, sigma=sigma)
        return maps[0] if isinstance(phrase, str) else maps

    def _views(
        self, images: ImageInput | Sequence[ImageInput]
    ) -> Iterator[tuple[UInt8[np.ndarray, "b size size 1"], int]]:
        """Batches of square views and the sizes to which they are padded; of no image an empty one."""
        several = as_list(images)
        size, fit, count = self.run.config.model.vision.image_size, self.run.config.data.fit, len(several)

        def view(number: int) -> UInt8[np.ndarray, "size size"]:
            image = read_numbered(several[number], number + 1, count)
            return evaluation_view(prepare_image(self.run, image), size, fit)

        with ThreadPoolExecutor(_THREADS) as pool:
            for start, end, rows in fixed_batches(count):
                views = np.zeros((end - start, size, size, 1), np.uint8)
                for row, pixels in enumerate(pool.map(view, range(start, end))):
                    views[row, ..., 0] = pixels
                yield views, rows


def load(path: Path | str, *, step: int | str | None = None, mesh: Mesh | None = None) -> LoadedModel:
    """Loads a trained model; reads the parameters that it is used with, without optimizer and decoders, and compiles nothing yet.

    Args:
      path: a run directory of `msfl pretrain` or `msfl demo`, one of its checkpoints, `RUN/checkpoints/STEP`, or a folder of `msfl export`.
      step: of a run directory: a step with a checkpoint, "best", or None for the latest.
      mesh: over which the parameters are sharded, with axes data, fsdp and tensor (`msfl_jax.parallel.mesh.make_mesh`); batches are then spread over
        data and fsdp. None takes the first device of this process.

    Raises:
      UserError: no run directory, no tokenizer in it, or a mesh with other axes.
      CheckpointError: the checkpoint is missing, damaged or of another configuration, or the tokenizer is not the one it was trained with.
    """
    if mesh is not None and set(mesh.axis_names) != set(AXES):
        raise UserError(f"mesh: found axes {', '.join(map(str, mesh.axis_names))}; expected {', '.join(AXES)}")
    path = Path(path)
    if path.absolute().parent.name == DIRECTORY and path.name.isdigit():
        if step is not None:
            raise UserError(f"{path}: is a step itself; found step '{step}' as well; expected one of them")
        path, step = path.absolute().parent.parent, int(path.name)
    if not is_export(path):
        return LoadedModel(open_run(path, step=step, mesh=mesh))
    if step is not None:
        raise UserError(f"{path}: is an export, of one step; found step '{step}' as well; expected none")
    run = open_export(path)
    return LoadedModel(dataclasses.replace(run, params=_place(without(run.params, DECODERS), mesh)))


def _place(params: Params, mesh: Mesh | None) -> Params:
    """Arrays of this host on the first device, or sharded over a mesh as in training."""
    if mesh is None:
        return jax.device_put(params, jax.local_devices()[0])
    return jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), params, sharded_shapes(params, mesh))
