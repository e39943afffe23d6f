"""Model sizes, and the defaults that every pretraining configuration starts from.

The comment behind a field names its source: (paper) arXiv 2401.01583, (MaCo) the authors' earlier code, (GLoRIA), (MAE), (BERT), (ALBEF), or (ours).
"""

import difflib
from collections.abc import Sequence

from ml_collections import ConfigDict

from input_pipeline.errors import UserError

OBJECTIVES = ("global", "local", "instance", "modality")


def vision(width: int, depth: int, heads: int, *, image_size: int = 224, patch_size: int = 16) -> ConfigDict:
    """A ViT in the sizes of its paper; one linear patch embedding, fixed sin-cos positions, a class token."""
    size = ConfigDict()
    size.image_size = image_size  # (MaCo) pixels along a side: 224
    size.patch_size = patch_size  # (MaCo) pixels along a patch: 16
    size.width = width  # (ViT) token width
    size.depth = depth  # (ViT) blocks
    size.heads = heads  # (ViT) attention heads
    size.mlp_ratio = 4.0  # (ViT) hidden width of the MLP over the token width
    size.patch_layers = 1  # (ViT) dense layers of the patch embedding; 2 in tiny
    size.positions = "sincos"  # (MAE) fixed two-dimensional sines and cosines
    size.cls_token = True  # (ViT) kept so that weights move to and from other libraries
    return size


def report(width: int, depth: int, heads: int, *, max_tokens: int = 128) -> ConfigDict:
    """A BERT-style encoder of reports."""
    size = ConfigDict()
    size.vocab_size = 0  # (ours) 0: as many words as the tokenizer has
    size.max_tokens = max_tokens  # (ours) MaCo 100; 128 holds 99 % of MIMIC's findings and impression
    size.width = width  # (BERT) token width; the paper names only BERT
    size.depth = depth  # (MaCo) 6 layers
    size.heads = heads  # (BERT) attention heads
    size.mlp_ratio = 4.0  # (BERT) hidden width of the MLP over the token width
    return size


def pixel_decoder(width: int = 768, depth: int = 4, heads: int = 6) -> ConfigDict:
    """A MAE decoder, of MaCo's and MRM's size where nothing else is said."""
    size = ConfigDict()
    size.width = width  # (MaCo) 768; MAE 512
    size.depth = depth  # (MaCo) 4; MAE 8
    size.heads = heads  # (MaCo) 6; MAE 16: wider heads keep matrix units busier
    return size


def model(
    vision_size: ConfigDict, report_size: ConfigDict, decoder_size: ConfigDict, *, embedding: int, region: int
) -> ConfigDict:
    """All parts of a model and how they are computed."""
    sizes = ConfigDict()
    sizes.vision = vision_size  # (paper) a ViT
    sizes.text = report_size  # (paper) a BERT
    sizes.pixel_decoder = decoder_size  # (MAE)
    sizes.embedding_width = embedding  # (MaCo) 768: image and report embedding
    sizes.region_width = region  # (paper) regions and sentences share the embedding's width
    sizes.matching_width = embedding  # (ours) hidden width of the two-layer matching head (eq. 4)
    sizes.scan_layers = True  # (ours) compiles one block for all layers; False is a seventh faster on an H200
    sizes.remat = "dots"  # (ours) computes norms and GELU anew, which is faster than reading them; "none", "full"
    sizes.compute_dtype = "bfloat16"  # (ours) of products, in local alignment too, and sums of encoders' gradients
    sizes.flat_products = False  # (ours) all tokens of a batch as one matrix: faster on CPUs, copies elsewhere
    sizes.attention = "cudnn"  # (ours) the fused kernel of NVIDIA GPUs, for bfloat16; elsewhere the same as "xla"
    return sizes


def vit_tiny() -> ConfigDict:
    """The demo's model: 64 px images, patches of 8 px, 1.2 M parameters; trains in minutes on two CPU cores."""
    sizes = model(
        vision(128, 3, 4, image_size=64, patch_size=8),  # (ours) 64 patches: what two cores can train in minutes
        report(128, 2, 4, max_tokens=48),  # (ours) 99 % of synthetic reports
        pixel_decoder(64, 1, 4),  # (ours)
        embedding=128,  # (ours)
        region=64,  # (ours)
    )
    sizes.vision.patch_layers = 2  # (ours) faint lesions need a non-linear patch embedding at this size
    sizes.vision.cls_token = False  # (ours) windowed blocks must not share a token
    sizes.scan_layers = False  # (ours) blocks differ: the first ones are windowed
    sizes.remat = "none"  # (ours) at this size there is nothing to save
    sizes.compute_dtype = "float32"  # (ours) CPUs gain nothing from bfloat16 here
    sizes.attention = "xla"  # (ours) cuDNN knows no float32
    sizes.flat_products = True  # (ours) a fifth of a step on two CPU cores
    return sizes


def vit_s16(report_layers: int = 6) -> ConfigDict:
    """ViT-S/16 with a report encoder of width 384 (MaCo's text tower)."""
    return model(
        vision(384, 12, 6),  # (ViT) S/16
        report(384, report_layers, 6),  # (MaCo)
        pixel_decoder(),
        embedding=384,  # (ours) the encoders' width, as MaCo's 768 is
        region=384,  # (ours) likewise
    )


def vit_b16(report_layers: int = 6) -> ConfigDict:
    """ViT-B/16 (paper) with a report encoder of width 768."""
    return model(
        vision(768, 12, 12),  # (paper) B/16
        report(768, report_layers, 12),  # (BERT) width and heads of BERT-base
        pixel_decoder(),
        embedding=768,  # (MaCo)
        region=768,  # (paper)
    )


def vit_l16(report_layers: int = 12) -> ConfigDict:
    """ViT-L/16 with a BERT-base report encoder."""
    return model(
        vision(1024, 24, 16),  # (ViT) L/16
        report(768, report_layers, 12),  # (BERT) BERT-base
        pixel_decoder(),
        embedding=768,  # (MaCo)
        region=768,  # (paper)
    )


def pretraining(name: str, sizes: ConfigDict) -> ConfigDict:
    """The defaults of a pretraining run at the paper's sizes; configurations change what differs."""
    config = ConfigDict()
    config.name = name  # (ours) what the run is called in its reports
    config.seed = 0  # (ours) everything random follows from (seed, step)
    config.model = sizes  # (ours) one of the sizes above
    config.image = _image()
    config.text = _text()
    config.regions = ConfigDict()
    config.regions.layer = 0  # (paper) last layer's patch tokens; n takes them after block n
    config.regions.window_radius = 0  # (paper) full attention; r limits blocks up to `layer` to patches at most r away
    config.regions.projection = (
        "shared"  # (MaCo) grounding uses the image embedding's projection; "own" has one of its own
    )
    config.objective = _objective()
    config.data = _data()
    config.optimizer = _optimizer()
    config.train = _train()
    config.mesh = ConfigDict()
    config.mesh.data = -1  # (ours) replicas; -1 takes all devices that are left
    config.mesh.fsdp = 1  # (ours) devices over which parameters are sharded
    config.mesh.tensor = 1  # (ours) devices over which heads and MLPs are sharded
    config.mesh.shard_moments = False  # (ours) the optimizer's moments over data as well, where parameters are whole
    config.zero_shot = ConfigDict()
    config.zero_shot.rule = "cosine"  # (ours) unit prompts, averaged, positive minus negative; "maco", "chexzero", "gloria" are the siblings'
    config.zero_shot.prompts = "chexpert"  # (ours) a shipped prompt set or a JSON file
    config.zero_shot.split = "validate"  # (ours) split evaluated in the loop
    config.zero_shot.records = 0  # (ours) how many records are evaluated in the loop; 0 is all
    config.zero_shot.in_loop = True  # (ours) whether it is evaluated in the loop
    config.zero_shot.directory = ""  # (ours) build with labels, evaluated in the loop; "" is the training build
    config.grounding = ConfigDict()
    config.grounding.protocol = "biovil"  # (ours) cosine; "maco" and "afloc" use raw products and their margins
    config.grounding.sigma = 1.5  # (BioViL) smoothing of the heat-map, in patches
    config.grounding.shifts = 1  # (BioViL) looks per axis, fractions of a patch apart; n makes the map n times as fine
    config.grounding.directory = ""  # (ours) build with boxes, evaluated in the loop when named
    config.grounding.split = "validate"  # (ours) split evaluated in the loop
    config.grounding.records = 0  # (ours) how many phrases are evaluated in the loop; 0 is all
    config.retrieval = _retrieval()
    config.probe = _probe()
    config.init_from = _init_from()
    return config


def select_objectives(config: ConfigDict, words: str, *, options: Sequence[str] = ()) -> ConfigDict:
    """Keeps the named objectives and sets the weights of the others to 0 (the paper's table 5).

    Args:
      config: a pretraining configuration.
      words: "" for all four, or a comma-separated choice that contains "global", as "global,local".
      options: further words that the configuration knows; they are passed over.

    Raises:
      UserError: a word is no objective and no option, or "global" is missing (every row of table 5 has it).
    """
    known = [*OBJECTIVES, *options]
    given = [word for word in words.split(",") if word]
    for word in given:
        if word not in known:
            close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            raise UserError(
                f"config {config.name}: unknown argument '{word}'{hint}; expected some of {', '.join(known)}"
            )
    chosen = [word for word in given if word in OBJECTIVES] or list(OBJECTIVES)
    if "global" not in chosen:
        raise UserError(f"config {config.name}: argument '{words}' lacks 'global'; every combination of table 5 has it")
    for objective in OBJECTIVES:
        if objective not in chosen:
            config.objective[f"lambda_{objective}"] = 0.0
    return config


def _image() -> ConfigDict:
    image = ConfigDict()
    image.passes = (
        "two"  # (ours) unmasked for alignment, masked for reconstruction; "shared" masks one pass for all (MaCo)
    )
    image.mask_ratio = 0.75  # (MAE) share of masked patches; use .5 with "shared" (MaCo)
    image.norm_pix = True  # (MAE) targets normalised per patch
    image.target_scale = 1  # (MAE) rebuilds what the encoder sees; 2 rebuilds twice its resolution (MaCo, MRM)
    image.pool = "mean"  # (MaCo) mean of patch tokens after the final norm
    image.normalisation = "fixed"  # (MaCo) by the mean and deviation below; "per_image" by the image's own
    image.mean = 0.4978  # (MaCo) of pixels in [0, 1]
    image.deviation = 0.2449  # (MaCo)
    return image


def _text() -> ConfigDict:
    text = ConfigDict()
    text.passes = "two"  # (ALBEF) unmasked for alignment, masked for language modeling
    text.mask_rate = 0.15  # (BERT) share of predicted tokens
    text.mask_replacement = "bert"  # (BERT) 80 % [MASK], 10 % random, 10 % kept; "mask_only" is MRM's
    text.pool = "cls"  # (MaCo) dense + tanh on [CLS]; "cls_linear" without tanh; "mean" averages token states
    text.sentence_pool = (
        "mean"  # (AFLoc) mean of token states; "sum" as MaCo; "separate" reads each sentence alone and takes its [CLS]
    )
    text.subset_probability = 0.5  # (MaCo) share of reports of which a random subset of sentences is shown
    text.max_sentences = 16  # (ours) units per report; 99 % of MIMIC has fewer
    text.length_buckets = ""  # (ours) "64:0.5" reads the shortest half of a device's reports at 64 tokens
    return text


def _objective() -> ConfigDict:
    objective = ConfigDict()
    objective.lambda_global = 1.0  # (paper) eq. 7 gives no values
    objective.lambda_local = 1.0  # (paper)
    objective.lambda_instance = 1.0  # (paper)
    objective.lambda_modality = 1.0  # (paper)
    objective.reduction = "mean"  # (MaCo) of the two directions of an alignment; GLoRIA and AFLoc have their "sum"
    objective.global_alignment = ConfigDict()
    objective.global_alignment.direction = "symmetric"  # (MaCo) eq. 1 prints image_to_report
    objective.global_alignment.temperature = 0.07  # (CLIP) MaCo .03
    objective.global_alignment.learn_temperature = True  # (MaCo) clamped to at least .01
    objective.global_alignment.exchange = "xla"  # (ours) over devices; "gather" and "ring" move report embeddings alone
    objective.local_alignment = ConfigDict()
    objective.local_alignment.attention = "gloria"  # (GLoRIA) the siblings' code; "regions" is what the papers print
    objective.local_alignment.region_scale = 4.0  # (GLoRIA)
    objective.local_alignment.sentence_scale = 5.0  # (GLoRIA)
    objective.local_alignment.logit_scale = 10.0  # (GLoRIA)
    objective.local_alignment.aggregate = "sum"  # (paper) eq. 3; "mean" takes the bias towards long reports away
    objective.local_alignment.include_cls = True  # (AFLoc) [CLS] as one more unit
    objective.local_alignment.direction = "symmetric"  # (GLoRIA)
    objective.local_alignment.block = 0  # (ours) reports scored at once; 0 chooses
    objective.local_alignment.negatives = "global"  # (ours) the reports of the global batch; "group(N)" those of N rows
    objective.local_alignment.exchange = "gather"  # (ours) sentences of all devices at once; "ring" holds one device's
    objective.local_alignment.kernel = "xla"  # (ours) "pallas" computes the scores in kernels of our own, on TPUs
    objective.instance_matching = ConfigDict()
    objective.instance_matching.fusion = "sum"  # (paper) "summarizing the features of the two modalities"
    objective.instance_matching.activation = (
        "gelu"  # (ours) without one the loss cannot fall below the classes' entropy
    )
    objective.instance_matching.negatives = "hard"  # (ALBEF) drawn by similarity
    objective.instance_matching.ramp = (0.3, 0.45)  # (ours) shares of the run at which the weight rises and is full
    return objective


def _data() -> ConfigDict:
    data = ConfigDict()
    data.directory = ""  # (ours) folder made by `msfl data build`
    data.tokenizer = ""  # (ours) folder made by `msfl data tokenizer`
    data.tokenizer_hash = ""  # (ours) filled in when a run starts
    data.split = "train"  # (MIMIC-CXR) official split
    data.batch_size = 4096  # (MaCo) studies per step over all devices
    data.workers = 0  # (ours) loader processes; 0 reads in threads
    data.fit = "crop"  # (MaCo) centre square; "pad" shows all of the image
    data.scale = (0.6, 1.0)  # (ours) range of a random crop's share of the area; MRM (.2, 1)
    data.shift = 0.0  # (ours) largest random shift as a share of the side
    data.aspect = (1.0, 1.0)  # (ours) range of a random crop's width over height; MRM (.75, 1.33)
    data.placement = "centre"  # (ours) where a random crop lies; MRM, GLoRIA and MGCA "anywhere"
    data.zoom = (1.0, 1.0)  # (ours) range of a random magnification; MaCo (.8, 1.2)
    data.rotation = 0.0  # (ours) largest random rotation in degrees; MaCo 20
    data.flip = False  # (ours) MaCo and MRM mirror half of the images, but reports say left and right
    data.permute_reports = False  # (ours) control: every image gets the report of another patient
    return data


def _optimizer() -> ConfigDict:
    optimizer = ConfigDict()
    optimizer.peak_rate = 2.5e-4  # (MaCo) at 4,096 studies per step
    optimizer.warmup_steps = 100  # (MaCo) 2 of 51 epochs
    optimizer.weight_decay = 0.05  # (MaCo) none on biases, norms, embeddings of position and the temperature
    optimizer.b1 = 0.9  # (MaCo)
    optimizer.b2 = 0.95  # (MaCo)
    optimizer.clip_norm = 1.0  # (ours) global norm of the gradient
    return optimizer


def _retrieval() -> ConfigDict:
    retrieval = ConfigDict()
    retrieval.in_loop = False  # (ours) whether it is evaluated in the loop
    retrieval.directory = ""  # (ours) build with reports; "" is the training build
    retrieval.split = "validate"  # (ours) split evaluated in the loop
    retrieval.records = 1000  # (ours) the pool, from the split's first; 0 is all, and recalls depend on it
    return retrieval


def _probe() -> ConfigDict:
    probe = ConfigDict()
    probe.in_loop = False  # (ours) whether logistic regression on frozen image embeddings is fitted in the loop
    probe.directory = ""  # (ours) build with labels; "" is the training build
    probe.train_split = "train"  # (ours) split or subset that it is fitted on
    probe.split = "validate"  # (ours) split that it is measured on
    probe.records = 2000  # (ours) how many records of each; 0 is all
    probe.l2 = 1e-3  # (ours) ridge on weights of standardised features
    return probe


def _init_from() -> ConfigDict:
    start = ConfigDict()
    start.vision = ""  # (MaCo) weights of the image encoder and, if they are there, its decoder; MaCo starts from MAE's
    start.report = ""  # (GLoRIA) weights of the report encoder and, if they are there, its masked-language head
    start.vision_format = "auto"  # (ours) seen from the names of the tensors
    start.report_format = "auto"  # (ours) likewise
    start.pixels = (
        "auto"  # (ours) how the other model's images were normalised: what its folder says, else its format's usual
    )
    start.skip = ""  # (ours) names that may differ, as "cls.seq_relationship,encoder.layer.1?.*"; others end the run with exit code 4
    return start


def _train() -> ConfigDict:
    train = ConfigDict()
    train.steps = 2800  # (MaCo) 51 epochs of 225,000 studies at 4,096 per step
    train.log_every = 20  # (ours) steps between two lines of metrics
    train.checkpoint_every = 200  # (ours) steps between two checkpoints
    train.keep_checkpoints = 2  # (ours) latest ones kept beside the best
    train.evaluate_every = 0  # (ours) steps between two evaluations in the loop; 0 is never
    train.microbatches = (
        1  # (ours) parts of a batch that the encoders see one after the other; same gradients, less memory
    )
    train.max_skipped_steps = 5  # (ours) steps in a row without a finite gradient before the run ends with exit code 5
    return train
