"""Memorization in image models end to end on a brief smoke preset, and laws of what its claims are
made of."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import rerun
import torch
from committed import check_columns, check_evidence
from drawing import undrawn
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import interp
from experiments.iar_memorization import EXPERIMENT
from experiments.iar_memorization.build import Study, train_or_load
from experiments.iar_memorization.checks import checks
from experiments.iar_memorization.measures import by_correlation, centre, complete, read
from experiments.iar_memorization.mitigation import (
    HALVED,
    Bench,
    Edited,
    Edits,
    Measured,
    apart,
    at_equal_cost,
    average_over_draws,
    with_intervals,
)
from experiments.iar_memorization.presets import PRESETS, Places, Public, Sampling
from experiments.iar_memorization.quality import Quality, features_of
from interp.data.images import digits
from interp.experiment.checks import claims
from interp.experiment.claims import NOT_TESTABLE
from interp.memorization.extraction import scan
from interp.mitigation.controls import IN_BLOCKS_OF, Selection
from interp.mitigation.weight_edits import in_weights

SEED = 100
# The smoke preset with fewer blocks and draws: as much as every law below needs.
_PRESET = PRESETS["smoke"]
_TOKENIZER = replace(_PRESET.tokenizer, fit=replace(_PRESET.tokenizer.fit, batch_size=16))
SMOKE = replace(
    _PRESET,
    tokenizer=_TOKENIZER,
    model=replace(_PRESET.model, depth=2),
    random_draws=2,
)


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("smoke")
    with undrawn():
        # one job at a time, in this process: others would import everything anew
        experiment = replace(EXPERIMENT, presets={"smoke": SMOKE}, figures={})
        experiment.reproduce("smoke", SEED, folder, jobs=1)
    return folder


@pytest.fixture(scope="module", params=["VAR", "RAR"])
def study(request, out) -> Study:
    return train_or_load(SMOKE, request.param, "overfit", SEED, out / "models")


@pytest.fixture(scope="module")
def tables(out) -> dict[str, pd.DataFrame]:
    return {name: pd.read_parquet(out / "tables" / f"{name}.parquet") for name in EXPERIMENT.tables}


def test_every_claim_has_something_to_look_at_and_none_of_one_seed_is_judged(out):
    found = json.loads((out / "claims.json").read_text())
    assert [claim["id"] for claim in found] == [check.id for check in checks(SMOKE)]
    assert len({claim["id"] for claim in found}) == len(found)
    for claim in found:
        check_evidence(EXPERIMENT, claim["evidence"])
        assert claim["verdict"] == claim["adjusted_verdict"] == NOT_TESTABLE  # one seed
        if claim["measured"] is not None:
            assert claim["low"] <= claim["measured"] <= claim["high"]


def test_tables_have_the_columns_that_figures_are_drawn_from(tables):
    check_columns(EXPERIMENT, tables)


def test_members_are_extracted_from_the_longest_prefix_and_no_image_held_out_is(tables):
    table = tables["extraction"]
    for _, part in table.groupby("family"):
        longest = part[part["prefix"] == part["prefix"].max()]
        assert longest[longest["set"].isin(["planted", "background"])]["exact"].sum() >= 20
        assert (longest["set"] != "held out").sum() == 32
        assert (part["set"] == "held out").sum() == 32 * part["prefix"].nunique()
        assert not part[part["set"] == "held out"]["exact"].any()


def test_models_are_kept_and_a_second_run_gives_the_same_tables_without_training(out):
    states = {file: file.stat().st_mtime_ns for file in out.glob("models/*/state.safetensors")}
    assert len(states) == 2
    finished = [kept for _, kept in EXPERIMENT._work(SMOKE, [SEED], out)]
    rerun.check_same(finished[0])  # of VAR; RAR goes through the same functions
    for family in ("VAR", "RAR"):
        train_or_load(SMOKE, family, "overfit", SEED, out / "models")
    assert {file: file.stat().st_mtime_ns for file in states} == states


def test_claims_and_verdicts_are_those_of_the_tables(out, tables):
    found = claims(checks(SMOKE), tables, [SEED])
    assert [asdict(claim) for claim in found] == json.loads((out / "claims.json").read_text())


def test_a_kept_model_loads_as_a_subject_that_gives_the_same_verdicts(out, study, tables):
    loaded = interp.load(out / "models" / f"{study.family}-overfit-seed{SEED}" / "model")
    assert loaded.fingerprint == study.subject.fingerprint
    table = tables["extraction"]
    for name, batch in study.batches.items():
        for prefix in study.prefixes:
            rows = table[
                (table["family"] == study.family)
                & (table["set"] == name)
                & (table["prefix"] == prefix)
            ]
            assert (
                scan(loaded, batch, prefix, decode_from=2)["exact"].to_numpy()
                == rows["exact"].to_numpy()
            ).all()


def test_one_forward_tells_extraction_from_every_prefix(study, tables):
    table = tables["extraction"]
    for name, batch in study.batches.items():
        hits, losses = read(study.subject, batch, batch_size=7)
        np.testing.assert_allclose(losses, study.subject.losses(batch).detach().mean(1), rtol=1e-5)
        for prefix in study.prefixes:
            rows = table[
                (table["family"] == study.family)
                & (table["set"] == name)
                & (table["prefix"] == prefix)
            ]
            assert (complete(hits, prefix) == rows["exact"].to_numpy()).all()


def test_edits_are_measured_on_the_edited_model_and_leave_no_trace(study, out):
    quality = Quality(study, features_of(SMOKE, out / "models"), 16)
    bench, units = Bench(study, quality), study.subject.anatomy.units("neurons")
    before = study.subject.fingerprint
    zeroed = Selection(units, 1.0).trial("all")
    halved = zeroed.with_edit(lambda units: in_weights(study.subject, units, 0.5))
    measured = bench.run([Edited(zeroed, "zero"), Edited(halved, HALVED)])
    found = measured.table()
    assert study.subject.fingerprint == before
    assert found["exact"].iloc[0] > found["exact"].iloc[1]
    by_image = measured.by_image().groupby(["edit", "image"])["extracted"].mean()
    by_edit = found.set_index("edit")["extracted"]
    assert by_image.groupby("edit").mean().to_dict() == pytest.approx(by_edit.to_dict())
    again = bench.measured(()).over_all
    assert again == {name: found[name].iloc[0] for name in again}
    with torch.no_grad():
        for site in units.sites:
            study.subject.anatomy.out_weight(study.subject.module, site).zero_()
    try:
        by_weights = bench.measured(()).over_all
    finally:
        study.subject.module.load_state_dict(
            train_or_load(
                SMOKE, study.family, "overfit", SEED, out / "models"
            ).subject.module.state_dict()
        )
    assert by_weights["exact"] == found["exact"].iloc[1]
    assert by_weights["planted loss"] == pytest.approx(found["planted loss"].iloc[1], rel=1e-5)
    assert by_weights["distance"] == pytest.approx(found["distance"].iloc[1], rel=1e-3)


def test_distances_are_reproduced_and_vary_with_the_noise(study, out):
    quality = Quality(study, features_of(SMOKE, out / "models"), 32)
    assert quality.distance(1) == quality.distance(1) != quality.distance(2)


def edits(*rows: tuple[str, float, float, float, float]) -> pd.DataFrame:
    """Selection, fraction, extracted, held-out loss and distance."""
    frame = pd.DataFrame(
        rows, columns=["selection", "fraction", "extracted", "held out loss", "distance"]
    )
    edit = np.where(frame["selection"] == "none", "none", HALVED)
    return frame.assign(edit=edit, family="VAR", regime="mixture", seed=0, draw=0)


def test_advantage_at_equal_cost_by_hand():
    """Random units cost 1 a fifth of extraction up to loss 3; distances that rise without less
    extraction gain nothing; where no random units cost as much or as little, nothing is said."""
    table = edits(
        ("none", 0.0, 1.0, 1.0, 10.0),
        ("random", 0.1, 0.8, 2.0, 12.0),
        ("random", 0.2, 0.6, 3.0, 11.0),
        ("score", 0.1, 0.5, 2.5, 12.0),
        ("cheap", 0.1, 0.9, 0.5, 9.0),
        ("dear", 0.1, 0.1, 9.0, 99.0),
    )
    found = at_equal_cost(table).set_index(["edit", "cost", "selection"])["advantage"][HALVED]
    assert found["held out loss", "score"] == pytest.approx(0.7 - 0.5)
    assert found["distance", "score"] == pytest.approx(0.6 - 0.5)
    for name in ("cheap", "dear"):
        assert np.isnan(found["held out loss", name])
        assert np.isnan(found["distance", name])


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_no_advantage_lies_outside_the_costs_that_random_units_reached(seed):
    rng = np.random.default_rng(seed)
    names = ["none", *["random"] * 3, *"abcdef"]
    values = rng.random((len(names), 3))
    table = edits(
        *((name, 0.1 * n, *row) for n, (name, row) in enumerate(zip(names, values, strict=True)))
    )
    is_random = table["selection"].isin(["none", "random"])
    for row in at_equal_cost(table).to_dict("records"):
        reached = table.loc[is_random, row["cost"]]
        compared = reached.min() <= row[row["cost"]] <= reached.max()
        assert np.isfinite(row["advantage"]) == compared
        left = table.loc[is_random, "extracted"]
        assert not compared or left.min() <= row["matched"] <= left.max()


def test_where_every_edit_leaves_everything_no_selection_is_worse_than_random():
    """Seen on a smoke run: the advantage was -1 where random units reached no such cost."""
    table = edits(
        ("none", 0.0, 1.0, 1.0, 5.0), ("random", 0.1, 1.0, 1.1, 5.5), ("score", 0.1, 1.0, 1.2, 6.0)
    )
    assert at_equal_cost(table)["advantage"].isna().all()


def measured_edits(losses: dict[str, float], spread: float) -> Edits:
    """An unedited model and edits of one unit selection each, whose held-out losses lie around the
    given means; every edit removes half of the 8 planted images but the unedited model."""
    names = list(losses)
    about = pd.DataFrame({"selection": names, "fraction": 0.1, "draw": 0, "edit": HALVED})
    about.loc[0, ["fraction", "edit"]] = 0.0, "none"
    about = about.assign(family="VAR", regime="mixture", seed=0)
    noise = spread * np.linspace(-1, 1, 9)
    measured = []
    for number, mean in enumerate(losses.values()):
        extracted = np.arange(8) < (8 if number == 0 else 4)
        over_all = {"extracted": extracted.mean(), "distance": mean, "held out loss": mean}
        held_out = mean + (noise if number else 0 * noise)
        measured.append(Measured(over_all, extracted, extracted, held_out))
    return Edits(about, measured)


def test_intervals_at_equal_cost_are_over_images_and_only_where_nearly_all_resamples_compare():
    losses = {"none": 1.0, "random": 2.0, "score": 1.5, "edge": 1.999}
    found = with_intervals(measured_edits(losses, spread=0.0)).query("cost == 'held out loss'")
    by_name = found.set_index("selection")
    assert by_name.loc["score", "advantage"] == pytest.approx(0.75 - 0.5)
    assert 0 <= by_name.loc["score", "low"] < 0.25 < by_name.loc["score", "high"] <= 0.5
    assert by_name["comparable"].tolist() == [1, 1]

    # The noise of the loss carries the edge out of the range of random units on half the resamples.
    losses["edge"] = 2.0
    measured = measured_edits(losses, spread=0.5)
    flipped = replace(measured.measured[-1], losses=measured.measured[-1].losses[::-1])
    edits = Edits(measured.about, [*measured.measured[:-1], flipped])
    noisy = with_intervals(edits).query("cost == 'held out loss'").set_index("selection")
    assert 0.2 < noisy.loc["edge", "comparable"] < 0.8
    assert np.isnan(noisy.loc["edge", "advantage"])
    assert np.isfinite(noisy.loc["score", "advantage"])


def test_a_method_is_held_against_random_units_of_its_own_blocks_where_there_are_such():
    table = edits(
        ("none", 0.0, 1.0, 1.0, 1.0),
        ("random", 0.1, 0.2, 3.0, 3.0),
        (f"{IN_BLOCKS_OF}score", 0.1, 0.6, 3.0, 3.0),
        ("score", 0.1, 0.5, 2.0, 2.0),
    )
    found = at_equal_cost(table).set_index(["edit", "cost", "selection"])["advantage"][HALVED]
    assert found["held out loss", "score"] == pytest.approx(0.8 - 0.5)
    assert found["distance", "score"] == pytest.approx(0.6 - 0.5)


def test_units_are_chosen_against_other_images_than_edits_are_measured_on(study):
    measured, others = apart(study)
    shared = {tuple(row) for row in measured.tokens.tolist()} & {
        tuple(row) for row in others.tokens.tolist()
    }
    assert len(measured) + len(others) == len(study.batches["held out"])
    assert not shared


def test_draws_are_averaged_before_they_are_compared():
    table = edits(
        ("none", 0.0, 1.0, 1.0, 1.0), ("random", 0.1, 0.4, 2.0, 2.0), ("random", 0.1, 0.6, 4.0, 2.0)
    )
    own = average_over_draws(table).set_index("selection")
    assert own.loc["random", "extracted"] == pytest.approx(0.5)
    assert own.loc["random", "held out loss"] == pytest.approx(3.0)


def test_the_centre_of_blocks_by_hand():
    blocks = pd.DataFrame({"block": [0, 1, 2], "share": [0.0, 0.5, 0.5]})
    assert centre(blocks, "share") == pytest.approx(0.75)
    assert centre(blocks.assign(share=[1.0, 0.0, 0.0]), "share") == 0.0


def test_presets_judge_from_a_prefix_that_is_tried():
    for preset in PRESETS.values():
        assert set(preset.judged) == set(preset.prefixes) == {"VAR", "RAR"}
        assert all(preset.judged[family] in preset.prefixes[family] for family in ("VAR", "RAR"))
        assert preset.edited in preset.regimes
    assert isinstance(PRESETS["paper"], Public)


@pytest.mark.parametrize(
    ("field", "value", "nearest"),
    [
        ("judged", {"VAR": 5, "RARE": 2}, "RAR"),
        ("sampling", {"VQR": Sampling()}, "VAR"),
        ("tried", {"backgrounds": 24}, "background"),
        ("edited", "overfitted", "overfit"),
    ],
)
def test_a_preset_refuses_a_misspelled_key_and_names_the_nearest(field, value, nearest):
    with pytest.raises(ValueError, match=f"^{field}: .*; nearest: {nearest}$"):
        replace(SMOKE, **{field: value})


def test_a_preset_needs_a_value_for_each_family():
    with pytest.raises(ValueError, match="expected a value for each of VAR, RAR, got VAR"):
        replace(SMOKE, at={"VAR": 0.1})


def test_a_method_that_does_not_exist_is_refused_before_anything_is_trained():
    with pytest.raises(ValueError, match="nearest: z_score"):
        list(EXPERIMENT.prepare(replace(SMOKE, methods={"z_scores": {}})))


class Descriptor(torch.nn.Module):
    """Stands for SSCD and Inception: a few numbers about an image."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(1)


CLASSES = 4


def class_folders(place: Path, images, count: int) -> None:
    """`count` pictures of each of the first classes in a folder of its own."""
    for label in range(CLASSES):
        (place / str(label)).mkdir(parents=True)
        for number, pixels in enumerate(images.pixels[images.labels == label][:count]):
            array = (pixels[0] * 255).round().to(torch.uint8).numpy()
            Image.fromarray(array).save(place / str(label) / f"{number}.png")


def test_the_paper_preset_runs_on_what_its_places_name(out, tmp_path):
    """On a tiny model and a folder of digits: candidates are the images of each class that the
    model hits most."""
    images = digits()
    class_folders(tmp_path / "train", images, 5)
    class_folders(tmp_path / "validation", images.rows(slice(900, None)), 4)
    torch.jit.script(Descriptor()).save(tmp_path / "net.pt")
    kept = {
        family: out / "models" / f"{family}-overfit-seed{SEED}" / "model"
        for family in ("VAR", "RAR")
    }
    places = Places(
        models={family: str(folder / "network.safetensors") for family, folder in kept.items()},
        tokenizers={
            family: str(folder / "tokenizer.safetensors") for family, folder in kept.items()
        },
        train=str(tmp_path / "train"),
        validation=str(tmp_path / "validation"),
        copies=str(tmp_path / "net.pt"),
        features=str(tmp_path / "net.pt"),
    )
    small = {
        "places": places,
        "candidates": 2,
        "per_class": 2,
        "last": {"VAR": 16, "RAR": 8},
        "prefixes": SMOKE.prefixes,
    }
    small |= {
        "judged": SMOKE.judged,
        "reference": 12,
        "shares": (0.5,),
        "methods": {"z_score": {}},
        "fractions": (0.1, 0.2),
        "further_random": (),
        "random_draws": 1,
        "active_draws": 1,
        "draws": 12,
        "noise_draws": 2,
        "at": {"VAR": 0.1, "RAR": 0.2},
    }
    without_figures = replace(EXPERIMENT, figures={})
    found = without_figures.run(replace(PRESETS["paper"], **small), 0, tmp_path / "out", jobs=1)
    planted = found.tables["extraction"].query("set == 'planted' and prefix == 0")
    assert (planted.groupby("family").size() == 2 * CLASSES).all()
    halved = found.tables["edits"].query("edit == @HALVED")
    drawn = ~halved["selection"].str.startswith(IN_BLOCKS_OF)
    assert (np.isfinite(halved["distance"]) == drawn).all()
    assert {claim.id for claim in found.claims} == {check.id for check in checks(PRESETS["paper"])}


def test_a_threshold_of_correlation_judges_other_images_than_set_it():
    """The half of the held-out images that sets the threshold lies low, the half that it judges
    lies high."""
    correlations = {"planted": [0.5, 0.5], "background": [0.1, 0.1], "held out": [0.1, 0.8] * 200}
    rows = [
        {"prefix": 0, "set": name, "correlation": value}
        for name, values in correlations.items()
        for value in values
    ]
    found = by_correlation(pd.DataFrame(rows)).query("not fixed").set_index("set")
    assert (found["threshold"] < 0.5).all()
    assert found.loc["held out", "share"] == 1
    assert found.loc["planted", "share"] == 1


def test_a_fixed_threshold_is_judged_on_the_images_that_set_none():
    """The even images, which set the other threshold, all lie high."""
    small = PRESETS["small"]
    [check] = [each for each in checks(small) if each.id == "D1 VAR"]
    images = pd.DataFrame({"image": range(40), "correlation": [0.99, 0.1] * 20})
    table = images.assign(
        family="VAR",
        regime=small.edited,
        set="held out",
        prefix=small.prefixes["VAR"][-1],
    )
    found = check.measure({"extraction": table})
    assert (found.estimate, found.n) == (0, 20)


def test_what_counts_as_the_same_picture_is_set_on_images_that_are_not_measured(monkeypatch):
    def number(_: Bench, batch: interp.Batch) -> np.ndarray:
        return batch.tokens[:, 0].numpy().astype(float)

    monkeypatch.setattr(Bench, "likeness", number)
    held_out = interp.Batch(torch.arange(20)[:, None].expand(-1, 2))
    batches = {"planted": held_out, "held out": held_out}
    bench = Bench(SimpleNamespace(alike=None, batches=batches), None)
    assert bench.batches["held out"].tokens[:, 0].max() < bench.cut
