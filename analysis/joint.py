"""One backbone for three domains: does sharing help, hurt, or neither?

    python analysis/joint.py --out runs/joint \
        --archive pressure=ncep_slp_natl_daily_2001_2010.nc --archive flow=kolmogorov.nc --archive transformer=ETTh1.csv

Trains a model for each archive alone and one for all of them together, at equal steps and windows per domain; each
model is judged on each of its archives by the forecast probe, beside the archive's own controls.
Writes `scores.csv` (every number) and `table.md` (RMSE / climatology, mean over variables; for trained models the mean
over the seeds and their range) into the output folder. The committed results are in `analysis/results/joint`. The
archives: datasets/ncep-slp-north-atlantic, datasets/ett, and Kolmogorov flow from the solver Exponax (MIT).
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

import sciJEPA

CONTROLS = ["persistence", "climatology", "damped_persistence", "random_init"]
# Leads in steps of the archive, and how its windows are cut; what is not stated is the default.
SETTINGS: dict[str, dict[str, Any]] = {
    "grid": {
        "leads": [1, 2, 3, 5],
        "tokenizer": {"kind": "grid", "patch_time": 4, "patch_latitude": 3, "patch_longitude": 3, "pad": True},
    },
    "box": {"leads": [1, 2, 4, 8], "tokenizer": {"kind": "simulation", "patch_time": 4, "patch": 8, "pad": True}},
    "stations": {
        "leads": [1, 6, 12, 24],
        "tokenizer": {"kind": "sensors", "patch_time": 24},
        "data": {"window": 288, "context": 192},
    },
}


def domain(path: str) -> dict[str, Any]:
    """The section of one archive in a configuration."""
    settings = SETTINGS[sciJEPA.open_archive(path).space.kind]
    return {"data": {**settings.get("data", {}), "archive": path}, "tokenizer": settings["tokenizer"]}


def train(archives: dict[str, str], out: Path, seed: int, training: dict[str, Any]) -> Path:
    """A run on these archives, together if there are several; a finished one is kept."""
    sections = {name: domain(path) for name, path in archives.items()}
    config = sciJEPA.config_from_dict({"seed": seed, "domains": sections, "training": training})
    sciJEPA.pretrain(config, out, resume=out.exists())
    return out


def judge(run: Path, name: str, path: str) -> pd.DataFrame:
    """Scores of a run on one of its archives."""
    scores = run / f"probe-{name}" / "scores.csv"
    if not scores.exists():
        archive = sciJEPA.open_archive(path)
        steps = SETTINGS[archive.space.kind]["leads"]
        lead = [f"{step * archive.cadence:g}H" if archive.calendar != "none" else str(step) for step in steps]
        sciJEPA.probe(run, path, domain=name, lead=lead, controls=CONTROLS, out=scores.parent)
    return pd.read_csv(scores)


def compare(archives: dict[str, str], out: Path, seeds: list[int], training: dict[str, Any]) -> pd.DataFrame:
    """Train and judge every model."""
    tables = []
    for seed in seeds:
        runs = {(name,): train({name: path}, out / f"{name}-{seed}", seed, training) for name, path in archives.items()}
        runs[tuple(archives)] = train(archives, out / f"joint-{seed}", seed, training)
        for names, run in runs.items():
            kind = "alone" if len(names) == 1 else "joint"
            tables += [judge(run, name, archives[name]).assign(domain=name, training=kind, seed=seed) for name in names]
    return pd.concat(tables, ignore_index=True)


def table(scores: pd.DataFrame) -> str:
    """RMSE / climatology by domain, lead and method as Markdown, and what sharing changes."""
    ratios = scores.query("metric == 'rmse_over_climatology' and probe in ('ridge', 'none')")
    means = ratios.groupby(["domain", "lead", "method", "training", "seed"], sort=False)["value"].mean().reset_index()
    head = ["domain", "lead", *CONTROLS[:1], CONTROLS[2], "untrained", "alone", "joint", "joint / alone"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for (name, lead), rows in means.groupby(["domain", "lead"], sort=False):
        by = rows.set_index(["method", "training", "seed"])["value"]
        alone, joint = (by.xs(("jepa_target", kind), level=("method", "training")) for kind in ("alone", "joint"))
        cells = [f"{by[method].mean():.3f}" for method in (CONTROLS[0], CONTROLS[2], "random_init")]
        cells += [f"{part.mean():.3f} ({part.min():.3f} to {part.max():.3f})" for part in (alone, joint)]
        change = joint / alone
        cells.append(f"{change.mean():.3f} ({change.min():.3f} to {change.max():.3f})")
        lines.append("| " + " | ".join([str(name), str(lead), *cells]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--out", type=Path, default=Path("runs/joint"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    training = {"steps": arguments.steps, "batch_size": arguments.batch_size}
    archives = dict(part.split("=", 1) for part in arguments.archive)
    scores = compare(archives, arguments.out, arguments.seeds, training)
    scores.to_csv(arguments.out / "scores.csv", index=False)
    (arguments.out / "table.md").write_text(table(scores))
    print(table(scores))
