"""Daily North Atlantic sea-level pressure: does pretraining beat the controls, and does it for every seed?

    python analysis/sea_level_pressure.py ncep_slp_natl_daily_2001_2010.nc --out runs/slp

The archive is described in `datasets/ncep-slp-north-atlantic`. Pretrains with three seeds, probes each run, and writes
`scores.csv` (every number) and `table.md` (RMSE / climatology; for the JEPA the mean over the seeds and their range)
into the output folder; the ones from the last release are committed in `analysis/results/sea_level_pressure`.
"""

import argparse
from pathlib import Path

import pandas as pd

import sciJEPA

TITLES = {
    "persistence": "persistence",
    "damped_persistence": "damped persistence",
    "eof_ridge": "EOF + ridge",
    "pca": "PCA of patches + ridge",
    "raw_ridge": "ridge on the raw window",
    "random_init": "untrained encoder + ridge",
    "mae": "masked autoencoder + ridge",
    "supervised": "supervised, end to end",
    "jepa_online": "JEPA, online encoder + ridge",
    "jepa_target": "JEPA, target encoder + ridge",
    "latent_rollout": "JEPA, latent rollout",
}


def run_seeds(archive: str, config: str, out: Path, seeds: list[int]) -> pd.DataFrame:
    """Pretrain and probe once a seed; what is finished is not done again."""
    tables = []
    for seed in seeds:
        run = out / f"seed-{seed}"
        settings = sciJEPA.load_config(config, {"data.archive": archive, "seed": seed})
        sciJEPA.pretrain(settings, run, resume=run.exists())
        scores = run / "probe" / "scores.csv"
        if not scores.exists():
            sciJEPA.probe(run, archive, lead=["1D", "2D", "3D", "5D"], out=run / "probe")
        tables.append(pd.read_csv(scores).assign(seed=seed))
    return pd.concat(tables, ignore_index=True)


def table(scores: pd.DataFrame) -> str:
    """RMSE / climatology by method and lead as Markdown: the mean over seeds, and their range where they differ."""
    ratios = scores.query("metric == 'rmse_over_climatology'")
    leads = list(dict.fromkeys(ratios["lead"]))
    lines = ["| RMSE / climatology | " + " | ".join(leads) + " |", "| --- |" + " --- |" * len(leads)]
    for method, title in TITLES.items():
        if method not in set(ratios["method"]):
            continue
        cells = []
        for lead in leads:
            values = ratios.loc[(ratios["method"] == method) & (ratios["lead"] == lead), "value"]
            spread = f" ({values.min():.3f} to {values.max():.3f})" if values.max() - values.min() > 5e-4 else ""
            cells.append(f"{values.mean():.3f}{spread}")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive")
    parser.add_argument("--config", default="slp-north-atlantic")
    parser.add_argument("--out", type=Path, default=Path("runs/slp"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    scores = run_seeds(arguments.archive, arguments.config, arguments.out, arguments.seeds)
    scores.to_csv(arguments.out / "scores.csv", index=False)
    (arguments.out / "table.md").write_text(table(scores))
    print(table(scores))
