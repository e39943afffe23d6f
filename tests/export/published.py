"""Names and shapes of checkpoints that others have published, written out by hand from their code and not by our table."""

WORDS = 60
POSITIONS = 512  # of BERT and what was trained from it


def linear(name, rows, columns):
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def published_block(name, width, hidden):
    """A block of timm's ViT, as MAE, MRM and MaCo have it."""
    layers = linear(f"{name}.attn.qkv", 3 * width, width) | linear(f"{name}.attn.proj", width, width)
    layers |= linear(f"{name}.mlp.fc1", hidden, width) | linear(f"{name}.mlp.fc2", width, hidden)
    return norm(f"{name}.norm1", width) | layers | norm(f"{name}.norm2", width)


def published_bert(size, prefix="", positions=POSITIONS):
    """BERT with its masked-language head as transformers saves it, tied words once."""
    bert, read = f"{prefix}bert", size.text.width
    shapes = {
        f"{bert}.embeddings.position_ids": (1, positions),
        f"{bert}.embeddings.word_embeddings.weight": (WORDS, read),
        f"{bert}.embeddings.position_embeddings.weight": (positions, read),
        f"{bert}.embeddings.token_type_embeddings.weight": (2, read),
        f"{prefix}cls.predictions.bias": (WORDS,),
    }
    for number in range(2):
        layer = f"{bert}.encoder.layer.{number}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= linear(f"{layer}.attention.{name}", read, read)
        shapes |= norm(f"{layer}.attention.output.LayerNorm", read) | norm(f"{layer}.output.LayerNorm", read)
        shapes |= linear(f"{layer}.intermediate.dense", 4 * read, read)
        shapes |= linear(f"{layer}.output.dense", read, 4 * read)
    head = f"{prefix}cls.predictions.transform"
    shapes |= norm(f"{bert}.embeddings.LayerNorm", read) | linear(f"{head}.dense", read, read)
    return shapes | norm(f"{head}.LayerNorm", read)


def published_clinical_bert(size):
    """BioClinicalBERT's, which were converted from TensorFlow: norms have a gamma and a beta."""
    shapes = published_bert(size) | linear("bert.pooler.dense", size.text.width, size.text.width)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, shape in shapes.items():
        *module, kind, leaf = name.split(".")
        renamed[".".join([*module, old.get(f"{kind}.{leaf}", f"{kind}.{leaf}")])] = shape
    del renamed["bert.embeddings.position_ids"]
    return renamed | linear("cls.seq_relationship", 2, size.text.width)


def published_cxr_bert(size):
    """CXR-BERT's (microsoft/hi-ml, modelling_cxrbert.py): BERT without a pooler, and a head of its own on [CLS]."""
    head, width = "cls_projection_head", 128
    shapes = published_bert(size) | linear(f"{head}.dense_to_hidden", width, size.text.width)
    return shapes | norm(f"{head}.LayerNorm", width) | linear(f"{head}.dense_to_output", width, width)


def published_mrm(size):
    """Names and shapes that MRM's model saves (RL4M/MRM-pytorch, model_mrm.py and bert/)."""
    width, deep, read = size.vision.width, size.pixel_decoder.width, size.text.width
    patch, tokens = size.vision.patch_size, size.vision.grid**2 + 1
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, tokens, width),
        "mask_token": (1, 1, deep),
        "decoder_pos_embed": (1, tokens, deep),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    for number in range(2):
        shapes |= published_block(f"blocks.{number}", width, 4 * width)
        shapes |= published_block(f"decoder_blocks.{number}", deep, 4 * deep)
    shapes |= norm("norm", width) | norm("decoder_norm", deep)
    shapes |= linear("decoder_embed", deep, width) | linear("decoder_pred", (2 * patch) ** 2 * 3, deep)
    shapes |= published_bert(size, "bert_encoder.model.", size.text.max_tokens)
    return shapes | linear("bert_encoder.model.bert.pooler.dense", read, read) | linear("bert_mlp", read, width)


def published_maco(size, embedding):
    """Those of MaCo's (SZUHvern/MaCo, model_MaCo.py), whose pooler projects to the width of the image's projection."""
    shapes = {name: shape for name, shape in published_mrm(size).items() if not name.startswith("bert_mlp")}
    shapes |= linear("bert_encoder.model.bert.pooler.dense", embedding, size.text.width)
    shapes |= linear("img_mlp", embedding, size.vision.width) | linear("pos_cat", 1, 2)
    shapes |= linear("pos_weight_img", 1, size.vision.grid**2) | linear("pos_weight_text", 1, 768)
    return shapes | {"logit_scale": (), "Tpar": ()}


def published_clip_block(name, width):
    """A block of either tower of CLIP; query, key and value are one matrix without a module of its own."""
    layers = {f"{name}.attn.in_proj_weight": (3 * width, width), f"{name}.attn.in_proj_bias": (3 * width,)}
    layers |= linear(f"{name}.attn.out_proj", width, width) | norm(f"{name}.ln_1", width) | norm(f"{name}.ln_2", width)
    return layers | linear(f"{name}.mlp.c_fc", 4 * width, width) | linear(f"{name}.mlp.c_proj", width, 4 * width)


def published_openai(size):
    """Those of CLIP's authors (openai/CLIP, model.py), both towers; the text tower's blocks have the names of the image's without `visual.`."""
    width, read, patch, shared = size.vision.width, size.text.width, size.vision.patch_size, 6
    shapes = {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (size.vision.grid**2 + 1, width),
        "visual.proj": (width, shared),
        "visual.conv1.weight": (width, 3, patch, patch),
        "positional_embedding": (77, read),
        "text_projection": (read, shared),
        "token_embedding.weight": (WORDS, read),
        "logit_scale": (),
    }
    for number in range(2):
        shapes |= published_clip_block(f"visual.transformer.resblocks.{number}", width)
        shapes |= published_clip_block(f"transformer.resblocks.{number}", read)
    shapes |= norm("visual.ln_pre", width) | norm("visual.ln_post", width)
    return shapes | norm("ln_final", read)
