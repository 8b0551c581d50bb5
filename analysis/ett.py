"""ETTh1 as the literature scores it: what a last value, yesterday and a ridge on the raw window are worth.

    python analysis/ett.py ETTh1.csv --out runs/ett

The file is described in `datasets/ett`. Writes `scores.csv` (every number with its interval) and `table.md` into the
output folder. With `--run RUN`, a run of sensors that was trained on the first 8640 rows, its frozen latents are
judged beside them. Repeating the last value must give 1.294 and 0.713 at horizon 96 on 2785 windows: a harness that
does not reproduce this has a bug in split, scaling or windows.
"""

import argparse
from pathlib import Path

import pandas as pd

import sciJEPA

TITLES = {
    "persistence": "last value",
    "seasonal_naive": "the day before",
    "raw_ridge": "ridge on the raw window of 512",
    "random_init": "untrained encoder + ridge",
    "jepa_online": "JEPA, online encoder + ridge",
    "jepa_target": "JEPA, target encoder + ridge",
    "jepa_target_window": "JEPA, target encoder and raw window + ridge",
}


def table(scores: pd.DataFrame) -> str:
    """MSE / MAE by method and horizon as Markdown."""
    horizons = list(dict.fromkeys(scores["lead"].astype(str)))
    lines = ["| MSE / MAE | " + " | ".join(horizons) + " |", "| --- |" + " --- |" * len(horizons)]
    for method, title in TITLES.items():
        own = scores[scores["method"] == method]
        if not len(own):
            continue
        cells = []
        for horizon in horizons:
            cell = own[own["lead"].astype(str) == horizon].set_index("metric")["value"]
            cells.append(f"{cell['mse']:.3f} / {cell['mae']:.3f}")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive")
    parser.add_argument("--run")
    parser.add_argument("--out", type=Path, default=Path("runs/ett"))
    parser.add_argument("--horizons", type=int, nargs="+", default=[24, 48, 96, 168, 336, 720])
    arguments = parser.parse_args()
    scores = sciJEPA.protocol("ett", arguments.archive, arguments.run, horizons=arguments.horizons)
    arguments.out.mkdir(parents=True, exist_ok=True)
    scores.to_csv(arguments.out / "scores.csv", index=False)
    (arguments.out / "table.md").write_text(table(scores))
    print(table(scores))
