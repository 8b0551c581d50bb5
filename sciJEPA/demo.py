"""The whole flow in one call: inspect, pretrain, embed, probe; on the embedded archive or on the user's own."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr
from tqdm import tqdm

from sciJEPA.archive import Archive, open_archive
from sciJEPA.config import load_config
from sciJEPA.errors import UserError
from sciJEPA.hub import Model
from sciJEPA.inspection import format_inspection, inspect
from sciJEPA.latents import embed
from sciJEPA.masking import Masker
from sciJEPA.panel import probe, units_of
from sciJEPA.plan import describe_run
from sciJEPA.pretrain import pretrain
from sciJEPA.samples import split_steps
from sciJEPA.scores import format_table
from sciJEPA.synthetic import write_qg_channel


def demo(
    out: str | os.PathLike = "runs/demo",
    *,
    archive: str | os.PathLike | None = None,
    config: str = "demo",
    progress: bool = True,
) -> pd.DataFrame:
    """Inspect, pretrain, embed and probe; prints the table, and where everything lies.

    A step that is complete already is not done again, so a killed demonstration goes on where it was.

    Parameters
    ----------
    out
        The run folder. Beside it lies the embedded archive, unless `archive` is given.
    archive
        An archive of the user's own; without it two-layer quasi-geostrophic turbulence is simulated
        (`sciJEPA.synthetic`).
    config
        Preset or file.
    """
    out = Path(out)
    if archive is None:
        path = out.parent / "qg-channel.zarr"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _say(
                "1/5 archive: simulating 4000 days of two-layer quasi-geostrophic turbulence (simulated, not observed)"
            )
            write_qg_channel(path, progress=_simulation_bar() if progress else None)
    else:
        path = Path(archive)
    _say(f"2/5 inspect: {path}")
    settings = load_config(config, {"data.archive": str(path)})
    print(format_inspection(inspect(path, window=settings.data.window)), file=sys.stderr)
    plan = describe_run(settings)
    _say(
        f"3/5 pretrain: {plan['steps']} steps of {settings.training.batch_size} windows, {plan['tokens']['context']} "
        f"tokens each, {plan['parameters']['encoder']:,} parameters, {plan['flops_total'] / 1e12:.1f} TFLOP in "
        f"{plan['precision']}"
    )
    model = pretrain(settings, out, resume=out.exists(), progress=progress)
    latents = out / "latents.zarr"
    _say(f"4/5 embed: {latents}")
    if not latents.exists():
        embed(model, path, out=latents, progress=progress)
    _say("5/5 probe: JEPA beside its controls, all with the same splits")
    scores = out / "probe" / "scores.csv"
    if scores.exists():
        rows = pd.read_csv(scores)
    else:
        # Without the controls that train a network, and without local ridges: either would take as long again.
        rows = probe(model, path, controls="quick", probes="ridge", out=out / "probe", progress=progress)
    _pictures(model, path, out)
    opened = open_archive(path)
    print(format_table(rows, units_of(opened)))
    print(_where(out, path, model))
    return rows


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _simulation_bar() -> Callable[[float], None]:
    bar = tqdm(
        total=100, desc="simulate", unit="%", disable=None, file=sys.stderr, bar_format="{l_bar}{bar}| {elapsed}"
    )

    def show(share: float) -> None:
        bar.update(round(100 * share) - bar.n)
        if share >= 1:
            bar.close()

    return show


def _pictures(model: Model, path: Path, out: Path) -> None:
    """Training curves, and a mask over real fields; left out where matplotlib is not installed."""
    try:
        from sciJEPA.plots import plot_mask, plot_training
        from sciJEPA.plots.coast import of_earth
    except UserError as error:
        _say(f"no pictures: {error}")
        return
    plot_training(pd.read_csv(out / "metrics.csv"), out / "training.png")
    archive, domain = model.open(path)
    start = split_steps(archive, domain.config.data).test[0][0]
    tokenizer = model.jepa.tokenizer
    masker = Masker(tokenizer.grid, model.config.masking, model.config.seed, tokenizer.channels_per_token)
    fields, role = mask_picture(model, masker, archive, start)
    plot_mask(fields, role, out / "mask.png", coast=of_earth(archive))


def mask_picture(model: Model, masker: Masker, archive: Archive, start: int) -> tuple[xr.DataArray, xr.DataArray]:
    """Anomalies of the first channel over one window, and what each grid point is: 0 unused, 1 context, 2 target."""
    tokenizer, window = model.jepa.tokenizer, model.config.data.window
    plan = masker([start], epoch=0, step=0)
    role = torch.zeros(1, tokenizer.grid.count, 1, tokenizer.patch_size)
    role[0, plan.context[0]], role[0, plan.target[0]] = 1, 2
    time = archive.time[start : start + window]
    channel = archive.channels[0]
    anomaly = archive.read(start, start + window)[:, :1] - model.normalizer.climatology(time)[:, :1]
    labels = {"time": np.asarray(time), "latitude": archive.latitude, "longitude": archive.longitude}
    fields = xr.DataArray(
        anomaly[:, 0],
        labels,
        ("time", "latitude", "longitude"),
        name=channel.name,
        attrs={"units": channel.units, "long_name": f"{channel.name} anomaly"},
    )
    return fields, fields.copy(data=tokenizer.unpatchify(role)[0, 0].numpy().astype(int)).rename("role")


def _where(out: Path, archive: Path, model: Model) -> str:
    lines = {
        "archive": archive,
        "model": out / "model",
        "latents": out / "latents.zarr",
        "scores": out / "probe" / "scores.csv",
        "forecasts": out / "probe" / "forecasts.zarr",
        "pictures": f"{out / 'probe' / 'skill.png'}, {out / 'training.png'}, {out / 'mask.png'}",
        "open it": f'python -c "import sciJEPA; print(sciJEPA.load({str(out)!r}))"   # model {model.id}',
    }
    return "\n".join(f"{name:10} {place}" for name, place in lines.items())
