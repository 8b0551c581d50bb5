from pathlib import Path

import pytest
from tiny import joint_config, tiny_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sciJEPA.archive import Archive, open_archive
from sciJEPA.hub import build_jepa, tokenizers_of
from sciJEPA.loader import WindowReader
from sciJEPA.masking import Masker
from sciJEPA.normalize import fit_normalizer
from sciJEPA.plan import Estimate, describe_run, estimate_time


def test_describe_run_counts_what_there_is(waves: Path) -> None:
    config = tiny_config(waves)
    description = describe_run(config)
    jepa = build_jepa(config, tokenizers_of({"grid": open_archive(waves)}, config))
    assert description["parameters"] == {
        "encoder": sum(p.numel() for p in jepa.encoder.parameters()),
        "predictor": sum(p.numel() for p in jepa.predictor.parameters()),
    }
    # 200 days: 140, 20 and 40, less 3 as a window has 4; patches of 4 x 4 on 8 x 16
    assert description["windows"] == {"train": 137, "validation": 17, "test": 37}
    assert description["tokens"] == {"context": 2 * 8, "window": 4 * 8}
    assert description["patch_values"] == 16
    assert description["epochs"] == pytest.approx(20 * 8 / 137)
    assert description["flops_total"] == 20 * description["flops_per_step"]
    assert description["precision"] == "float32"


def test_describe_run_reads_no_field(waves: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(Archive, "read", refuse)
    describe_run(tiny_config(waves))


@pytest.mark.parametrize("target", ["ema", "vicreg", "sigreg", "mae"])
@pytest.mark.parametrize(
    "masking",
    [{"forecast": 1, "blocks": 0}, {"forecast": 0, "blocks": 1}, {"forecast": 0, "blocks": 0, "random": 1}],
    ids=["forecast", "blocks", "random"],
)
def test_flops_agree_with_a_count_of_a_real_step(target: str, masking: dict, waves: Path) -> None:
    config = tiny_config(
        waves, masking=masking, objective={"target": target}, tokenizer={"patch_latitude": 2, "patch_longitude": 2},
        encoder={"width": 32, "depth": 2, "heads": 2}, predictor={},
    )  # fmt: skip
    archive = open_archive(waves)
    jepa = build_jepa(config, tokenizers_of({"grid": archive}, config))
    samples = list(range(config.training.batch_size))
    batch = WindowReader(archive, fit_normalizer(archive, ((0, 140),))).read(samples, config.data.window)
    plan = Masker(jepa.tokenizer.grid, config.masking, config.seed)(samples, epoch=0, step=0)
    # The counter knows matrix products, and not the fused attention of a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        jepa(batch, plan).terms.total.backward()
    assert describe_run(config)["flops_per_step"] == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_a_joint_run_is_described_by_domain(two_archives: dict[str, Path]) -> None:
    config = joint_config(two_archives)
    description = describe_run(config)
    parts = description["domains"]
    assert list(parts) == ["a", "b"]
    # 100 and 80 days: 70 and 56 for training, less 3 as a window has 4
    assert [part["windows"]["train"] for part in parts.values()] == [67, 53]
    assert [part["batch_size"] for part in parts.values()] == [8, 4]
    assert [part["space"] for part in parts.values()] == [[8, 16], [6, 12]]
    assert [part["channels"] for part in parts.values()] == [["z"], ["q", "t"]]
    assert [part["patch_values"] for part in parts.values()] == [16, 2 * 18]
    assert [part["epochs"] for part in parts.values()] == pytest.approx([6 * 8 / 67, 6 * 4 / 53])
    assert description["flops_per_step"] == parts["a"]["flops_per_step"] + parts["b"]["flops_per_step"]
    archives = {name: open_archive(path) for name, path in two_archives.items()}
    jepa = build_jepa(config, tokenizers_of(archives, config))
    assert description["parameters"]["encoder"] == sum(p.numel() for p in jepa.encoder.parameters())


def test_an_estimate_says_what_it_is_taken_from(waves: Path) -> None:
    config = tiny_config(waves)
    found = estimate_time(config, 1e12)
    assert found.seconds == pytest.approx(1e12 / found.flops_per_second)
    assert found.flops_per_second > 1e7  # any machine of this century
    assert f"{found}".startswith("roughly ")
    assert "a block of the encoder reaches" in found.basis and "in float32" in found.basis


def test_two_devices_count_twice(waves: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sciJEPA.plan._block_rate", lambda *_: 2e9)
    one, two = (estimate_time(tiny_config(waves, training__devices=devices), 1e12) for devices in (1, 2))
    assert (one.seconds, two.seconds) == (500, 250)
    assert "on 2 devices" in two.basis


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.3, "0.3 seconds"), (119, "120 seconds"), (120, "2 minutes"), (7200, "2 hours"), (1e6, "12 days")],
)
def test_times_are_told_in_the_unit_of_a_person(seconds: float, words: str) -> None:
    assert str(Estimate(seconds, 1.0, "a guess")) == f"roughly {words}: a guess"
