"""Print the tables of the README and of docs/learned.md from the committed scores.

    python analysis/readme_tables.py

`analysis/results/demo/scores.csv` is what `make demo` left in `runs/demo/probe`, and
`analysis/results/sea_level_pressure/scores.csv` what `analysis/sea_level_pressure.py` left. A test holds the texts to
these.
"""

from pathlib import Path

import pandas as pd
from sea_level_pressure import table

from sciJEPA.scores import format_markdown

RESULTS = Path(__file__).parent / "results"


def demo_table() -> str:
    """The demonstration's upper layer, as Markdown."""
    return format_markdown(pd.read_csv(RESULTS / "demo/scores.csv").query("variable == 'z_upper'"))


def sea_level_pressure_table() -> str:
    """Sea-level pressure, mean over the seeds and their range, as Markdown."""
    return table(pd.read_csv(RESULTS / "sea_level_pressure/scores.csv"))


if __name__ == "__main__":
    print(demo_table())
    print(sea_level_pressure_table())
