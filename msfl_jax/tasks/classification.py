"""Classification: a pretrained encoder fine-tuned, or probed, on the labels of a build, and evaluated with its best checkpoint.

`finetune_classification` trains in a run directory of its own; `evaluate_classification` scores any split with what is there.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from input_pipeline.errors import CheckpointError, UserError
from input_pipeline.labelled_batches import labelled_batches, labelled_records
from input_pipeline.loader import label_names
from input_pipeline.manifest import read_manifest
from input_pipeline.streams import BatchSpec
from msfl_jax.classifier import Classifier, label_truth, masked_cross_entropy
from msfl_jax.config import Config
from msfl_jax.finetune_config import FinetuneConfig, finetune_config
from msfl_jax.objective import Tally
from msfl_jax.parallel import distributed
from msfl_jax.tasks.classifier_scores import (
    BEST_METRIC,
    Frozen,
    chosen_findings,
    evaluation_view_spec,
    frozen_features,
    predict,
    require_splits,
    validation_metrics,
)
from msfl_jax.tasks.finding_result import Predictions, summarise_findings
from msfl_jax.tasks.finetuned import FinetunedRun, mark_of_other_build, prepare_finetuning, read_finetuning
from msfl_jax.tasks.outcome import Option, Outcome, identify_split, save_outcome
from msfl_jax.tasks.probe import fit_probe
from msfl_jax.tasks.run import Run, describe_start, encoder_parameters, refuse_pretraining_run
from msfl_jax.train.adaptation import MAY_CHANGE, Adaptation, adapt, best_parameters, write_config
from msfl_jax.train.adaptation_optimizer import finetuning_optimizer, finetuning_rate
from msfl_jax.train.checkpoint import Checkpoints, read_meta
from msfl_jax.train.flops import vit_flops
from msfl_jax.train.loop import refuse_other_config
from msfl_jax.train.provenance import read_caveats
from msfl_jax.train.state import TrainState

TASK = "classification"


@dataclasses.dataclass(frozen=True)
class ClassifierRun(FinetunedRun):
    """A fine-tuned classifier; its findings are those of its `origin`."""

    config: FinetuneConfig
    classifier: Classifier


def finetune_classification(
    config: FinetuneConfig,
    workdir: Path,
    run: Run,
    *,
    caveats: tuple[str, ...] = (),
    progress: bool = True,
    replicates: int = 2000,
) -> Outcome:
    """Trains a classifier, chooses the checkpoint with the best mean AUC on the validation split, and evaluates it once on the test split.

    Every process of a run calls it with the same arguments; calling it again resumes.

    Args:
      config: of the fine-tuning; `data.directory` names the build.
      workdir: its run directory.
      run: the pretrained model, or one with an imported encoder where `encoder.init` is "imported"; with "random", only its configuration is used.
      caveats: of the build against what the model was pretrained on (see `tasks.leaks`).
      progress: whether to print a line of progress.
      replicates: of the bootstrap.

    Returns:
      What was saved in `workdir`/results; predictions lie in `workdir`/predictions.

    Raises:
      UserError: no such build, split or finding, sizes that do not fit, or `workdir` is the pretraining run's.
      DataError: no finding is both present and absent among the validation images.
      CheckpointError: the run directory holds a run of another configuration, encoder or data.
      DivergedError, RetryError: see `train.adaptation.adapt`.
    """
    refuse_pretraining_run(workdir, run)
    findings = chosen_findings(config.data.findings, label_names(Path(config.data.directory)))
    require_splits(config, findings)
    classifier = make_classifier(config, run.config, len(findings))
    params = classifier.initial(jax.random.key(config.seed), encoder_parameters(run, config.encoder.init))
    task = _adaptation(config, run, classifier, findings, params, progress)
    prepare_finetuning(config.data, workdir, run, caveats, findings=findings)  # once nothing is left to refuse
    if config.mode == "probe":
        _probe(config, workdir, run, classifier, findings, params)
    else:
        adapt(task, config, workdir)
    finetuned = open_finetuned(workdir)
    return evaluate_classification(finetuned, Path(config.data.directory), config.data.test, replicates=replicates)


def open_finetuned(workdir: Path, *, step: int | str | None = "best") -> ClassifierRun:
    """Opens a run directory of `finetune_classification`.

    Args:
      workdir: holds config.json, encoder.json and checkpoints/.
      step: "best", a step with a checkpoint, or None for the latest.

    Raises:
      UserError: not such a run directory.
      CheckpointError: the checkpoint is missing, damaged or of another configuration.
    """
    config, origin = read_finetuning(workdir, finetune_config, task=TASK)
    classifier = make_classifier(config, origin.config, len(origin.findings))
    params, found = best_parameters(workdir, jax.eval_shape(classifier.init, jax.random.key(0)), step=step)
    return ClassifierRun(workdir, config, origin, params, found, read_caveats(workdir), classifier)


def evaluate_classification(
    run: ClassifierRun,
    directory: Path,
    split: str,
    *,
    caveats: Sequence[str] | None = None,
    seed: int = 0,
    replicates: int = 2000,
) -> Outcome:
    """Scores a split of a build, and saves predictions and numbers in the run directory.

    Findings are labels of the build by their names; one that is none of them has no AUC, for that reason, and neither has one of which a probe
    saw a single class.

    Args:
      run: opened by `open_finetuned`.
      directory: a build with some of the run's findings among its labels.
      split: of the build.
      caveats: what must be said beside the numbers; None is what holds for the run's own test split.
      seed, replicates: of the patient bootstrap.

    Raises:
      UserError: no such build or split, or no finding is a label of it.
    """
    findings, labels = run.origin.findings, label_names(directory)
    if not set(findings) & set(labels):
        raise UserError(
            f"{directory}: has none of the findings that {run.directory} was trained for; found {', '.join(labels) or 'no labels'}, "
            f"expected some of {', '.join(findings)}"
        )
    predictions = predict(run.classifier, run.params, findings, run.config, directory, split)
    result = summarise_findings(predictions, seed=seed, replicates=replicates)
    dataset, split_hash = identify_split(directory, split)
    outcome = Outcome(
        task=TASK,
        dataset=dataset,
        split=split,
        split_hash=split_hash,
        variant=variant(run.config),
        options=_options(run.config)
        | mark_of_other_build(run, directory)
        | {"findings_in_mean": result.defined, "bootstrap_seed": seed, "replicates": replicates},
        step=run.step,
        records=result.records,
        patients=result.patients,
        metrics=result.metrics,
        reasons=result.reasons | _without_scores(run, labels),
        caveats=run.caveats if caveats is None else tuple(caveats),
    )
    if distributed.is_lead():
        predictions.save(outcome.predictions(run.directory))
        save_outcome(outcome, run.directory)
    return outcome


def _without_scores(run: ClassifierRun, labels: Sequence[str]) -> dict[str, str]:
    """Findings without a score or a truth, whatever the images are, by the names of their metrics and with the reason."""
    findings, reasons = run.origin.findings, {}
    if run.config.mode == "probe":
        unfitted = np.isnan(np.asarray(run.params["head"]["fc"]["kernel"])).any(axis=0)
        reasons = {f"auc/{findings[column]}": "one class only in train" for column in np.flatnonzero(unfitted)}
    return reasons | {f"auc/{name}": "no label of the build" for name in findings if name not in labels}


def variant(config: FinetuneConfig) -> str:
    """Of the run's results: where the weights came from, what was trained, on how many percent of the labels, with which seed."""
    return f"{config.encoder.init}-{config.mode}-{config.data.fraction}-seed{config.seed}"


def _options(config: FinetuneConfig) -> dict[str, Option]:
    """What an outcome says about how it came about."""
    return {
        "init": config.encoder.init,
        "mode": config.mode,
        "fraction": config.data.fraction,
        "seed": config.seed,
        "config": config.name,
        "blank": config.data.blank,
    }


def make_classifier(config: FinetuneConfig, pretraining: Config, outputs: int) -> Classifier:
    """The classifier of a fine-tuning configuration on the encoder of a pretraining configuration."""
    encoder, probe = config.encoder, config.mode == "probe"
    return Classifier(
        pretraining,
        outputs,
        image_size=encoder.image_size,
        pool=encoder.pool,
        final_norm=encoder.final_norm,
        drop_path=0.0 if probe else encoder.drop_path,
        head_norm=not probe,
    )


def classification_loss(
    params: Any, batch: Mapping[str, Array], key: Any, *, classifier: Classifier, columns: tuple[int, ...], blank: str
) -> tuple[Float32[Array, ""], dict[str, Tally]]:
    """Mean binary cross-entropy over the known labels of a batch; `key` draws what drop-path leaves out."""
    truth = label_truth(batch["labels"], columns, blank)
    total, known = masked_cross_entropy(classifier.logits(params, batch["image"], key), truth)
    return total / jnp.maximum(known, 1.0), {"loss/cross_entropy": Tally(total, known)}


def training_view_spec(classifier: Classifier, config: FinetuneConfig) -> BatchSpec:
    """Size and augmentation of training images."""
    data = config.data
    return dataclasses.replace(
        evaluation_view_spec(classifier, config),
        scale=data.scale,
        shift=data.shift,
        aspect=data.aspect,
        placement=data.placement,
        zoom=data.zoom,
        rotation=data.rotation,
        flip=data.flip,
    )


def _adaptation(
    config: FinetuneConfig,
    run: Run,
    classifier: Classifier,
    findings: tuple[str, ...],
    params: Any,
    progress: bool,
) -> Adaptation:
    """The training loop's view of the run."""
    directory, data, size = Path(config.data.directory), config.data, run.config.model.vision
    columns = tuple(label_names(directory).index(finding) for finding in findings)
    source = labelled_records(directory, data.fraction, seed=config.seed, subsets=data.subsets)
    spec = training_view_spec(classifier, config)

    def batches(start: int, index: int, count: int) -> Iterator[Mapping[str, Any]]:
        options = {"start_step": start, "process_index": index, "process_count": count, "workers": data.workers}
        return labelled_batches(source, spec, batch_size=data.batch_size, seed=config.seed, **options)

    def evaluate(params: Any, _step: int) -> dict[str, float]:
        return validation_metrics(predict(classifier, params, findings, config, directory, data.validate))

    return Adaptation(
        params=params,
        loss=functools.partial(classification_loss, classifier=classifier, columns=columns, blank=data.blank),
        optimizer=finetuning_optimizer(config.optimizer, config.train.steps, depth=size.depth),
        rate=finetuning_rate(config.optimizer, config.train.steps),
        batches=batches,
        batch_size=data.batch_size,
        evaluate=evaluate,
        best_metric=BEST_METRIC,
        meta=_meta(config, run, len(source)),
        label=variant(config)[:19] if progress else "",
        flops=3 * vit_flops(dataclasses.replace(size, image_size=classifier.side)),
    )


def _probe(
    config: FinetuneConfig, workdir: Path, run: Run, classifier: Classifier, findings: tuple[str, ...], params: Any
) -> None:
    """Logistic regression on features that are computed once; the penalty is the one with the best mean AUC on the validation split."""
    with Checkpoints(workdir, keep=1) as checkpoints:
        if checkpoints.steps:
            refuse_other_config(config, workdir, may_change=MAY_CHANGE)
            return
        directory = Path(config.data.directory)
        train, validate = (
            frozen_features(classifier, params, findings, config, directory, split)
            for split in ("train", config.data.validate)
        )
        score, penalty, weights, bias = max(
            _fits(config, findings, train, validate), key=lambda fit: np.nan_to_num(fit[0], nan=-1)
        )
        head = {"fc": {"kernel": jnp.asarray(weights, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}}
        write_config(config, workdir)
        state = TrainState(jnp.int32(0), {**params, "head": head}, {"penalty": jnp.float32(penalty)}, jnp.int32(0))
        checkpoints.save(state, 0, _meta(config, run, len(train.features)) | {"penalty": penalty}, score=score)


def _fits(
    config: FinetuneConfig, findings: tuple[str, ...], train: Frozen, validate: Frozen
) -> Iterator[tuple[float, float, np.ndarray, np.ndarray]]:
    """Mean validation AUC, penalty, weights and bias for each penalty, the strongest first: of equals, the simplest wins."""
    low, high = config.probe.penalty
    for penalty in np.geomspace(high, low, config.probe.penalties):
        weights, bias = fit_probe(train.features, train.truth, float(penalty))
        logits = validate.features @ weights + bias
        predictions = Predictions(findings, logits, validate.truth, validate.patient_key)
        yield validation_metrics(predictions)[BEST_METRIC], float(penalty), weights, bias


def _meta(config: FinetuneConfig, run: Run, records: int) -> dict[str, Any]:
    """What a checkpoint must agree with to be resumed."""
    manifest = read_manifest(Path(config.data.directory))
    return {
        "seed": config.seed,
        "init": describe_start(run, config.encoder.init),
        "data": {
            "members": manifest.splits["train"].members,
            "fraction": config.data.fraction,
            "records": records,
        },
    }


def refuse_other_encoder(config: FinetuneConfig, workdir: Path, run: Run) -> None:
    """Raises a CheckpointError where the run in `workdir` did not start from the encoder of this pretraining run at this step."""
    found, expected = read_meta(workdir).get("init"), describe_start(run, config.encoder.init)
    if found != expected:
        raise CheckpointError(f"{workdir}: begun with encoder {found}; this one is {expected}: use a new workdir")
