"""A climate archive, the full control panel: does pretraining beat the controls, at which leads, and for every seed?

    python analysis/climate_panels.py ncep_slp_natl_daily_2001_2010.nc --config slp-north-atlantic --out runs/slp \
        --labels 0.01,0.1
    python analysis/climate_panels.py speedy_t31_daily.zarr --config climate-tiny --set training.steps=2400 \
        --out runs/speedy --seeds 0 --labels 0.1 --controls climatology damped_persistence eof_ridge pca raw_ridge \
        random_init mae mae_predicted

Pretrains with each seed and probes each run; what is finished is not done again. Writes into the output folder:
`scores.csv` (every number about the whole), `parts.csv` (regions, seasons and scales), `labels.csv` (the panel with
fewer training labels, where asked for) and `table.md`, all of which is read from them. The committed results are in
`analysis/results/sea_level_pressure` (datasets/ncep-slp-north-atlantic) and `analysis/results/speedy` (two years
simulated with the general circulation model JCM 3.0, which is SPEEDY's physics at T31: Apache-2.0).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    "mae_predicted": "masked autoencoder, latents and what its predictor foresees + ridge",
    "supervised": "supervised, end to end",
    "jepa_online": "JEPA, online encoder + ridge",
    "jepa_target": "JEPA, target encoder + ridge",
    "jepa_predicted": "JEPA, latents and what its predictor foresees + ridge",
    "latent_rollout": "JEPA, latent rollout",
}
LEADS = ["1D", "2D", "3D", "5D", "7D", "10D"]
SHOWN = ["rmse", "rmse_over_climatology", "acc", "difference_to_best_control", "p_value_adjusted", "rank"]
"""Metrics of the whole that are kept."""
OF_PARTS = ["persistence", "eof_ridge", "raw_ridge", "random_init", "jepa_target", "jepa_predicted"]
PARTS_AT = ["1D", "3D", "5D"]
"""Methods and leads whose parts are kept: the file is to be read by people too."""
LINEAR = ["eof_ridge", "raw_ridge"]
BELOW_LINEAR = "difference_to_best_linear_control"
"""The metric `difference_to_best_control` of a panel whose only controls of note are these."""
OF_LABELS = ["damped_persistence", "eof_ridge", "pca", "raw_ridge", "random_init", "mae", "mae_predicted"]


def trained(archive: str, config: str, out: Path, seed: int, settings: dict[str, Any]) -> Path:
    """The run of one seed."""
    run = out / f"seed-{seed}"
    chosen = sciJEPA.load_config(config, settings | {"data.archive": archive, "seed": seed})
    sciJEPA.pretrain(chosen, run, resume=run.exists())
    return run


def probed(run: Path, archive: str, folder: str, **options: Any) -> pd.DataFrame:
    """Scores of a run."""
    scores = run / folder / "scores.csv"
    if not scores.exists():
        sciJEPA.probe(run, archive, out=scores.parent, **options)
    return pd.read_csv(scores, dtype={"lead": str})


def titled(rows: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Methods and probes of the rows with their titles, in the order of every table."""
    found = set(zip(rows["method"], rows["probe"], strict=True))
    kinds = ("none", "ridge", "local")
    return {
        (method, kind): title.replace("ridge", "local ridge") if kind == "local" else title
        for method, title in TITLES.items()
        for kind in kinds
        if (method, kind) in found
    }


def cells_of(rows: pd.DataFrame) -> str:
    """Mean of a number over seeds, and their range where they differ."""
    values = rows.groupby("seed")["value"].mean()
    spread = f" ({values.min():.3f} to {values.max():.3f})" if values.max() - values.min() > 5e-4 else ""
    return f"{values.mean():.3f}{spread}"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines]) + "\n"


def table(scores: pd.DataFrame, metric: str = "rmse_over_climatology") -> str:
    """RMSE / climatology by method and lead: the mean over variables, then over seeds, and the seeds' range."""
    ratios = scores[scores["metric"] == metric]
    leads = list(dict.fromkeys(ratios["lead"]))
    of_pair = ratios.set_index(["method", "probe", "lead"]).sort_index()
    lines = [
        [title, *(cells_of(of_pair.loc[[(*pair, lead)]]) for lead in leads)] for pair, title in titled(ratios).items()
    ]
    return markdown(["RMSE / climatology", *leads], lines)


def difference_table(
    scores: pd.DataFrame, method: str, kind: str = "ridge", metric: str = "difference_to_best_control"
) -> str:
    """RMSE of a method minus that of the best control, in percent of the latter, for each seed."""
    scores = scores[(scores["method"] == method) & (scores["probe"] == kind)]
    rows = scores.set_index(["variable", "lead", "seed", "metric"]).sort_index()
    variables, seeds = list(dict.fromkeys(scores["variable"])), sorted(scores["seed"].unique())
    lines = []
    for variable in [name for name in variables if name != "latents"]:
        for lead in dict.fromkeys(scores["lead"]):
            cells = [str(variable), str(lead)]
            for seed in seeds:
                cell = rows.loc[(variable, lead, seed)]
                own = cell.loc[metric]
                best = float(cell.loc["rmse", "value"] - own["value"])
                value, low, high = (100 * float(own[name]) / best for name in ("value", "low", "high"))
                cells.append(f"{value:+.1f} [{low:+.1f}, {high:+.1f}]")
            lines.append(cells)
    return markdown(["variable", "lead", *(f"seed {seed}: difference in % [95 %]" for seed in seeds)], lines)


def part_table(parts: pd.DataFrame, metric: str) -> str:
    """A metric by part, lead and method: the mean over variables, then over seeds."""
    rows = parts[parts["metric"].str.startswith(f"{metric}@")]
    titles = titled(rows)
    lines = []
    for name in dict.fromkeys(rows["metric"]):
        for lead in dict.fromkeys(rows["lead"]):
            here = rows[(rows["metric"] == name) & (rows["lead"] == lead)]
            if len(here):  # a season may have too few times at some of the leads
                means = here.groupby(["method", "probe"])["value"].mean()
                lines.append([name.partition("@")[2], lead, *(f"{means[pair]:.3f}" for pair in titles)])
    return markdown(["part", "lead", *titles.values()], lines)


def label_table(labels: pd.DataFrame) -> str:
    """RMSE / climatology by share of the training labels, method and lead."""
    ratios = labels[labels["metric"] == "rmse_over_climatology"]
    leads = list(dict.fromkeys(ratios["lead"]))
    lines = []
    for share in sorted(ratios["labels"].unique()):
        of_share = ratios[ratios["labels"] == share]
        of_pair = of_share.set_index(["method", "probe", "lead"]).sort_index()
        for pair, title in titled(of_share).items():
            lines.append([f"{share:.0%}", title, *(cells_of(of_pair.loc[[(*pair, lead)]]) for lead in leads)])
    return markdown(["labels", "RMSE / climatology", *leads], lines)


def report(scores: pd.DataFrame, parts: pd.DataFrame, labels: pd.DataFrame | None) -> str:
    """All tables with their headings."""
    said = [("RMSE / climatology, mean over the variables", table(scores))]
    for (method, kind), title in titled(scores).items():
        if method in ("jepa_target", "jepa_predicted") and kind != "none":
            heading = f"{title}, against the best control (below zero: better)"
            said.append((heading, difference_table(scores, method, kind)))
            if method == "jepa_predicted" and BELOW_LINEAR in set(scores["metric"]):
                heading = f"{title}, against the best of EOF + ridge and ridges on the raw window"
                said.append((heading, difference_table(scores, method, kind, BELOW_LINEAR)))
    for metric, heading in (
        ("rmse_over_climatology", "RMSE / climatology by region and season"),
        ("power_ratio", "Power of the anomalies forecast over that of the truth, by scale"),
    ):
        if parts["metric"].str.startswith(f"{metric}@").any():
            said.append((heading, part_table(parts, metric)))
    if labels is not None:
        said.append(("RMSE / climatology with fewer training labels", label_table(labels)))
    return "\n".join(f"## {heading}\n\n{text}" for heading, text in said)


def written(rows: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The rows as they are read again: six digits are enough for every number here."""
    rows.to_csv(path, index=False, float_format="%.6g")
    return pd.read_csv(path, dtype={"lead": str})


def run(arguments: argparse.Namespace) -> str:
    """Train and probe every seed, and write the results."""
    archive, out = arguments.archive, arguments.out
    settings = dict(text.split("=", 1) for text in arguments.set)
    whole, fewer = [], []
    for seed in arguments.seeds:
        folder = trained(archive, arguments.config, out, seed, settings)
        controls = arguments.controls
        whole.append(probed(folder, archive, "probe", lead=arguments.lead, controls=controls).assign(seed=seed))
        linear = probed(folder, archive, "probe-linear", lead=arguments.lead, controls=LINEAR)
        linear = linear[linear["metric"] == "difference_to_best_control"]
        whole.append(linear.assign(metric=BELOW_LINEAR, seed=seed))
        if arguments.labels:
            options = {"lead": arguments.lead, "controls": OF_LABELS, "labels": [*arguments.labels, 1.0]}
            fewer.append(probed(folder, archive, "probe-labels", **options).assign(seed=seed))
    rows = pd.concat(whole, ignore_index=True)
    of_parts = rows["metric"].str.contains("@") & rows["method"].isin(OF_PARTS) & rows["lead"].isin(PARTS_AT)
    scores = written(rows[rows["metric"].isin([*SHOWN, BELOW_LINEAR])], out / "scores.csv")
    parts = written(rows[of_parts & ~rows["metric"].str.startswith("rmse@")], out / "parts.csv")
    labels = None
    if fewer:
        rows = pd.concat(fewer, ignore_index=True)
        labels = written(rows[rows["metric"] == "rmse_over_climatology"], out / "labels.csv")
    text = report(scores, parts, labels)
    (out / "table.md").write_text(text)
    return text


def _shares(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive")
    parser.add_argument("--config", default="climate-tiny", help="preset or YAML file")
    parser.add_argument(
        "--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="changes of it, by dotted key"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/panels"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lead", type=lambda text: text.split(","), default=LEADS)
    parser.add_argument("--controls", nargs="+", default="all", help="names, where not all of them")
    parser.add_argument("--labels", type=_shares, default=[], metavar="0.01,0.1", help="shares of the training labels")
    print(run(parser.parse_args()))
