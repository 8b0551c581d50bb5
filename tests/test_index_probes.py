import doctest

import numpy as np
import pytest
import xarray as xr
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import r2_score

import sciJEPA.probing.index as home
from sciJEPA.errors import UserError
from sciJEPA.probes import rows_of
from sciJEPA.probing.index import ClassificationProbe, RegressionProbe
from sciJEPA.probing.index_samples import TokenAxes, hold_out, sample_rows
from sciJEPA.probing.logistic import Logistic


def latents(count: int = 400, tokens: int = 6, latent: int = 3) -> xr.Dataset:
    """Noise with the labels that `embed` gives; the second half of the tokens has three times the area."""
    values = np.random.default_rng(0).normal(size=(count, tokens, latent)).astype(np.float32)
    area = np.where(np.arange(tokens) < tokens // 2, 0.25, 0.75) / (tokens / 2)
    return xr.Dataset(
        {"latents": (("time", "token", "latent"), values)},
        coords={
            "time": np.datetime64("2001-01-01", "ns") + np.arange(count) * np.timedelta64(1, "D"),
            "token_area": ("token", area),
        },
        attrs={"model_id": "tiny-1", "window_steps": 4},
    )


def index(ds: xr.Dataset, noise: float = 0.0) -> xr.DataArray:
    """Area mean of the first latent number, in kelvin around 20."""
    mean = ds["latents"].isel(latent=0).weighted(ds["token_area"]).mean("token")
    scatter = noise * np.random.default_rng(1).normal(size=len(mean))
    return (20 + 5 * mean + scatter).rename("nino34").assign_attrs(units="K")


TRAIN, TEST = slice(None, "2001-11-30"), slice("2001-12-01", None)


def test_an_index_that_is_a_mean_of_latents_is_read_from_them() -> None:
    ds = latents()
    truth = index(ds)
    probe = RegressionProbe().fit(ds.sel(time=TRAIN), truth.sel(time=TRAIN))
    found = probe.predict(ds.sel(time=TEST))
    xr.testing.assert_allclose(found.drop_attrs(), truth.sel(time=TEST).drop_attrs(), atol=1e-3)
    assert (found.name, found.attrs["units"], found.attrs["model_id"]) == ("nino34", "K", "tiny-1")


@pytest.mark.parametrize(("kind", "least"), [("ridge", 0.95), ("knn", 0.8), ("mlp", 0.9), ("attentive", 0.5)])
def test_every_kind_learns_and_scores_as_scikit_learn_does(kind: str, least: float) -> None:
    ds = latents()
    truth = index(ds, noise=0.1)
    probe = RegressionProbe(kind=kind).fit(ds.sel(time=TRAIN), truth.sel(time=TRAIN))
    found, score = probe.predict(ds.sel(time=TEST)), probe.score(ds.sel(time=TEST), truth.sel(time=TEST))
    assert score == pytest.approx(r2_score(truth.sel(time=TEST), found), abs=1e-6)
    assert score > least


def test_the_pool_decides_on_what_can_be_read() -> None:
    ds = latents()
    # the index is the area mean: the plain mean has other weights, side by side the probe finds them
    scores = {}
    for pool in ("area", "mean", "flatten"):
        probe = RegressionProbe(pool=pool).fit(ds.sel(time=TRAIN), index(ds).sel(time=TRAIN))
        scores[pool] = probe.score(ds.sel(time=TEST), index(ds).sel(time=TEST))
    # weights 1/12 and 3/12 against 1/6 each: squared correlation 1/6 / (3/144 + 27/144) = 0.8
    assert scores["area"] > 0.999 and scores["flatten"] > 0.999
    assert 0.7 < scores["mean"] < 0.9


def test_missing_tokens_carry_no_weight_in_a_mean_and_are_refused_side_by_side() -> None:
    ds = latents(count=4, tokens=2, latent=1)
    ds["latents"][0, 1] = np.nan
    np.testing.assert_allclose(sample_rows(ds, "time", "area").read(np.array([0]))[0], ds["latents"].values[0, 0])
    with pytest.raises(UserError, match="1 of 4 samples have tokens without latents"):
        sample_rows(ds, "time", "flatten").read(np.arange(4))
    ds["latents"][0] = np.nan
    with pytest.raises(UserError, match="1 samples have no token with latents"):
        sample_rows(ds, "time", "mean")


def test_several_targets_of_trajectories_keep_their_labels() -> None:
    rng = np.random.default_rng(0)
    ds = xr.DataArray(rng.normal(size=(120, 5, 4, 2)), dims=("trajectory", "time", "token", "latent"))
    means = ds.mean(("time", "token")).to_numpy()
    truth = xr.DataArray(
        np.stack([means[:, 0], 1000 * means[:, 1]], axis=1),
        dims=("trajectory", "parameter"),
        coords={"parameter": ["viscosity", "drag"]},
        name="parameters",
    )
    probe = RegressionProbe().fit(ds[:100], truth[:100], dim="trajectory")
    found = probe.predict(ds[100:])
    assert found.dims == ("trajectory", "parameter")
    assert found["parameter"].values.tolist() == ["viscosity", "drag"]
    assert probe.score(ds[100:], truth[100:]) > 0.999


def test_samples_are_matched_by_label() -> None:
    ds = latents()
    truth = index(ds)
    one = RegressionProbe().fit(ds.sel(time=TRAIN), truth)  # a longer record
    two = RegressionProbe().fit(ds.sel(time=TRAIN), truth.sel(time=TRAIN).isel(time=slice(None, None, -1)))
    np.testing.assert_array_equal(one.predict(ds), two.predict(ds))
    with pytest.raises(UserError, match="not given at 66 of the 400 samples along 'time', the first at 2001-12-01"):
        RegressionProbe().fit(ds, truth.sel(time=TRAIN))


def test_nothing_beyond_the_samples_given_is_used() -> None:
    ds, other = latents(), latents()
    other["latents"].loc[{"time": TEST}] = 1e6
    probes = [RegressionProbe(kind="knn").fit(d.sel(time=TRAIN), index(d).sel(time=TRAIN)) for d in (ds, other)]
    np.testing.assert_array_equal(*[probe.predict(ds.sel(time=TEST)) for probe in probes])


def test_times_of_the_fit_are_not_scored() -> None:
    ds = latents()
    for probe, truth in ((RegressionProbe(), index(ds)), (ClassificationProbe(), regimes(ds))):
        probe.fit(ds.sel(time=TRAIN), truth.sel(time=TRAIN))
        with pytest.raises(UserError, match="30 of 31 times to be scored were given to fit, the first 2001-11-01"):
            probe.score(ds.sel(time=slice("2001-11-01", "2001-12-01")), truth)


# --- held out


def test_the_last_samples_of_a_time_axis_are_held_out_with_a_gap() -> None:
    ds = latents(count=20)
    train, validation = hold_out(ds, "time", None, 0.2, 0)
    # 4 of 20 held out; windows of 4 steps: the three issue times before share steps with the first of them
    np.testing.assert_array_equal(validation, [16, 17, 18, 19])
    np.testing.assert_array_equal(train, np.arange(13))
    shuffled = np.random.default_rng(0).permutation(20)
    again = hold_out(ds.isel(time=shuffled), "time", None, 0.2, 0)
    np.testing.assert_array_equal(np.sort(shuffled[again[1]]), validation)


def test_groups_stay_together() -> None:
    groups = np.repeat(np.arange(10), 3)
    ds = latents(count=30).rename(time="snapshot")
    train, validation = hold_out(ds, "snapshot", groups, 0.2, 0)
    assert len(validation) == 6
    assert len(np.unique(groups[validation])) == 2
    assert not set(groups[train]) & set(groups[validation])
    assert sorted([*train, *validation]) == list(range(30))


def test_samples_without_order_are_drawn() -> None:
    ds = latents(count=50).rename(time="trajectory").drop_vars("trajectory")
    (train, validation), again, other = (hold_out(ds, "trajectory", None, 0.2, seed) for seed in (0, 0, 1))
    assert (len(train), len(validation)) == (40, 10)
    np.testing.assert_array_equal(validation, again[1])
    assert validation.tolist() not in (other[1].tolist(), list(range(40, 50)))


# --- classes


def regimes(ds: xr.Dataset) -> xr.DataArray:
    mean = ds["latents"].weighted(ds["token_area"]).mean("token")
    return xr.DataArray(np.array(["AR", "NAO-", "NAO+"])[mean.argmax("latent")], coords={"time": ds["time"]})


def test_regimes_that_are_the_largest_of_three_means_are_recognised() -> None:
    ds = latents()
    truth = regimes(ds)
    probe = ClassificationProbe().fit(ds.sel(time=TRAIN), truth.sel(time=TRAIN))
    assert probe.score(ds.sel(time=TEST), truth.sel(time=TEST)) > 0.95
    assert set(probe.predict(ds).values) == {"AR", "NAO-", "NAO+"}
    chances = probe.predict_proba(ds)
    assert chances.dims == ("time", "class")
    np.testing.assert_allclose(chances.sum("class"), 1, rtol=1e-9)
    np.testing.assert_array_equal(chances["class"][chances.argmax("class")], probe.predict(ds))


def test_the_logistic_regression_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    features, classes = rng.normal(size=(300, 4)) * [1, 2, 3, 4] + 5, rng.integers(0, 3, 300)
    features[:, 0] += classes
    train, validation, strength = np.arange(200), np.arange(200, 300), 0.01
    ours = Logistic((strength,)).fit(rows_of(features), classes, train, validation, count=3)
    # theirs minimises C x summed cross-entropy + |W|^2 / 2; features divided by the root of their summed variance
    scaled = (features - features[train].mean(axis=0)) / np.sqrt(features[train].var(axis=0).sum())
    theirs = LogisticRegression(C=1 / (strength * 200), tol=1e-10, max_iter=10000).fit(scaled[train], classes[train])
    np.testing.assert_allclose(ours.predict(validation), theirs.predict_proba(scaled[validation]), atol=1e-4)


def test_noise_is_classified_as_the_base_rates() -> None:
    rng = np.random.default_rng(0)
    features, classes = rng.normal(size=(600, 20)), (rng.random(600) < 0.25).astype(int)
    probe = Logistic().fit(rows_of(features), classes, np.arange(400), np.arange(400, 600), count=2)
    np.testing.assert_allclose(probe.predict(np.arange(600))[:, 1].mean(), classes[:400].mean(), atol=0.01)
    assert probe.predict(np.arange(600))[:, 1].std() < 0.1


def test_a_class_without_training_samples_is_refused() -> None:
    with pytest.raises(UserError, match="1 of 3 classes never occur in the 2 training samples"):
        Logistic().fit(rows_of(np.eye(4)), np.array([0, 1, 2, 2]), np.arange(2), np.arange(2, 4), count=3)


# --- manners


def test_parameters_in_the_manner_of_scikit_learn() -> None:
    probe = RegressionProbe(kind="knn", seed=3)
    expected = {"kind": "knn", "pool": "area", "standardise": False, "validation": 0.2, "seed": 3}
    assert probe.get_params() == expected
    assert clone(probe).get_params() == probe.get_params()
    assert probe.set_params(pool="mean").pool == "mean"
    with pytest.raises(UserError, match="ClassificationProbe has no parameter 'kind'; it has pool, validation, seed"):
        ClassificationProbe().set_params(kind="knn")


def test_what_cannot_be_fitted_is_refused() -> None:
    ds = latents()
    truth = index(ds)
    with pytest.raises(UserError, match="there is no probe 'tree'"):
        RegressionProbe(kind="tree").fit(ds, truth)
    with pytest.raises(UserError, match="pool must be one of"):
        RegressionProbe(pool="max").fit(ds, truth)
    with pytest.raises(UserError, match="missing at 1 of 400 samples"):
        RegressionProbe().fit(ds, truth.where(truth["time"] != truth["time"][7]))
    with pytest.raises(UserError, match="nino34 does not vary"):
        RegressionProbe().fit(ds, xr.ones_like(truth))
    with pytest.raises(UserError, match="needs the dimension 'trajectory'"):
        RegressionProbe().fit(ds, truth, dim="trajectory")
    with pytest.raises(UserError, match="is not fitted"):
        RegressionProbe().predict(ds)
    with pytest.raises(UserError, match="share between 0 and 1"):
        RegressionProbe(validation=1.0).fit(ds, truth)
    with pytest.raises(UserError, match="has one class only"):
        ClassificationProbe().fit(ds, xr.full_like(truth, 1.0))
    probe = RegressionProbe().fit(ds, truth)
    with pytest.raises(UserError, match="these are 3 from model 'other'"):
        probe.predict(ds.assign_attrs(model_id="other"))


def test_the_examples_run() -> None:
    assert doctest.testmod(home).failed == 0


def test_moments_along_axes_by_hand() -> None:
    # two tokens at (3, 4) and (-3, -4), less the means of their places (0, 0): one axis, (3, 4) / 5, and 5 either way
    axes = TokenAxes(np.zeros((2, 2)), np.array([[0.6], [0.8]]))
    found = axes.moments(np.array([[[3.0, 4.0], [-3.0, -4.0]]]), np.full((1, 2), 0.5))
    np.testing.assert_allclose(found, [[0.0, np.log(5)]], atol=1e-6)


def test_each_layer_has_axes_of_its_own() -> None:
    tokens = xr.DataArray(np.random.default_rng(0).normal(size=(50, 3, 4)), dims=("sample", "token", "latent"))
    axes = TokenAxes.fit(tokens.assign_attrs(layers=2), "sample", np.arange(50)).axes
    assert axes.shape == (4, 4)
    assert not axes[:2, 2:].any() and not axes[2:, :2].any()
    np.testing.assert_allclose(axes.T @ axes, np.eye(4), atol=1e-12)
    joint = TokenAxes.fit(tokens, "sample", np.arange(50)).axes
    assert np.abs(joint[:2, 2:]).min() > 0


def test_a_spread_is_read_from_moments_where_means_are_blind() -> None:
    # a small number whose spread is the target, mixed with a large one: only the axes tell them apart
    rng = np.random.default_rng(0)
    scale = np.exp(rng.normal(size=300))
    noise = rng.normal(size=(300, 32, 2)) * np.stack([0.01 * scale, np.ones(300)], axis=-1)[:, None]
    turn = np.array([[0.6, 0.8], [-0.8, 0.6]])
    values = xr.DataArray(noise @ turn, dims=("sample", "token", "latent"))
    target = xr.DataArray(np.log(scale), dims="sample", name="scale")
    held_out = np.arange(200) >= 150
    scores = {}
    for pool in ("mean", "moments"):
        probe = RegressionProbe(pool=pool, standardise=True)
        probe.fit(values[:200], target[:200], dim="sample", held_out=held_out)
        assert probe.validation_.tolist() == list(range(150, 200))
        scores[pool] = probe.score(values[200:], target[200:])
    assert scores["moments"] > 0.9 and scores["mean"] < 0.1


def test_neighbours_hear_a_small_number_once_it_is_standardised() -> None:
    rng = np.random.default_rng(0)
    values = xr.DataArray(rng.normal(size=(400, 2)) * [1e-3, 1.0], dims=("sample", "latent"))
    target = values[:, 0].rename("small")  # distances are those of the other number
    scores = []
    for standardise in (False, True):
        probe = RegressionProbe(kind="knn", standardise=standardise).fit(values[:300], target[:300], dim="sample")
        scores.append(probe.score(values[300:], target[300:]))
    assert scores[0] < 0.1 and scores[1] > 0.8


@pytest.mark.parametrize("held_out", [np.zeros(300, dtype=bool), np.ones(10, dtype=bool), np.arange(300)])
def test_what_is_held_out_must_be_said_for_each_sample(held_out: np.ndarray) -> None:
    ds = latents(300)
    with pytest.raises(UserError, match="True or False for each of 300 samples"):
        RegressionProbe().fit(ds, index(ds), held_out=held_out)
