"""Sensors with gaps: how a probe degrades as points go missing, and whether filling them in first would be better.

    python analysis/sensor_gaps.py runs/joint/transformer-0 ETTh1.csv --out runs/gaps

Points of the series are dropped at random (each channel on its own). The encoder sees what is left, either as it is,
with the missing values masked, or filled in first: with the last value, or by linear interpolation in time, which takes
the later end of a gap from beyond the issue time and so knows more than a forecaster may. Probes are fitted and judged
on latents of the same kind of input, against the complete series. Writes `scores.csv` and `table.md` (RMSE /
climatology, mean over channels) into the output folder; the committed ones are in `analysis/results/sensor_gaps`.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

import sciJEPA

SHARES = [0.0, 0.25, 0.5, 0.75]
LEADS = ["6H", "24H"]
SPLIT = (0.7, 0.8)


def thinned(ds: xr.Dataset, share: float, seed: int) -> xr.Dataset:
    """The dataset with this share of the points of every variable missing."""
    random = np.random.default_rng(seed)
    return ds.map(lambda field: field.where(random.random(field.shape) >= share), keep_attrs=True)


def score(model: sciJEPA.Model, given: xr.Dataset, truth: xr.Dataset) -> pd.DataFrame:
    """RMSE over climatology of a probe on latents of `given`, for each lead, mean over channels."""
    latents = sciJEPA.embed(model, given, progress=False)
    cuts = [truth["time"].values[int(share * truth.sizes["time"])] for share in SPLIT]
    parts = (latents.sel(time=slice(*ends)) for ends in ((None, cuts[0]), cuts, (cuts[1], None)))
    train, validation, test = parts
    validation = validation.isel(time=slice(1, None))  # the ends of a slice belong to both
    probe = sciJEPA.ForecastProbe(lead=LEADS).fit(train, truth, validation=validation)
    forecast = probe.predict(test.isel(time=slice(25, None)))  # no outcome of validation is among the inputs
    table = sciJEPA.skill(forecast, truth=truth, against=["climatology"])
    wide = table.pivot(index=["variable", "lead_time"], columns="method", values="rmse")
    ratio = (wide["forecast"] / wide["climatology"]).rename("value").reset_index()
    return ratio.groupby("lead_time", as_index=False)["value"].mean()


def compare(run: str, archive: str, seed: int) -> pd.DataFrame:
    """Scores for every share of missing points, masked and interpolated."""
    model, truth = sciJEPA.load(run), sciJEPA.open_archive(archive).ds.load()
    rows = []
    for share in SHARES:
        gaps = thinned(truth, share, seed)
        carried = xr.Dataset.from_dataframe(gaps.to_dataframe().ffill().bfill())
        carried = carried.map(lambda field, whole=gaps: field.assign_attrs(whole[field.name].attrs))
        filled = gaps.interpolate_na("time", fill_value="extrapolate")
        ways = {"masked": gaps, "last value": carried, "interpolated": filled}
        for way, given in list(ways.items())[: 3 if share else 1]:
            rows.append(score(model, given, truth).assign(missing=share, way=way, seed=seed))
    return pd.concat(rows, ignore_index=True)


def table(scores: pd.DataFrame) -> str:
    """One line a way and lead, one column a share, as Markdown."""
    lines = ["| lead | input | " + " | ".join(f"{share:.0%} missing" for share in SHARES) + " |"]
    lines.append("| --- |" + " --- |" * (1 + len(SHARES)))
    for (lead, way), rows in scores.groupby(["lead_time", "way"], sort=False):
        by = rows.groupby("missing")["value"].mean()
        cells = [f"{by[share]:.3f}" if share in by else "" for share in SHARES]
        lines.append(f"| {pd.Timedelta(lead) / pd.Timedelta('1h'):g} h | {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("archive")
    parser.add_argument("--out", type=Path, default=Path("runs/gaps"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    scores = compare(arguments.run, arguments.archive, arguments.seed)
    scores.to_csv(arguments.out / "scores.csv", index=False)
    (arguments.out / "table.md").write_text(table(scores))
    print(table(scores))
