"""Step of a run -> learning rate and weight decay: functions of the optimizer step and of nothing else."""

import math


def learning_rate_factor(
    step: int, steps: int, warmup: float, schedule: str = "cosine", cooldown: float = 0.2
) -> float:
    """Linear rise over the first `warmup` of the run, and a fall to zero at its end.

    Parameters
    ----------
    schedule
        "cosine": times half a cosine over all of the run; "constant": a linear fall over the last `cooldown` of it
        (Hägele et al. 2024, https://arxiv.org/abs/2405.18392), so that a run can be made longer from before the fall.

    Examples
    --------
    >>> [round(learning_rate_factor(step, 100, 0.1), 3) for step in (0, 9, 50, 100)]
    [0.1, 0.98, 0.5, 0.0]
    >>> [round(learning_rate_factor(step, 100, 0.1, "constant"), 3) for step in (0, 9, 50, 80, 90, 100)]
    [0.1, 1.0, 1.0, 1.0, 0.5, 0.0]
    """
    rise = min(1.0, (step + 1) / max(1.0, warmup * steps))
    if schedule == "constant":
        return rise * min(1.0, max(0, steps - step) / max(1.0, cooldown * steps))
    return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


def weight_decay_at(step: int, steps: int, start: float, end: float | None) -> float:
    """Weight decay that moves from `start` to `end` along half a cosine; constant without an end.

    >>> [round(weight_decay_at(step, 100, 0.04, 0.4), 3) for step in (0, 50, 100)]
    [0.04, 0.22, 0.4]
    """
    if end is None:
        return start
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
