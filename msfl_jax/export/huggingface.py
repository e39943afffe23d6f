"""Folders that transformers' own models load, `vision/`, `text/` and `mae/`, and the file that timm and MAE's fine-tuning code load."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from input_pipeline.errors import UserError
from msfl_jax.config import Config
from msfl_jax.encoders.text import TOKEN_TYPES
from msfl_jax.export.layout import LANGUAGE, MAE, TEXT, TIMM, VISION, WEIGHTS, write_tensors
from msfl_jax.export.mapping import to_format
from msfl_jax.tasks.run import Run

PREPROCESSOR = "preprocessor_config.json"


def write_folders(run: Run, folder: Path) -> list[str]:
    """Writes what other libraries can load of a run's parts; returns a line for each that cannot be, and for what is to be done to images beside it.

    Args:
      run: with the parts that are exported.
      folder: of the export.
    """
    writers: dict[str, Callable[[Run, Path], None]] = {VISION: _vision, TEXT: _text, TIMM: _timm}
    writers |= {MAE: _mae} if "pixel_decoder" in run.params else {}
    refused = []
    for name, write in writers.items():
        try:
            write(run, folder / name)
        except UserError as error:
            refused.append(f"{name} is left out: {error}")
    _write_json(folder / PREPROCESSOR, preprocessing(run.config))
    return refused + _left_to_the_user(run)


def preprocessing(config: Config) -> dict[str, Any]:
    """Settings of an image processor of transformers, with the same mean and deviation for all three colours.

    For `fit` "crop" it is CLIP's, which takes the centred square of the shorter side as we do, else ViT's, which stretches images to a square. Both
    resize by interpolation where we average areas. What neither can do is said by `_left_to_the_user`, and by `normalisation` and `fit`.
    """
    options, side = config.image, config.model.vision.image_size
    fixed, square = options.normalisation == "fixed", {"height": side, "width": side}
    cropped = {"size": {"shortest_edge": side}, "do_center_crop": True, "crop_size": square}
    crops = config.data.fit == "crop"
    return {
        "image_processor_type": "CLIPImageProcessor" if crops else "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        **(cropped if crops else {"size": square}),
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": fixed,
        "image_mean": [options.mean if fixed else 0.0] * 3,
        "image_std": [options.deviation if fixed else 1.0] * 3,
        "normalisation": options.normalisation,
        "fit": config.data.fit,
    }


def _left_to_the_user(run: Run) -> list[str]:
    """What an image processor of transformers cannot do, a line each; our own module and `msfl_jax.load` do it."""
    needed = {
        "equalise histograms: do it first": run.equalize,
        "pad images to a square: add equal black margins first": run.config.data.fit == "pad",
        "normalise an image by its own mean and deviation: do it last": run.config.image.normalisation == "per_image",
    }
    return [f"{PREPROCESSOR} cannot {what}" for what, is_needed in needed.items() if is_needed]


def _vision(run: Run, folder: Path) -> None:
    tensors = to_format(run.params, "hf_vit", run.config, parts={"vision"})
    _write(folder, tensors, "ViTConfig", "ViTModel", _sizes(run.config), pixels=_pixels(run.config))
    _write_json(folder / PREPROCESSOR, preprocessing(run.config))


def _mae(run: Run, folder: Path) -> None:
    tensors = to_format(run.params, "hf_vit_mae", run.config, parts={"vision", "pixel_decoder"})
    decoder, image = run.config.model.pixel_decoder, run.config.image
    options = {
        "decoder_hidden_size": decoder.width,
        "decoder_num_hidden_layers": decoder.depth,
        "decoder_num_attention_heads": decoder.heads,
        "decoder_intermediate_size": 4 * decoder.width,
        "mask_ratio": image.mask_ratio,
        "norm_pix_loss": image.norm_pix,
    }
    sizes = _sizes(run.config) | options
    _write(folder, tensors, "ViTMAEConfig", "ViTMAEForPreTraining", sizes, pixels=_pixels(run.config))
    _write_json(folder / PREPROCESSOR, preprocessing(run.config))


def _text(run: Run, folder: Path) -> None:
    size, language = run.config.model.text, LANGUAGE in run.params["heads"]
    tensors = to_format(run.params, "hf_bert", run.config, parts={"text", "pooler", *([LANGUAGE] if language else [])})
    options = {
        "vocab_size": run.model.vocab_size,
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "intermediate_size": int(size.width * size.mlp_ratio),
        "max_position_embeddings": size.max_tokens,
        "type_vocab_size": TOKEN_TYPES,
        "layer_norm_eps": 1e-12,
        "pad_token_id": run.tokenizer.pad_id,
    }
    _write(folder, tensors, "BertConfig", "BertForMaskedLM" if language else "BertModel", options)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (run.tokenizer.directory / name).is_file():
            shutil.copyfile(run.tokenizer.directory / name, folder / name)


def _timm(run: Run, file: Path) -> None:
    write_tensors(file, to_format(run.params, "timm", run.config, parts={"vision"}), beside=_pixels(run.config))


def _pixels(config: Config) -> dict[str, Any]:
    """How pixels are normalised, for the header of a file: it can be used without the folder that it lies in."""
    settings = preprocessing(config)
    return {key: settings[key] for key in ("image_mean", "image_std")}


def _sizes(config: Config) -> dict[str, Any]:
    """Of a ViT, in transformers' words."""
    size = config.model.vision
    return {
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "intermediate_size": int(size.width * size.mlp_ratio),
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "image_size": size.image_size,
        "patch_size": size.patch_size,
        "num_channels": 3,
    }


def _write(
    folder: Path,
    tensors: dict[str, Any],
    kind: str,
    architecture: str,
    options: dict[str, Any],
    *,
    pixels: dict[str, Any] | None = None,
) -> None:
    """Weights, `pixels` in their header, and a config written by transformers' own class `kind`."""
    logging.getLogger("transformers").setLevel(logging.ERROR)  # it says on import that PyTorch is missing
    import transformers

    write_tensors(folder / WEIGHTS, tensors, beside=pixels)
    getattr(transformers, kind)(**options, architectures=[architecture], dtype="float32").save_pretrained(folder)


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n")
