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
    """Writes what other libraries can load of a run's parts; returns a line for each that cannot be.

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
    return refused


def preprocessing(config: Config) -> dict[str, Any]:
    """Settings of `transformers.ViTImageProcessor`, with the same mean and deviation for all three colours.

    It resizes by interpolation where we average areas. An image's own mean and deviation it cannot take: then it only rescales, and
    `normalisation` says what is to be done.
    """
    options, side = config.image, config.model.vision.image_size
    fixed = options.normalisation == "fixed"
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": fixed,
        "image_mean": [options.mean if fixed else 0.0] * 3,
        "image_std": [options.deviation if fixed else 1.0] * 3,
        "normalisation": options.normalisation,
        "fit": config.data.fit,
    }


def _vision(run: Run, folder: Path) -> None:
    tensors = to_format(run.params, "hf_vit", run.config, parts={"vision"})
    _write(folder, tensors, "ViTConfig", "ViTModel", _sizes(run.config))
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
    _write(folder, tensors, "ViTMAEConfig", "ViTMAEForPreTraining", _sizes(run.config) | options)
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
    write_tensors(file, to_format(run.params, "timm", run.config, parts={"vision"}))


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


def _write(folder: Path, tensors: dict[str, Any], kind: str, architecture: str, options: dict[str, Any]) -> None:
    """Weights, and a config written by transformers' own class `kind`."""
    logging.getLogger("transformers").setLevel(logging.ERROR)  # it says on import that PyTorch is missing
    import transformers

    write_tensors(folder / WEIGHTS, tensors)
    getattr(transformers, kind)(**options, architectures=[architecture], dtype="float32").save_pretrained(folder)


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n")
