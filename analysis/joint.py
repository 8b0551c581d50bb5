"""One backbone for three domains: does sharing help, hurt, or neither?

    python analysis/joint.py --out runs/joint --steps 2400 --batch-size 16 \
        --archive pressure=ncep_slp_natl_daily_2001_2010.nc --archive flow=kolmogorov.nc --archive transformer=ETTh1.csv
    python analysis/joint.py --out runs/joint --steps 2400 --batch-size 16 \
        --archive circulation=speedy.zarr --archive reaction=gray_scott.nc --archive airports=nyc_weather2013.csv \
        --variables circulation=z500,t850,u850 --variables airports=temp,dewp,humid,wind_speed,pressure

Trains a model for each archive alone and one for all of them together, at equal steps and windows per domain; each
model is judged on each of its archives by the forecast probe, beside the archive's own controls.
Writes `scores.csv` (every number) and `table.md` (RMSE / climatology, mean over variables, read by a ridge, or by a
local ridge where places have neighbours and the predictor is read too; for trained models the mean over the seeds and
their range) into the output folder; numbers of other archives that are there already stay. The
committed results, of the two sets above, are in `analysis/results/joint`. The archives: the cards
ncep-slp-north-atlantic and ett in `datasets`; hourly weather of 2013 at three airports, of which 2 % of what is used is
missing; two years of daily fields of the circulation model JCM 3.0 (SPEEDY physics, T31); Kolmogorov flow and
Gray-Scott from the solver Exponax.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

import sciJEPA

CONTROLS = ["persistence", "climatology", "damped_persistence", "random_init"]
READ = {"latents": "jepa_target", "latents and what the predictor foresees": "jepa_predicted"}
# Leads in steps of the archive, and how its windows are cut; what is not stated is the default.
LEADS = {"grid": [1, 2, 3, 5], "box": [1, 2, 4, 8], "stations": [1, 6, 12, 24]}


def cut(archive: sciJEPA.Archive) -> dict[str, Any]:
    """Windows and patches for an archive: some 70 to 130 patches a field, a day of hourly series."""
    if archive.space.kind == "box":
        return {"tokenizer": {"kind": "simulation", "patch_time": 4, "patch": 8, "pad": True}}
    if archive.space.kind == "grid":
        rows, columns = (max(3, size // number) for size, number in zip(archive.shape, (8, 16), strict=True))
        patches = {"patch_latitude": rows, "patch_longitude": columns, "pad": True}
        return {"tokenizer": {"kind": "grid", "patch_time": 4, **patches}}
    several = "station" in archive.axes
    tokens = {"tokens": "station" if several else "channel"}
    window = {"window": 144, "context": 96} if several else {"window": 288, "context": 192}
    return {"tokenizer": {"kind": "sensors", "patch_time": 24, **tokens}, "data": window}


def domain(path: str, variables: list[str] | None) -> dict[str, Any]:
    """The section of one archive in a configuration."""
    settings = cut(sciJEPA.open_archive(path, variables=variables))
    return {**settings, "data": {**settings.get("data", {}), "archive": path, "variables": variables}}


def train(archives: dict[str, dict[str, Any]], out: Path, seed: int, training: dict[str, Any]) -> Path:
    """A run on these archives, together if there are several; a finished one is kept, an interrupted one goes on."""
    if not (out / "model").is_dir():
        config = sciJEPA.config_from_dict({"seed": seed, "domains": archives, "training": training})
        sciJEPA.pretrain(config, out, resume=out.exists())
    return out


def judge(run: Path, name: str, path: str) -> pd.DataFrame:
    """Scores of a run on one of its archives."""
    archive = sciJEPA.open_archive(path)
    steps = LEADS[archive.space.kind]
    lead = [f"{step * archive.cadence:g}H" if archive.calendar != "none" else str(step) for step in steps]
    return sciJEPA.probe(run, path, domain=name, lead=lead, controls=CONTROLS, out=run / f"probe-{name}")


def scores_of(
    archives: dict[str, dict[str, Any]], names: list[str], out: Path, seed: int, training: dict[str, Any]
) -> pd.DataFrame:
    """Scores of one model on each of its archives, read where they are there already."""
    run, tables = out / f"{'-'.join(names)}-{seed}", []
    kind = "alone" if len(names) == 1 else "joint"
    for name in names:
        file = run / f"probe-{name}" / "scores.csv"
        if not file.exists():
            train({name: archives[name] for name in names}, run, seed, training)
            judge(run, name, archives[name]["data"]["archive"])
        tables.append(pd.read_csv(file).assign(domain=name, training=kind, seed=seed))
    return pd.concat(tables, ignore_index=True)


def compare(archives: dict[str, dict[str, Any]], out: Path, seeds: list[int], training: dict[str, Any]) -> pd.DataFrame:
    """Train and judge every model."""
    models = [*([name] for name in archives), list(archives)]
    tables = [scores_of(archives, names, out, seed, training) for seed in seeds for names in models]
    return pd.concat(tables, ignore_index=True)


def table(scores: pd.DataFrame) -> str:
    """RMSE / climatology by domain, lead and what is read as Markdown, and what sharing changes."""
    ratios = scores.query("metric == 'rmse_over_climatology'")
    keys = ["domain", "lead", "method", "probe", "training", "seed"]
    means = ratios.groupby([*keys, "steps"], sort=False)["value"].mean().reset_index()
    plain = ["persistence", "damped_persistence"]
    head = ["domain", "steps", "read", "lead", *plain, "untrained", "alone", "joint", "joint / alone"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, rows in means.groupby("domain", sort=False):
        for read, method in READ.items():
            if method not in set(rows["method"]):
                continue
            probe = "local" if method == "jepa_predicted" and "local" in set(rows["probe"]) else "ridge"
            for lead, part in rows.groupby("lead", sort=False):
                by = part.set_index(["method", "probe", "training", "seed"])["value"].sort_index()
                models = [by.xs((method, probe, kind)) for kind in ("alone", "joint")]
                cells = [str(part["steps"].iloc[0]), f"{read} + {probe}", str(lead)]
                cells += [f"{by[control].mean():.3f}" for control in plain]
                cells += [f"{by['random_init', probe].mean():.3f}", *(spread(model) for model in models)]
                lines.append("| " + " | ".join([str(name), *cells, spread(models[1] / models[0])]) + " |")
    return "\n".join(lines) + "\n"


def spread(values: pd.Series) -> str:
    """Mean over seeds and their range."""
    return f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--out", type=Path, default=Path("runs/joint"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--variables", action="append", default=[], metavar="NAME=A,B", help="those of one archive")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    training = {"steps": arguments.steps, "batch_size": arguments.batch_size}
    variables = {name: names.split(",") for name, names in (part.split("=", 1) for part in arguments.variables)}
    paths = dict(part.split("=", 1) for part in arguments.archive)
    archives = {name: domain(path, variables.get(name)) for name, path in paths.items()}
    scores = compare(archives, arguments.out, arguments.seeds, training).assign(**training)
    file = arguments.out / "scores.csv"
    if file.exists():
        others = pd.read_csv(file).query("domain not in @paths")
        scores = pd.concat([others, scores], ignore_index=True)
    scores = scores[scores["metric"].isin(["rmse_over_climatology", "rank"])]  # what is compared here
    scores.to_csv(file, index=False)
    (arguments.out / "table.md").write_text(table(scores))
    print(table(scores))
