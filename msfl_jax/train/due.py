"""What is to be done after a step of training."""

import dataclasses

from msfl_jax.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Due:
    """What is to be done after a step. An evaluation is saved with, so that the best step is always a checkpoint."""

    log: bool
    evaluate: bool
    save: bool
    stop: bool

    @classmethod
    def after(cls, step: int, train: TrainConfig, *, evaluates: bool, stop: bool) -> "Due":
        """What `train` asks for after `step`.

        Args:
          step: the one just taken, counted from 1.
          train: length of the run, and how often what is done.
          evaluates: whether there is anything to evaluate.
          stop: whether the run was asked to end here; then there is no time to evaluate.
        """
        last = step == train.steps

        def every(steps: int) -> bool:
            return steps > 0 and (last or step % steps == 0)

        evaluate = evaluates and every(train.evaluate_every)
        return cls(
            log=every(train.log_every) or last or stop,
            evaluate=evaluate and not stop,
            save=every(train.checkpoint_every) or last or stop or evaluate,
            stop=stop and not last,
        )
