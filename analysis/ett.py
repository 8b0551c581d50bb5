"""ETTh1 as the literature scores it: what frozen latents of a JEPA are worth beside a ridge on the raw window.

    python analysis/ett.py ETTh1.csv --out runs/ett

The file is described in `datasets/ett`. Pretrains with three seeds on the training rows alone (8640), judges every run
and its controls by the protocol `ett` (one linear map a horizon, its strength chosen on the validation rows), and
writes `scores.csv` (every number with its interval) and `table.md` into the output folder; the committed ones are in
`analysis/results/ett`. What is finished is not done again. Repeating the last value must give 1.294 and 0.713 at
horizon 96 on 2785 windows: a harness that does not reproduce this has a bug in split, scaling or windows.

The configuration was chosen with `--choose NAME`, which judges one of the choices below on the validation rows (one
seed) and leaves the test rows alone; `choices.csv` and `choices.md` hold what came of it.
"""

import argparse
from pathlib import Path

import pandas as pd

import sciJEPA

PLAIN = {
    "persistence": "last value",
    "seasonal_naive": "the day before",
    "raw_ridge": "ridge on the raw window of 512",
}
ENCODERS = {
    "jepa_target": "JEPA, target encoder",
    "random_init": "untrained encoder",
    "mae": "masked autoencoder",
    "jepa_online": "JEPA, online encoder",
}
PUBLISHED = {
    "PatchTST, self-supervised, linear probe": {"24": 0.322, "48": 0.354, "168": 0.419, "336": 0.445, "720": 0.487},
    "PatchTST, supervised": {"96": 0.370, "336": 0.422, "720": 0.447},
    "TS2Vec": {"24": 0.599, "48": 0.629, "168": 0.755, "336": 0.907, "720": 1.048},
    "DLinear": {"96": 0.375, "336": 0.439, "720": 0.472},
}
"""MSE as printed by Nie et al. 2023 (https://arxiv.org/abs/2211.14730), at the horizons of this table."""

CHOICES: dict[str, dict[str, object]] = {
    "preset": {},
    "untrained": {"training.steps": 1, "training.learning_rate": 1e-12},
    "predicts patches": {"objective.target": "mae"},
    "all of the past is shown": {"masking.context_share": 1.0},
    "fills in the past": {"masking.forecast": 0, "masking.random": 1, "masking.hidden_share": 0.4},
    "900 steps": {"training.steps": 900},
    "100 steps": {"training.steps": 100},
    "width 32": {"encoder.width": 32},
    "width 32, embedding and last block": {"encoder.width": 32, "encoder.latent_layers": [0, -1]},
    "embedding and last block": {"encoder.latent_layers": [0, -1]},
    "attends to its own series alone": {"tokenizer.attention": "channel"},
}
"""Changes of the preset that were looked at on the validation rows."""


def run_seeds(archive: str, config: str, out: Path, seeds: list[int], horizons: list[int]) -> pd.DataFrame:
    """Pretrain and judge once a seed; what has no seed is judged once. Scores of all seeds that the folder holds."""
    plain = out / "plain.csv"
    if not plain.exists():
        sciJEPA.protocol("ett", archive, methods=list(PLAIN), horizons=horizons, out=plain)
    for seed in seeds:
        run = out / f"seed-{seed}"
        settings = sciJEPA.load_config(config, {"data.archive": archive, "seed": seed})
        sciJEPA.pretrain(settings, run, resume=run.exists())
        for name in ENCODERS:
            # The latents of an encoder are read once for both of its probes.
            methods, scores = [name, f"{name}_window"], run / "protocol" / f"{name}.csv"
            if not scores.exists():
                sciJEPA.protocol("ett", archive, run, methods=methods, horizons=horizons, out=scores, seed=seed)
    found = [plain, *sorted(out.glob("seed-*/protocol/*.csv"))]
    return pd.concat([pd.read_csv(file, dtype={"lead": str}) for file in found], ignore_index=True)


def choose(archive: str, config: str, out: Path, name: str, horizons: list[int]) -> pd.DataFrame:
    """Validation errors of one of the choices and of the ridge on the raw window; the test rows are not read."""
    run = out / "choices" / name
    changes = {"data.archive": archive, **CHOICES[name]}
    sciJEPA.pretrain(sciJEPA.load_config(config, changes), run, resume=run.exists())
    methods = ["raw_ridge", "jepa_target", "jepa_target_window"]
    sciJEPA.protocol(
        "ett", archive, run, methods=methods, horizons=horizons, split="validation", out=run / "validation.csv"
    )
    found = [
        pd.read_csv(file, dtype={"lead": str}).assign(choice=file.parent.name)
        for file in run.parent.glob("*/validation.csv")
    ]
    return pd.concat(found, ignore_index=True)


def choices_table(scores: pd.DataFrame) -> str:
    """Validation MSE by choice and horizon as Markdown: latents alone / beside the raw window."""
    wide = scores[scores["metric"] == "mse"].pivot_table("value", ["choice", "lead"], "method")
    horizons = list(dict.fromkeys(scores["lead"]))
    lines = ["| validation MSE | " + " | ".join(horizons) + " |", "| --- |" + " --- |" * len(horizons)]
    raw = wide["raw_ridge"].groupby("lead").first()
    lines.append("| ridge on the raw window | " + " | ".join(f"{raw[horizon]:.3f}" for horizon in horizons) + " |")
    for name in [name for name in CHOICES if name in wide.index]:
        own = wide.loc[name]
        cells = [f"{own['jepa_target'][h]:.3f} / {own['jepa_target_window'][h]:.3f}" for h in horizons]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def table(scores: pd.DataFrame, metric: str, published: bool = False) -> str:
    """One error by method and horizon as Markdown: the mean over seeds, and their range where they differ."""
    horizons = list(dict.fromkeys(scores["lead"]))
    chosen = scores[scores["metric"] == metric]
    lines = [f"| {metric.upper()} | " + " | ".join(horizons) + " |", "| --- |" + " --- |" * len(horizons)]
    alone = {name: f"{title} + ridge" for name, title in ENCODERS.items()}
    beside = {f"{name}_window": f"{title} and raw window + ridge" for name, title in ENCODERS.items()}
    for method, title in (PLAIN | alone | beside).items():
        own = chosen[chosen["method"] == method]
        if not len(own):
            continue
        cells = []
        for horizon in horizons:
            values = own.loc[own["lead"] == horizon, "value"]
            spread = f" ({values.min():.3f} to {values.max():.3f})" if values.max() - values.min() > 5e-4 else ""
            cells.append(f"{values.mean():.3f}{spread}")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    for title, values in PUBLISHED.items() if published else ():
        cells = [f"{values[horizon]:.3f}" if horizon in values else "" for horizon in horizons]
        lines.append(f"| {title} (published) | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive")
    parser.add_argument("--config", default="etth1")
    parser.add_argument("--out", type=Path, default=Path("runs/ett"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none of them: what trains no network")
    parser.add_argument("--horizons", type=int, nargs="+", default=[24, 48, 96, 168, 336, 720])
    parser.add_argument("--choose", metavar="CHOICE", choices=CHOICES, help="judge a choice on the validation rows")
    arguments = parser.parse_args()
    if arguments.choose:
        found = choose(arguments.archive, arguments.config, arguments.out, arguments.choose, arguments.horizons)
        found.to_csv(arguments.out / "choices.csv", index=False)
        (arguments.out / "choices.md").write_text(choices_table(found))
        print(choices_table(found))
        raise SystemExit
    scores = run_seeds(arguments.archive, arguments.config, arguments.out, arguments.seeds, arguments.horizons)
    scores.to_csv(arguments.out / "scores.csv", index=False)
    text = "\n".join([table(scores, "mse", published=True), table(scores, "mae"), table(scores, "mase")])
    (arguments.out / "table.md").write_text(text)
    print(text)
