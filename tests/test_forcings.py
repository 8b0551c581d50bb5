"""Forcings: seen by the context encoder, and by nothing that is a target, a forecast or a score."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from tiny import tiny_config

import sciJEPA
from sciJEPA.archive import open_archive
from sciJEPA.config import RunConfig
from sciJEPA.errors import UserError
from sciJEPA.forcings import check_forcings, masker_of, without_forcings
from sciJEPA.forecasting.issuing import forecast
from sciJEPA.hub import Model, build_jepa, load, tokenizers_of
from sciJEPA.latents import energy
from sciJEPA.masking import MaskingConfig
from sciJEPA.panel import opened_problem, probe
from sciJEPA.plan import describe_run, open_configured
from sciJEPA.pretrain import pretrain
from sciJEPA.synthetic import travelling_waves
from sciJEPA.tokenizers.base import Batch

SERIES = {"kind": "sensors", "patch_time": 2}


def waves() -> xr.Dataset:
    """Two variables, of which t is to be the forcing."""
    return travelling_waves(120, variables=("q", "t"))


def stations() -> xr.Dataset:
    """Three series at each of two stations."""
    rng = np.random.default_rng(0)
    time, dims = pd.date_range("2000", periods=240, freq="h"), ("time", "station")
    fields = {name: (dims, rng.normal(size=(240, 2)).cumsum(axis=0) * 0.1) for name in ("q", "t", "u")}
    return xr.Dataset(fields, {"time": time, "station": ["a", "b"]})


def boxes() -> xr.Dataset:
    """Two fields on a line, in each of four trajectories."""
    rng = np.random.default_rng(1)
    dims, coords = ("trajectory", "time", "x"), {"time": np.arange(12.0), "x": np.arange(8.0)}
    return xr.Dataset({name: (dims, rng.normal(size=(4, 12, 8))) for name in ("q", "t")}, coords)


def config(source: Path | str, forcings: Any = ("t",), **changes: Any) -> RunConfig:
    data = {"archive": str(source), "window": 4, "context": 2, "forcings": list(forcings)}
    return tiny_config(data=data, **{"training__steps": 2, **changes})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Model, xr.Dataset]]:
    """A saved and loaded model of two steps for fields and for series, and their archives."""
    folder = tmp_path_factory.mktemp("forcings")
    found = {}
    kinds = (
        ("grid", waves(), {}),
        ("sensors", stations(), {"tokenizer": SERIES}),
        ("simulation", boxes(), {"tokenizer": {"kind": "simulation", "patch": 4}}),
    )
    for name, ds, changes in kinds:
        ds.to_zarr(folder / f"{name}.zarr", consolidated=False)
        pretrain(config(folder / f"{name}.zarr", **changes), folder / name, progress=False)
        found[name] = load(folder / name), ds
    return found


@pytest.mark.parametrize("kind", ["grid", "sensors", "simulation"])
def test_target_latents_do_not_move_with_a_forcing_and_context_latents_do(kind: str, runs: Any) -> None:
    model, ds = runs[kind]
    moved = ds.assign(t=5 - 2 * ds["t"])
    for encoder, same in (("target", True), ("online", False)):
        before, after = (model.embed(each, encoder=encoder, progress=False)["latents"].values for each in (ds, moved))
        assert np.array_equal(before, after) == same


def test_target_latents_are_those_of_an_archive_without_the_forcing(runs: Any) -> None:
    model, ds = runs["grid"]
    whole, part = (model.embed(each, progress=False) for each in (ds, ds.drop_vars("t")))
    assert np.array_equal(whole["latents"].values, part["latents"].values)
    assert whole.attrs["forcings"] == "t"


@pytest.mark.parametrize("target", ["ema", "vicreg", "salt", "mae"])
@pytest.mark.parametrize("kind", ["grid", "sensors"])
def test_no_objective_has_a_forcing_among_its_targets(target: str, kind: str, runs: Any) -> None:
    model, ds = runs[kind]
    teacher = {"teacher_steps": 1} if target == "salt" else {}
    changes = {"tokenizer": SERIES} if kind == "sensors" else {}
    run = config("", objective={"target": target, **teacher}, **changes)
    jepa = build_jepa(run, model.jepa.tokenizers)
    values = torch.randn(4, *(len(ds.data_vars), 4), *model.spec.shape, generator=torch.Generator().manual_seed(0))
    batch = Batch(values, None, torch.zeros(4, 4, 4), torch.arange(4))
    moved = values.clone()
    moved[:, 1] = 7 - 2 * moved[:, 1]  # t is the second channel
    masker = masker_of(jepa.tokenizer, MaskingConfig(forecast=0, random=1), 0, ("t",))
    plan = masker(range(4), epoch=0, step=0)
    first, second = jepa(batch, plan), jepa(Batch(moved, None, batch.calendar, batch.samples), plan)
    assert torch.equal(first.target, second.target)
    assert not torch.equal(first.context, second.context)
    assert not torch.equal(first.predicted, second.predicted)


def test_a_masked_autoencoder_reconstructs_the_other_channels_alone(runs: Any) -> None:
    model, _ = runs["grid"]
    jepa = build_jepa(config("", objective={"target": "mae"}), model.jepa.tokenizers)
    # patches of 4 x 4 of one of two channels
    assert jepa.predictor.leave["grid"].out_features == 16


@pytest.mark.parametrize("strategy", ["forecast", "blocks", "random"])
def test_tokens_of_a_forcing_are_never_targets(strategy: str, runs: Any) -> None:
    tokenizer = runs["sensors"][0].jepa.tokenizer
    masking = MaskingConfig(**{"forecast": 0.0, strategy: 1.0})
    plan = masker_of(tokenizer, masking, 0, ("t",))(range(200), epoch=0, step=0)
    channels = tokenizer.geometry.coordinates["channel"][0]
    assert set(channels[plan.target.unique()]) == {"q", "u"}
    # 2 stations with q and u: all of the one time ahead, or half of the four series or tokens of the issue window
    assert plan.target.shape[1] == {"forecast": 4, "blocks": 2, "random": 2}[strategy]
    known = np.isin(channels[: plan.context.max() + 1], ["t"]).sum()
    assert all(np.isin(channels[row], ["t"]).sum() == known for row in plan.context)


def test_hidden_channels_are_others_than_forcings(runs: Any) -> None:
    tokenizer = tokenizers_of({"grid": open_archive(travelling_waves(20, variables=("q", "t", "u", "v")))},
                              config(""))["grid"]  # fmt: skip
    masker = masker_of(tokenizer, MaskingConfig(forecast=0, variable=1), 0, ("t",))
    shown = [masker([0], epoch=0, step=step).channels for step in range(50)]
    # q, u and v: half of three, rounded to the even number, is two
    assert all(part is not None and 1 in part and len(part) == 2 for part in shown)
    with pytest.raises(UserError, match="of 4 channels 3 are forcings"):
        masker_of(tokenizer, MaskingConfig(variable=1), 0, ("t", "u", "v"))


@pytest.mark.parametrize("kind", ["grid", "sensors"])
def test_the_panel_forecasts_and_scores_the_others(kind: str, runs: Any, tmp_path: Path) -> None:
    model, ds = runs[kind]
    others = set(ds.data_vars) - {"t"}
    rows = probe(model, ds, lead="1D" if kind == "grid" else "1H", controls="quick", progress=False,
                 out=tmp_path / "probe")  # fmt: skip
    assert set(rows["variable"]) - {"latents"} == others
    assert {"raw_ridge", "pca", "jepa_online", "jepa_target"} <= set(rows["method"])
    assert ("latent_rollout" in set(rows["method"])) == (kind == "grid")
    assert set(xr.open_zarr(tmp_path / "probe" / "forecasts.zarr", consolidated=False).data_vars) == others


def test_ridge_on_the_raw_window_may_read_the_forcing(runs: Any) -> None:
    model, ds = runs["grid"]
    problem = opened_problem(model, ds, None, "1D")
    assert [channel.name for channel in problem.archive.channels] == ["q"]
    assert problem.input_reader.read(np.array([0]), 2).values.shape[1] == 2
    assert problem.reader.read(np.array([0]), 2).values.shape[1] == 1
    # and the statistics of q are those of training
    assert np.array_equal(problem.domain.normalizer.spread, model.normalizer.select([0]).spread)


def test_forecasts_and_probes_of_a_notebook_leave_forcings_out(runs: Any) -> None:
    model, ds = runs["grid"]
    assert set(forecast(model, ds, init="latest", lead="1D", progress=False).data_vars) == {"q"}
    latents = model.embed(ds, progress=False)
    fitted = sciJEPA.ForecastProbe(lead="1D").fit(latents.isel(time=slice(0, 80)), ds)
    assert set(fitted.predict(latents.isel(time=slice(90, 95))).data_vars) == {"q"}


def test_the_supervised_network_reads_forcings_and_answers_for_the_others(runs: Any, tmp_path: Path) -> None:
    from sciJEPA.judging.supervised import Supervised

    for kind, lead, count in (("grid", "1D", 8 * 16), ("sensors", "1H", 2 * 2)):
        model, ds = runs[kind]
        problem = opened_problem(model, ds, None, lead)
        found = Supervised.fit(problem, model.config, model, tmp_path / kind, progress=False)
        assert found.predict(problem.test[:3])[0].shape == (3, count)


def test_energy_is_told_of_the_tokens_that_are_predicted(runs: Any) -> None:
    model, ds = runs["sensors"]
    found = energy(model, ds.isel(time=slice(0, 30)), progress=False)
    assert set(found["token_channel"].values) == {"q", "u"}
    assert np.isfinite(found["energy"]).all()


def test_forcings_are_read_beside_the_chosen_variables(tmp_path: Path) -> None:
    travelling_waves(60, variables=("q", "t", "u")).to_zarr(tmp_path / "three.zarr", consolidated=False)
    run = config(tmp_path / "three.zarr", data__variables=["u"])
    assert open_configured(run)["grid"].variables == ("u", "t")
    described = describe_run(run)
    assert (described["channels"], described["forcings"]) == (["u", "t"], ["t"])


def test_what_cannot_be_a_forcing_is_refused() -> None:
    archive = open_archive(waves().assign(land=(("latitude", "longitude"), np.zeros((8, 16)))))
    for names, words in (
        (("tt",), ["data.forcings", "'tt'", "did you mean"]),
        (("land",), ["data.forcings", "land", "lacks dimension time"]),
        (("q", "t"), ["data.forcings", "q, t", "nothing is left to predict"]),
    ):
        with pytest.raises(UserError) as refused:
            check_forcings(archive, names)
        assert all(word in str(refused.value) for word in words), str(refused.value)
    assert without_forcings(archive, ()) is archive
    assert without_forcings(archive, ("t",)).variables == ("q",)


def test_training_refuses_them_before_it_begins(tmp_path: Path) -> None:
    waves().to_zarr(tmp_path / "two.zarr", consolidated=False)
    with pytest.raises(UserError, match="nothing is left to predict"):
        pretrain(config(tmp_path / "two.zarr", forcings=("q", "t")), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
