"""Our side of `step.py`, in a process of its own: `python step_ours.py {check,main,extra} PLAN`."""

import dataclasses
import functools
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import step_common as common
import step_trace
from step_common import Plan

CHECK_ROWS = 4
PARTS = ("vision", "masked", "text", "decoder")
# By kind of device: how whole steps are compiled, and in MAIN the parts too. Words as in `Side.config`.
MAIN = {"gpu": ("unrolled cudnn dots", "scan cudnn dots"), "cpu": ("scan flat dots", "scan flat")}
EXTRA = {
    "gpu": ("scan cudnn", "unrolled cudnn", "scan dots"),
    "cpu": ("scan", "unrolled flat", "scan flat full", "unrolled"),
}


class Built(NamedTuple):
    """How a row's step is begun, its compiled program, and the seconds that took."""

    dispatch: Callable[[], Any]
    program: Any
    seconds: float


class Side:
    """The model's configuration, weights and batches, read once."""

    def __init__(self, plan: Plan):
        import jax
        from safetensors.numpy import load_file

        from msfl_jax.config import from_config_dict

        self.plan, self.jax = plan, jax
        self.backend = "cpu" if jax.default_backend() == "cpu" else "gpu"
        self.plain = from_config_dict(plan.settings["config"])
        self.tensors = load_file(Path(plan.folder) / "weights.safetensors")
        self.kept: dict[bool, Any] = {}

    def config(self, words: str) -> Any:
        """The configuration with "scan" or "unrolled" layers, "flat" products, "cudnn" attention, and "dots" or "full" recomputed."""
        chosen = words.split()
        how = {
            "scan_layers": "scan" in chosen,
            "flat_products": "flat" in chosen,
            "remat": next((word for word in chosen if word in ("dots", "full")), "none"),
            "compute_dtype": self.plan.dtype,
            "attention": "cudnn" if "cudnn" in chosen else "xla",
        }
        return dataclasses.replace(self.plain, model=dataclasses.replace(self.plain.model, **how))

    def model(self, words: str) -> Any:
        """The model of such a configuration."""
        from msfl_jax.model import Model

        return Model.create(self.config(words), vocab_size=self.plan.settings["vocab_size"])

    def params(self, model: Any) -> Any:
        """The weights as this model has them, stacked or not, on the host."""
        from msfl_jax.export.mapping import from_format

        scanned = model.config.model.scan_layers
        if scanned not in self.kept:
            like = self.jax.eval_shape(model.init, self.jax.random.key(0))
            self.kept[scanned] = from_format(self.tensors, "msfl", model.config, like)[0]
        return self.kept[scanned]

    def batch(self, rows: int) -> dict[str, Any]:
        """What a training step gets, on the device."""
        given = common.load_batch(self.plan, rows)
        names = ("image", "token_ids", "sentence_ids", "study_key")
        return self.jax.device_put({name: given[name] for name in names})


def check(side: Side) -> None:
    """Writes loss and gradients of a few rows in float32, as tensors of the format "msfl"."""
    from safetensors.numpy import save_file

    from msfl_jax import objective
    from msfl_jax.export.mapping import to_format
    from msfl_jax.model import Keys

    jax, model = side.jax, side.model("scan")
    # Drawn without looking at similarities, as the parent has drawn the negatives that PyTorch is given.
    weights = objective.Weights.create(random_negatives(model.config)).at(1)
    loss = functools.partial(objective.total, model=model, weights=weights)
    with jax.default_matmul_precision("highest"):
        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (value, _), gradients = step(side.params(model), side.batch(CHECK_ROWS), Keys.at(model.config.seed, 0))
    tensors = to_format(jax.device_get(gradients), "msfl", model.config)
    save_file(tensors | {"loss": np.array([value], np.float64)}, Path(side.plan.folder) / "check_ours.safetensors")


def random_negatives(config: Any) -> Any:
    """The configuration with negatives drawn alike."""
    matching = dataclasses.replace(config.objective.instance_matching, negatives="random")
    return dataclasses.replace(config, objective=dataclasses.replace(config.objective, instance_matching=matching))


def full(side: Side, rows: int, words: str) -> Built:
    """A whole training step as `msfl pretrain` runs it: masks and negatives drawn, metrics counted, AdamW."""
    from msfl_jax.config import MeshConfig
    from msfl_jax.objective import Weights
    from msfl_jax.parallel.mesh import make_mesh
    from msfl_jax.parallel.sharding import shardings
    from msfl_jax.train.optimizer import make_optimizer
    from msfl_jax.train.state import TrainState
    from msfl_jax.train.step import jit_train_step

    jax, model = side.jax, side.model(words)
    config, jnp = model.config, jax.numpy
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    with jax.set_mesh(mesh):
        params = side.params(model)
        opt_state = jax.jit(optimizer.init)(params)
        # At step 1: at step 0 instance matching has no weight yet, whatever its ramp.
        state = TrainState(jnp.int32(1), params, opt_state, jnp.int32(0))
        state = jax.device_put(state, shardings(state, mesh))
        step = jit_train_step(
            state, mesh, model=model, weights=Weights.create(config), optimizer=optimizer, seed=config.seed
        )
        batch = side.batch(rows)
        program, seconds = _compiled(step, state, batch)
    box = [state]

    def dispatch() -> Any:
        box[0], metrics = program(box[0], batch)
        return metrics.loss__total.total

    del state, params, opt_state
    return Built(dispatch, program, seconds)


def _compiled(function: Any, *arguments: Any) -> tuple[Any, float]:
    begin = time.perf_counter()
    return function.lower(*arguments).compile(), time.perf_counter() - begin


def component(side: Side, rows: int, part: str, words: str) -> Built:
    """Forward and backward pass of one part alone."""
    jax, model = side.jax, side.model(words)
    given, states = common.load_batch(side.plan, rows), common.random_states(model.config, rows)
    loss, leaves, inputs = _local(model, given, states) if part == "local" else _encoder(model, part, given, states)
    leaves = side.params(model)[leaves] if isinstance(leaves, str) else leaves
    arguments = jax.device_put((leaves, inputs))
    program, seconds = _compiled(jax.jit(jax.value_and_grad(loss)), *arguments)
    return Built(lambda: program(*arguments)[0], program, seconds)


def _local(model: Any, given: Mapping[str, Any], states: Mapping[str, Any]) -> tuple[Callable[..., Any], Any, Any]:
    """The local loss as the objective calls it, of random regions and sentences."""
    from msfl_jax import losses

    options, dtype = model.config.objective.local_alignment, model.config.model.compute_dtype
    names = ("attention", "region_scale", "sentence_scale", "aggregate", "logit_scale")
    how = {name: getattr(options, name) for name in names} | {"block": options.block or None}

    def loss(leaves: Any, mask: Any) -> Any:
        return losses.local_alignment(*(leaf.astype(dtype) for leaf in leaves), mask, **how)

    leaves = (0.1 * states["regions"], 0.1 * states["sentences"])
    return loss, leaves, common.unit_mask(dict(given), model.config)


def _encoder(
    model: Any, part: str, given: Mapping[str, Any], states: Mapping[str, Any]
) -> tuple[Callable[..., Any], str, dict[str, Any]]:
    """One part's weighted sum of outputs, the name of its parameters, and its inputs."""
    from msfl_jax import encoders

    image, vision = model.config.image, model.config.model.vision
    how = {"normalisation": image.normalisation, "mean": image.mean, "deviation": image.deviation}

    def patches(x: Any) -> Any:
        return encoders.patchify(encoders.normalise_image(x["image"], **how), vision.patch_size)

    def run(params: Any, x: Any) -> Any:
        apply = functools.partial(getattr(model, name).apply, {"params": params})
        match part:
            case "vision":
                return apply(patches(x)).patches
            case "masked":
                return apply(encoders.take(patches(x), x["kept"]), x["kept"]).patches
            case "text":
                return apply(x["token_ids"])
        return apply(x["visible"], x["cls"] if vision.cls_token else None, x["restore"])

    def loss(params: Any, x: Any) -> Any:
        outputs = run(params, x)
        return (outputs.astype("float32") * x["weights"][:, : outputs.shape[1]]).sum()

    name = {"text": "text", "decoder": "pixel_decoder"}.get(part, "vision")
    needed = {"vision": ["image"], "masked": ["image", "kept"], "text": ["token_ids"]}
    inputs = {key: given[key] for key in needed.get(part, ["restore"])}
    if part == "decoder":
        inputs |= {key: states[key] for key in ("visible", "cls")}
    weights = {"text": "text_weights", "decoder": "pixel_weights"}.get(part, "image_weights")
    return loss, name, inputs | {"weights": states[weights]}


def time_row(side: Side, part: str, words: str, rows: int) -> dict[str, Any]:
    """One row; what fails says so instead of numbers."""
    row: dict[str, Any] = {"side": "ours", "part": part, "variant": words, "batch": rows}
    if time.time() >= side.plan.deadline:
        return row | {"error": "not begun: no time left"}
    try:
        built = full(side, rows, words) if part == "full" else component(side, rows, part, words)
        timed = common.measure(built.dispatch, side.jax.block_until_ready, side.plan, on_cpu=side.backend == "cpu")
        if side.plan.profile:
            _profile(side, built, f"{part} {words} {rows}")
    except Exception as error:  # the other rows are still worth having
        return row | {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]}
    first = built.seconds + timed.first
    return row | {"steps": timed.steps, "first_s": first, "loss": timed.value, "peak_bytes": _peak(built.program)}


def _profile(side: Side, built: Built, name: str) -> None:
    """Writes a trace of `step_trace.STEPS` steps, once: a second visit finds it there."""
    folder = Path(side.plan.profile) / name.replace(" ", "-")
    if folder.exists():
        return
    with side.jax.profiler.trace(str(folder)):
        for _ in range(step_trace.STEPS):
            side.jax.block_until_ready(built.dispatch())
    (folder / "program.txt").write_text(built.program.as_text())


def _peak(program: Any) -> int | None:
    """Bytes of a program's arguments, results and temporaries, donated ones counted once."""
    memory = program.memory_analysis()
    if memory is None:
        return None
    arrays = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return arrays + memory.temp_size_in_bytes


def main(mode: str, plan: Plan) -> None:
    """Runs a check, or the rows of a mode that the plan's expression names."""
    common.pin(plan.threads)
    side = Side(plan)
    if mode == "check":
        return check(side)
    ways = (MAIN if mode == "main" else EXTRA)[side.backend]
    chosen = [("full", words) for words in ways]
    if mode == "main":
        chosen += [("local", ways[0]), *((part, words) for part in PARTS for words in ways)]
    for rows in plan.batches:
        for part, words in chosen:
            if re.search(plan.rows, f"ours {part} {words}"):
                common.report(time_row(side, part, words, rows))


if __name__ == "__main__":
    main(sys.argv[1], Plan.read(sys.argv[2]))
