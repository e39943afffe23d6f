"""Names and shapes of checkpoints that others have published, written out by hand from their code and not by our table."""


def linear(name, rows, columns):
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def published_block(name, width, hidden):
    """A block of timm's ViT, as MAE, MRM and MaCo have it."""
    layers = linear(f"{name}.attn.qkv", 3 * width, width) | linear(f"{name}.attn.proj", width, width)
    layers |= linear(f"{name}.mlp.fc1", hidden, width) | linear(f"{name}.mlp.fc2", width, hidden)
    return norm(f"{name}.norm1", width) | layers | norm(f"{name}.norm2", width)


def published_mrm(size):
    """Names and shapes that MRM's model saves (RL4M/MRM-pytorch, model_mrm.py and bert/)."""
    width, deep, read, words = size.vision.width, size.pixel_decoder.width, size.text.width, 60
    patch, tokens = size.vision.patch_size, size.vision.grid**2 + 1
    bert = "bert_encoder.model.bert"
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, tokens, width),
        "mask_token": (1, 1, deep),
        "decoder_pos_embed": (1, tokens, deep),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        f"{bert}.embeddings.position_ids": (1, size.text.max_tokens),
        f"{bert}.embeddings.word_embeddings.weight": (words, read),
        f"{bert}.embeddings.position_embeddings.weight": (size.text.max_tokens, read),
        f"{bert}.embeddings.token_type_embeddings.weight": (2, read),
        "bert_encoder.model.cls.predictions.bias": (words,),
    }
    for number in range(2):
        shapes |= published_block(f"blocks.{number}", width, 4 * width)
        shapes |= published_block(f"decoder_blocks.{number}", deep, 4 * deep)
        layer = f"{bert}.encoder.layer.{number}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= linear(f"{layer}.attention.{name}", read, read)
        shapes |= norm(f"{layer}.attention.output.LayerNorm", read) | norm(f"{layer}.output.LayerNorm", read)
        shapes |= linear(f"{layer}.intermediate.dense", 4 * read, read) | linear(
            f"{layer}.output.dense", read, 4 * read
        )
    shapes |= norm("norm", width) | norm("decoder_norm", deep) | norm(f"{bert}.embeddings.LayerNorm", read)
    shapes |= linear("decoder_embed", deep, width) | linear("decoder_pred", (2 * patch) ** 2 * 3, deep)
    head = "bert_encoder.model.cls.predictions.transform"
    shapes |= linear(f"{bert}.pooler.dense", read, read) | linear(f"{head}.dense", read, read)
    return shapes | norm(f"{head}.LayerNorm", read) | linear("bert_mlp", read, width)


def published_maco(size, embedding):
    """Those of MaCo's (SZUHvern/MaCo, model_MaCo.py), whose pooler projects to the width of the image's projection."""
    shapes = {name: shape for name, shape in published_mrm(size).items() if not name.startswith("bert_mlp")}
    shapes |= linear("bert_encoder.model.bert.pooler.dense", embedding, size.text.width)
    shapes |= linear("img_mlp", embedding, size.vision.width) | linear("pos_cat", 1, 2)
    shapes |= linear("pos_weight_img", 1, size.vision.grid**2) | linear("pos_weight_text", 1, 768)
    return shapes | {"logit_scale": (), "Tpar": ()}
