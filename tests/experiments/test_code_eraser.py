"""The study of unlearning end to end on models of a moment, and laws of its paths."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import figure_laws
import pandas as pd
import pytest
import torch

from experiments.code_eraser import EXPERIMENT, licences, removals
from experiments.code_eraser import study as study_module
from experiments.code_eraser.checks import checks
from experiments.code_eraser.checks_of_removals import at_damage, at_forgetting
from experiments.code_eraser.paths import DAMAGE, FORGETTING, Measures, noise, of_edits
from experiments.code_eraser.presets import PRESETS, REMOVALS
from experiments.code_eraser.study import Study, build
from interp.experiment.checks import claims
from interp.memorization.recitation import levels, recitation, reduction

_SMOKE = PRESETS["smoke"].setup
SETUP = replace(
    _SMOKE,
    held_out=4,
    training=replace(_SMOKE.training, width=32, layers=1, repeats=120, repeated_lr=4.5e-3),
    epochs=30,
    damage=0.02,
)
PAPER = replace(PRESETS["smoke"], setup=SETUP, lrs=(1e-3,), gammas=(0.5,), counts=(2, 3))
METHODS = {method.name: method for method in REMOVALS["smoke"].methods}
COMPARED = replace(
    REMOVALS["smoke"],
    setup=SETUP,
    methods=(METHODS["CodeEraser"], METHODS["NPO"]),
    neurons=(4, 64),
    masses=(0.9, 0.3),
    scales=(0.1, 1.0),
)
SEED = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("code_eraser")


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    return build(SETUP, SEED, folder / "models")


@pytest.fixture(scope="module")
def paper(folder: Path, study: Study) -> Any:
    del study  # trains the models, which are kept in the folder
    return EXPERIMENT.run(PAPER, SEED, folder, jobs=1, device="cpu")


@pytest.fixture(scope="module")
def compared(folder: Path, study: Study) -> Any:
    del study
    return removals.EXPERIMENT.run(COMPARED, SEED, folder, jobs=1, device="cpu")


def test_every_figure_can_be_read_and_no_claim_is_judged_on_one_seed(paper: Any, compared: Any):
    for results, experiment in ((paper, EXPERIMENT), (compared, removals.EXPERIMENT)):
        assert len({claim.id for claim in results.claims}) == len(results.claims)
        assert {claim.verdict for claim in results.claims} == {"not testable at this scale"}
        assert set(results.figures) <= {*experiment.figures, "verdicts"}
        for figure in results.figures.values():
            figure_laws.check(figure)


def test_claims_are_read_from_the_tables(paper: Any):
    by_id = {claim.id: claim for claim in paper.claims}
    files: Any = paper.tables["files"]
    recited: Any = files[files["data"] == "forget"]
    before = recited[recited["removal"] == "none"]
    after = recited[(recited["removal"] == "CodeEraser") & (recited["point"] == FORGETTING)]
    assert by_id["B1 secrets"].measured == pytest.approx(before["ma"].mean())
    columns = ["ma", "el_3", "el_5", "el_10"]
    expected = reduction(before[columns].mean().to_dict(), after[columns].mean().to_dict())
    assert by_id["B2 CodeEraser"].measured == pytest.approx(expected)
    settings: Any = paper.tables["settings"]
    rises = settings[settings["setting"] == "files"].set_index("value")["rise"]
    assert by_id["B6"].measured == pytest.approx(rises[3] - rises[2])


def recited_before_and_after(
    without: int | None = None, el_10: float = 0.5
) -> dict[str, pd.DataFrame]:
    """Two files on three seeds, before and after GA, which leaves a tenth; on one seed it may not
    get there."""
    columns = ["ma", "el_3", "el_5", "el_10"]
    parts: list[pd.DataFrame] = []
    for seed in range(3):
        for removal, point, share in (("none", "", 1.0), ("GA", FORGETTING, 0.1)):
            if removal == "GA" and seed == without:
                continue
            about = {"removal": removal, "point": point, "data": "forget", "seed": seed}
            part = pd.DataFrame({"file": range(2), **about, **dict.fromkeys(columns, share)})
            parts.append(part.assign(el_10=el_10 * share))
    return {"files": pd.concat(parts, ignore_index=True)}


def test_a_method_that_does_not_forget_on_one_seed_is_not_reproduced():
    (check,) = [one for one in checks(PAPER) if one.id == "B2 GA"]
    check = replace(check, controls={})
    for without, verdict in ((None, "reproduced"), (1, "not reproduced")):
        (claim, *_) = claims([check], recited_before_and_after(without), [0, 1, 2])
        assert (claim.verdict, claim.measured) == (verdict, pytest.approx(0.9))
    # Where nothing was recited before there is no share of it that is gone, nor a failure.
    (claim, *_) = claims([check], recited_before_and_after(el_10=0.0), [0, 1, 2])
    assert (claim.verdict, claim.measured) == ("not testable at this scale", None)


def test_the_clean_model_never_read_the_secrets(study: Study):
    forgotten = study.thresholds["ma"] + 0.1
    assert levels(recitation(study.clean, study.forget))["ma"] <= forgotten
    assert levels(recitation(study.clean, study.others))["ma"] > 0.8
    assert levels(recitation(study.model, study.forget))["ma"] > 0.8


def test_models_of_other_settings_are_not_taken(folder: Path, study: Study):
    """The same folder serves runs with other settings."""
    shorter = replace(SETUP, training=replace(SETUP.training, repeats=1))
    other = build(shorter, SEED, folder / "models")
    again = build(SETUP, SEED, folder / "models")
    assert levels(recitation(other.model, other.forget))["ma"] < 0.8
    for name, value in study.model.module.state_dict().items():
        assert torch.equal(again.model.module.state_dict()[name], value)


def test_a_path_stops_where_the_secrets_are_forgotten_and_the_damage_is_done(
    study: Study, compared: Any
):
    paths: Any = compared.tables["paths"]
    own = paths[(paths["removal"] == "CodeEraser") & (paths["control"] == "")]
    forgotten = own["ma"] <= study.thresholds["ma"]
    assert own["forgotten"].tolist() == forgotten.tolist()
    both = own["forgotten"] & (own["rise"] >= SETUP.damage)
    assert not both.iloc[:-1].any()


def test_the_first_dose_of_a_path_is_the_model_itself(study: Study):
    measures = Measures(study, study.thresholds)
    path = of_edits(measures, noise(study, (0.0, 50.0), draw=0))
    first, same, last = path.frame.to_dict("records")
    assert first["rise"] == same["rise"] == 0.0
    assert first["ma"] == same["ma"]
    assert last["rise"] > 1
    assert set(path.at) >= {DAMAGE}


def test_noise_leaves_the_model_as_it_was(study: Study):
    before = {name: value.clone() for name, value in study.model.module.state_dict().items()}
    (_, changed), (_, larger) = noise(study, (0.1, 0.2), draw=0)
    for name, value in study.model.module.state_dict().items():
        assert torch.equal(value, before[name])
    name = "transformer.h.0.mlp.c_fc.weight"
    original = before[name]
    once = changed.module.state_dict()[name] - original
    assert float(once.std() / original.std()) == pytest.approx(0.1, rel=0.05)
    twice = larger.module.state_dict()[name] - original
    assert torch.allclose(twice, 2 * once, atol=1e-6)


def path(doses: list[float], rises: list[float], levels_of_secrets: list[float]) -> pd.DataFrame:
    table = pd.DataFrame({"dose": doses, "rise": rises, "ma": levels_of_secrets, "damage": 0.1})
    return table.assign(forgotten=table["ma"] <= 0.2)


def test_reading_a_path_by_hand():
    found = path([0, 1, 2, 3], [0.0, 0.05, 0.15, 0.4], [1.0, 0.8, 0.4, 0.1])
    assert at_damage(found, "ma") == pytest.approx(0.6)  # halfway between doses 1 and 2
    assert at_forgetting(found, "rise") == 0.4
    # Nothing is said about a dose that was not measured.
    assert at_damage(path([0, 1], [0.0, 0.09], [1.0, 0.3]), "ma") is None
    assert at_forgetting(path([0, 1], [0.0, 0.09], [1.0, 0.3]), "rise") is None


def test_the_order_of_doses_does_not_matter():
    found = path([0, 1, 2, 3], [0.0, 0.05, 0.15, 0.4], [1.0, 0.8, 0.4, 0.1])
    mixed = found.sample(frac=1, random_state=0)
    for read, column in ((at_damage, "ma"), (at_forgetting, "rise")):
        assert read(mixed, column) == read(found, column)


def test_the_comparison_has_every_removal_that_got_there(compared: Any):
    table: Any = compared.tables["comparison"]
    assert not table["value"].isna().any()
    at = table[(table["measure"] == "ma") & (table["control"] == "")]
    paths: Any = compared.tables["paths"]
    for (removal, control), of_one in paths.groupby(["removal", "control"]):
        if control == "":
            reached = at[(at["removal"] == removal) & (at["point"] == FORGETTING)]
            assert len(reached) == int(of_one["forgotten"].any())


def test_jobs_that_need_the_same_models_wait_for_the_one_that_trains_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trained: list[int] = []

    def fit(model: Any, stream: Any, steps: int, lr: float, **options: Any) -> None:
        trained.append(steps)
        time.sleep(0.05)  # long enough for the other to come by

    monkeypatch.setattr(study_module, "fit", fit)
    # Imports what building needs: two threads that import transformers for the first time collide.
    build(SETUP, SEED, tmp_path / "alone")
    trained.clear()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: build(SETUP, SEED, tmp_path), range(2)))
    assert len(trained) == 3  # the base, and the two models that go on from it


def test_every_random_control_of_the_edit_has_all_its_draws(monkeypatch: pytest.MonkeyPatch):
    given: list[Any] = []
    monkeypatch.setattr(licences, "mlp_maps", lambda *_: [])
    monkeypatch.setattr(licences, "_ordinary", lambda *_: None)
    monkeypatch.setattr(licences, "kronecker_factors", lambda *_, **__: {})
    monkeypatch.setattr(licences, "decompose", lambda *_: {})
    monkeypatch.setattr(licences, "curvature_edit", lambda _, *how: given.append(how))
    preset = licences.Preset(masses=(0.99, 0.9), draws=3)
    about = [about for about, _ in licences._edits(None, preset, seed=50)]
    random = [each for each in about if each["control"]]
    assert [each["draw"] for each in random] == [50, 51, 52] * 2
    assert len(about) - len(random) == 2
    assert [how for how in given if len(how) > 1][:3] == [
        (0.99, "random", 50),
        (0.99, "random", 51),
        (0.99, "random", 52),
    ]
