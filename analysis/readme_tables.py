"""Print the tables of the README and of docs/learned.md from the committed scores.

    python analysis/readme_tables.py

`analysis/results/demo/scores.csv` is what `scijepa probe runs/demo ARCHIVE --controls quick` leaves after `make demo`,
whose own scores lack the local ridges; the files in `analysis/results/sea_level_pressure` and `analysis/results/speedy`
are what `analysis/climate_panels.py` left. A test holds the texts to these.
"""

import sys
from pathlib import Path

import pandas as pd
from climate_panels import BELOW_LINEAR, difference_table, label_table, part_table, table

from sciJEPA.scores import format_markdown

RESULTS = Path(__file__).parent / "results"
IN_SHORT = [
    ("persistence", "none"),
    ("eof_ridge", "ridge"),
    ("raw_ridge", "ridge"),
    ("raw_ridge", "local"),
    ("random_init", "ridge"),
    ("mae_predicted", "ridge"),
    ("mae_predicted", "local"),
    ("jepa_target", "ridge"),
    ("jepa_predicted", "ridge"),
    ("jepa_predicted", "local"),
]
FEW_LABELS = [("raw_ridge", "ridge"), ("raw_ridge", "local"), ("mae_predicted", "local"), ("jepa_predicted", "local")]
"""Methods and probes of the README's tables; docs/learned.md has all."""


def scores_of(name: str, file: str = "scores.csv") -> pd.DataFrame:
    """Committed scores."""
    return pd.read_csv(RESULTS / name / file, dtype={"lead": str})


def demo_table() -> str:
    """The demonstration's upper layer, as Markdown."""
    return format_markdown(scores_of("demo").query("variable == 'z_upper'"))


def sea_level_pressure_table() -> str:
    """Sea-level pressure, mean over the seeds and their range, as Markdown."""
    return table(scores_of("sea_level_pressure"))


def sea_level_pressure_in_short() -> str:
    """The strongest controls and the judged methods of that table."""
    return table(_chosen(scores_of("sea_level_pressure"), IN_SHORT))


def few_labels_in_short() -> str:
    """The same with fewer training labels, at the leads for which the predictor was trained."""
    labels = _chosen(scores_of("sea_level_pressure", "labels.csv"), FEW_LABELS)
    return label_table(labels[labels["lead"].isin(["1D", "2D", "3D"])])


def _chosen(scores: pd.DataFrame, pairs: list[tuple[str, str]]) -> pd.DataFrame:
    found = zip(scores["method"], scores["probe"], strict=True)
    return scores[[pair in pairs for pair in found]]


def sea_level_pressure_differences() -> str:
    """Sea-level pressure, the best of JEPA's probes against the best control at each lead and seed."""
    return difference_table(scores_of("sea_level_pressure"), "jepa_predicted", "local")


def sea_level_pressure_linear_differences() -> str:
    """The same against linear methods without a network."""
    return difference_table(scores_of("sea_level_pressure"), "jepa_predicted", "local", BELOW_LINEAR)


def sea_level_pressure_scales() -> str:
    """How much of the anomalies' power the forecasts of sea-level pressure keep."""
    return part_table(scores_of("sea_level_pressure", "parts.csv"), "power_ratio")


def label_efficiency_table() -> str:
    """Sea-level pressure with fewer training labels for the probes."""
    return label_table(scores_of("sea_level_pressure", "labels.csv"))


def speedy_table() -> str:
    """The general circulation model, mean over its nine variables."""
    return table(scores_of("speedy"))


TABLES = {
    "Sea-level pressure": sea_level_pressure_table,
    "Sea-level pressure, the README's table": sea_level_pressure_in_short,
    "Sea-level pressure, JEPA against the best control (below zero: better)": sea_level_pressure_differences,
    "Sea-level pressure, JEPA against the best linear control": sea_level_pressure_linear_differences,
    "Sea-level pressure, few labels, the README's table": few_labels_in_short,
    "Sea-level pressure, power of the anomalies forecast over that of the truth": sea_level_pressure_scales,
    "Sea-level pressure, fewer labels": label_efficiency_table,
    "General circulation model, mean over nine variables": speedy_table,
    "The demo's turbulence": demo_table,
}

if __name__ == "__main__":
    for heading, make in TABLES.items():
        try:
            print(f"## {heading}\n\n{make()}")
        except FileNotFoundError as error:
            print(f"{error.filename} is not there, so this table is left out: {heading}", file=sys.stderr)
