"""The PyTorch side of `step.py`, in a process of its own: `python step_torch.py {check,main,extra} PLAN`."""

import functools
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import step_common as common
from step_common import Plan

CHECK_ROWS = 4
# Scores [B, B, S, P] up to which all pairs at once are taken, about six tensors of it in float32, and how many a block has otherwise.
SCORES_AT_ONCE = 2**29
SCORES_PER_BLOCK = 2**26
MATMUL = {"cuda": 8192, "cpu": 1024}
COPIED = {"cuda": 2**30, "cpu": 2**26}
# Biases, scales and what stands alone are not decayed, as on our side.
NOT_DECAYED = re.compile(
    r"(bias|norm\d?\.weight|log_scale|cls_token|mask_token|pos_embed|(position|token_type)_embeddings\.weight)$"
)

MAIN = (("full", "eager"), ("full", "compile"), ("local", "vectorised"), ("local", "blockwise"), ("local", "compile"))
MAIN += tuple((part, "eager") for part in ("vision", "masked", "text", "decoder"))
EXTRA = (("local", "loop"), *((part, "compile") for part in ("vision", "masked", "text", "decoder")))


class Side:
    """The model on its device, and the options of every row."""

    def __init__(self, plan: Plan):
        import torch
        import torch_model

        self.plan, self.torch = plan, torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = torch.bfloat16 if plan.dtype == "bfloat16" else None
        torch.set_num_threads(plan.threads)
        self.settings = common.named(plan.settings)
        self.model = torch_model.Pretraining(self.settings)
        self.load()

    def load(self) -> None:
        """The weights as they were before any step."""
        from safetensors.torch import load_file

        self.model.load(load_file(Path(self.plan.folder) / "weights.safetensors"))
        self.model.to(self.device).train()

    def put(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Arrays on the device; whole numbers as PyTorch indexes with them."""
        from torch_model import to_torch

        return to_torch(arrays, self.device)

    def mark(self) -> Any:
        """What `wait` waits for: all that has been asked of the device so far."""
        if self.device == "cpu":
            return None
        event = self.torch.cuda.Event(blocking=False)
        event.record()
        return event

    def wait(self, pending: tuple[Any, Any]) -> Any:
        """Until a step is done; returns its loss."""
        event, loss = pending
        if event is not None:
            event.synchronize()
        return loss

    def autocast(self) -> Any:
        """Mixed precision where the plan says so."""
        return self.torch.autocast(self.device, dtype=self.dtype or self.torch.bfloat16, enabled=self.dtype is not None)


def check(side: Side) -> None:
    """Writes loss and gradients of a few rows in float32, without TF32."""
    from safetensors.torch import save_file
    from torch_model import split

    side.torch.set_float32_matmul_precision("highest")
    loss = side.model(side.put(common.load_batch(side.plan, CHECK_ROWS)))
    loss.backward()
    gradients = {name: value.grad for name, value in side.model.named_parameters() if value.grad is not None}
    gradients = {name: value.detach().cpu().contiguous() for name, value in split(gradients).items()}
    save_file(
        gradients | {"loss": loss.detach().cpu().double()[None]}, Path(side.plan.folder) / "check_torch.safetensors"
    )


def full(side: Side, rows: int, variant: str) -> Callable[[], tuple[Any, Any]]:
    """A whole training step: loss, gradients, clipping, AdamW with the schedule of the run."""
    torch, model, options = side.torch, side.model, side.settings.config.optimizer
    side.load()
    model.local = local_loss(side, rows)
    batch = side.put(common.load_batch(side.plan, rows))
    run = torch.compile(model, dynamic=False) if variant == "compile" else model
    parameters = dict(model.named_parameters())
    plain = [value for name, value in parameters.items() if NOT_DECAYED.search(name)]
    decayed = [value for name, value in parameters.items() if not NOT_DECAYED.search(name)]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": options.weight_decay}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(options.b1, options.b2), fused=True)
    rates = _rates(options)

    def dispatch() -> tuple[Any, Any]:
        rate = next(rates)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss = run(batch, side.dtype)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), options.clip_norm)
        optimizer.step()
        return side.mark(), loss.detach()

    return dispatch


def _rates(options: Any) -> Iterator[float]:
    """The linear warm-up; a benchmark does not leave it."""
    step = 1
    while True:
        yield options.peak_rate * min(step / max(options.warmup_steps, 1), 1.0)
        step += 1


def local_loss(side: Side, rows: int, variant: str = "") -> Callable[..., Any]:
    """A local loss by name; "" takes what suits the size of the batch."""
    import torch_losses

    config = side.settings.config
    units = config.text.max_sentences + config.objective.local_alignment.include_cls
    scores_of_report = rows * units * common.count_regions(config)
    blockwise = functools.partial(torch_losses.local_blockwise, block=max(1, SCORES_PER_BLOCK // scores_of_report))
    if not variant:
        return blockwise if rows * scores_of_report > SCORES_AT_ONCE else torch_losses.local_vectorised
    if variant == "compile":
        return side.torch.compile(local_loss(side, rows), dynamic=False)
    named = {"loop": torch_losses.local_loop, "vectorised": torch_losses.local_vectorised, "blockwise": blockwise}
    return named[variant]


def component(side: Side, rows: int, part: str, variant: str) -> Callable[[], tuple[Any, Any]]:
    """Forward and backward pass of one part alone."""
    if part == "local":
        return _local(side, rows, variant)
    model, given = side.model, side.put(common.load_batch(side.plan, rows))
    states = side.put(common.random_states(side.settings.config, rows))
    visible, cls = (states[name].requires_grad_() for name in ("visible", "cls"))
    cls = cls if side.settings.config.model.vision.cls_token else None
    runs: dict[str, tuple[Callable[[], Any], Any]] = {
        "vision": (lambda: model.vision(model.pixels(given["image"]))[0], states["image_weights"]),
        "masked": (
            lambda: model.vision(model.pixels(given["image"]), given["kept"])[0],
            states["image_weights"][:, : visible.shape[1]],
        ),
        "text": (lambda: model.text(given["token_ids"]), states["text_weights"]),
        "decoder": (lambda: model.pixel_decoder(visible, cls, given["restore"]), states["pixel_weights"]),
    }
    run, weights = runs[part]
    run = side.torch.compile(run, dynamic=False) if variant == "compile" else run
    leaves = [*model.parameters(), *(leaf for leaf in (visible, cls) if leaf is not None)]
    return _pass(side, lambda: (run().float() * weights).sum(), leaves)


def _local(side: Side, rows: int, variant: str) -> Callable[[], tuple[Any, Any]]:
    """The local loss, as in the whole step, of random regions and sentences of unit scale."""
    from torch_model import local_options

    config = side.settings.config
    mask = side.torch.tensor(common.unit_mask(common.load_batch(side.plan, rows), config), device=side.device)
    states = side.put(common.random_states(config, rows))
    regions, sentences = (states[name].mul_(0.1).requires_grad_() for name in ("regions", "sentences"))
    loss = functools.partial(local_loss(side, rows, variant), **local_options(config))
    return _pass(side, lambda: loss(regions, sentences, mask), [regions, sentences])


def _pass(side: Side, run: Callable[[], Any], leaves: list[Any]) -> Callable[[], tuple[Any, Any]]:
    def dispatch() -> tuple[Any, Any]:
        for leaf in leaves:
            leaf.grad = None
        with side.autocast():
            loss = run()
        loss.backward()
        return side.mark(), loss.detach()

    return dispatch


def time_row(side: Side, part: str, variant: str, rows: int) -> dict[str, Any]:
    """One row; what fails says so instead of numbers."""
    torch, on_gpu = side.torch, side.device == "cuda"
    row: dict[str, Any] = {"side": "torch", "part": part, "variant": variant, "batch": rows}
    if time.time() >= side.plan.deadline:
        return row | {"error": "not begun: no time left"}
    try:
        torch._dynamo.reset()
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        dispatch = full(side, rows, variant) if part == "full" else component(side, rows, part, variant)
        timed = common.measure(dispatch, side.wait, side.plan, on_cpu=not on_gpu)
    except Exception as error:  # the other rows are still worth having
        return row | {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    finally:
        for value in side.model.parameters():
            value.grad = None
    peak = torch.cuda.max_memory_allocated() if on_gpu else None
    return row | {"steps": timed.steps, "first_s": timed.first, "loss": timed.value, "peak_bytes": peak}


def ceilings(side: Side) -> dict[str, Any]:
    """What the device reaches on one large product, in TFLOP/s, and on a copy, in bytes per second."""
    torch, kind, gpu = side.torch, side.device, side.device == "cuda"
    dtype, width = torch.bfloat16 if gpu else torch.float32, MATMUL[side.device]
    left, right = (torch.randn(width, width, device=kind).to(dtype) for _ in range(2))
    source = torch.randn(COPIED[kind] // 4, device=kind)
    target = torch.empty_like(source)
    plan = Plan(**vars(side.plan) | {"steps": 20, "warmup": 5})
    seconds = {}
    for name, work in (("matmul", lambda: left @ right), ("copy", lambda: target.copy_(source))):

        def dispatch(work: Callable[[], Any] = work) -> tuple[Any, Any]:
            kept = work()
            return side.mark(), kept[:1].sum()

        seconds[name] = statistics.median(common.measure(dispatch, side.wait, plan, on_cpu=not gpu).steps)
    return {
        "ceilings": True,
        "matmul_tflops": 2 * width**3 / seconds["matmul"] / 1e12,
        "matmul": f"{width}^3 {str(dtype).removeprefix('torch.')}",
        "copy_bytes_per_s": 2 * COPIED[kind] / seconds["copy"],
        "device": torch.cuda.get_device_name() if gpu else "cpu",
    }


def main(mode: str, plan: Plan) -> None:
    """Runs a check, or the rows of a mode that the plan's expression names."""
    common.pin(plan.threads)
    side = Side(plan)
    if mode == "check":
        return check(side)
    side.torch.set_float32_matmul_precision("high")
    if mode == "main":
        common.report(ceilings(side))
    for rows in plan.batches:
        for part, variant in MAIN if mode == "main" else EXTRA:
            if re.search(plan.rows, f"torch {part} {variant}"):
                common.report(time_row(side, part, variant, rows))


if __name__ == "__main__":
    main(sys.argv[1], Plan.read(sys.argv[2]))
