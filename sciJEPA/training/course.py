"""What the course of a loss says about the length of a run.

Arrives: the metrics of a run. Leaves: a sentence, or none where there is nothing to say. We decided against a rule that
ends runs: losses rest on a plateau for hundreds of steps before they fall again, and no curve tells a plateau from the
end of what can be learned.
"""

import pandas as pd

SMOOTHED = 5
"""Rows whose median is taken."""
LEVEL = 0.03
"""A loss is level where it stays within this share of its end."""
FALL = 0.08
"""A fall in the second half of a run that is worth a word; learning rates that decay hide much of it at the end."""
RISE = 0.08
"""A rise from the least that is worth a word, after a fall of at least as much: runs that learn stay below 0.03."""
LEAST_ROWS = 12


def length_advice(metrics: pd.DataFrame) -> dict[str, str]:
    """What to make of the length of a run, by the name of the domain, which is empty where there is one.

    Parameters
    ----------
    metrics
        Rows of metrics.csv: ``step`` and ``validation_loss``, or ``NAME.validation_loss`` for each domain.
    """
    losses = {name: metrics[name] for name in metrics if name.endswith("validation_loss")}
    found = {
        name.removesuffix("validation_loss").rstrip("."): _advice(metrics["step"], losses[name]) for name in losses
    }
    return {name: advice for name, advice in found.items() if advice is not None}


def _advice(step: pd.Series, loss: pd.Series) -> str | None:
    there = loss.notna()
    if there.sum() < LEAST_ROWS:
        return None
    step, loss = step[there], loss[there].rolling(SMOOTHED, center=True, min_periods=1).median()
    end, last = loss.iloc[-1], int(step.iloc[-1])
    fall = 1 - end / loss[step >= last / 2].iloc[0]
    if fall > FALL:
        return f"the validation loss fell by {fall:.0%} in the second half of the run: a longer one may well go further"
    lowest = loss.idxmin()
    least = loss[lowest]
    if end > (1 + RISE) * least and loss.loc[:lowest].max() > (1 + RISE) * least:
        return (
            f"the validation loss rose by {end / least - 1:.0%} after step {int(step[lowest])} of {last}: the run "
            "learns its training windows by heart; try about that many steps, or more data"
        )
    away = (loss - end).abs() > LEVEL * abs(end)
    since = int(step[away].max()) if away.any() else int(step.iloc[0])
    if since > last / 2:
        return None
    return (
        f"the validation loss is level since step {since} of {last}: that is all there is to learn, or a plateau "
        "before the dynamics are found; only a longer run can tell"
    )
