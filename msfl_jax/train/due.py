"""What is to be done after a step of training."""

import dataclasses

from msfl_jax.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Due:
    """What is to be done after a step. An evaluation is saved with, so that the best step is always a checkpoint.

    Attributes:
      log, evaluate, save, stop: what is done.
      owed: an evaluation was due and is left to the session that resumes, as there is no time for it before a stop.
    """

    log: bool
    evaluate: bool
    save: bool
    stop: bool
    owed: bool

    @classmethod
    def after(cls, step: int, train: TrainConfig, *, evaluates: bool, stop: bool) -> "Due":
        """What `train` asks for after `step`.

        Args:
          step: the one just taken, counted from 1.
          train: length of the run, and how often what is done.
          evaluates: whether there is anything to evaluate; after the last step there always is an evaluation then.
          stop: whether the run was asked to end here. The last step ends it anyway, with all that belongs to the end.
        """
        last = step == train.steps
        stop = stop and not last

        def every(steps: int) -> bool:
            return steps > 0 and (last or step % steps == 0)

        evaluate = evaluates and (last or every(train.evaluate_every))
        return cls(
            log=every(train.log_every) or last or stop,
            evaluate=evaluate and not stop,
            save=every(train.checkpoint_every) or last or stop or evaluate,
            stop=stop,
            owed=evaluate and stop,
        )
