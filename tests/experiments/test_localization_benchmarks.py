"""The localization benchmarks end to end on two models of a moment, and what their claims are made
of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import letters
import numpy as np
import pandas as pd
import pytest
import torch
from committed import check_columns, check_evidence
from drawing import undrawn
from quick import QUICK

import interp
from experiments import localization_benchmarks as benchmarks
from experiments.localization_benchmarks import EXPERIMENT, licence_texts, published, real, study
from experiments.localization_benchmarks.checks import _best, checks
from experiments.localization_benchmarks.checks_of_real import checks_of
from experiments.localization_benchmarks.memorizer import KINDS, Recipe, memorizer
from experiments.localization_benchmarks.presets import PRESETS, Condition
from interp.experiment.checks import Measure, claims, interval, over_items
from interp.experiment.claims import NOT_TESTABLE, Claim, judge
from interp.experiment.experiment import Results, with_changes
from interp.localization import methods
from interp.localization.benchmarks.known_answers import Training

RECIPE = {
    "blocks": 2,
    "width": 32,
    "neurons": 16,
    "vocabulary": 300,
    "repeated": 2,
    "copies": 8,
    "once": 40,
    "others": 8,
    "texts": 60,
    "prefix": 8,
    "length": 8,
}
SETTINGS = replace(
    PRESETS["smoke"],
    recipe=Recipe(**RECIPE),
    injections=(Condition("10%", 0.1, Training(lr=0.05, steps=40)),),
    options=QUICK,
    seeds=2,
)
SMALL = Path(benchmarks.__file__).parent / "results" / "small"


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    pytest.importorskip("faker")
    without_figures = replace(EXPERIMENT, figures={})
    return without_figures.run(SETTINGS, 0, tmp_path_factory.mktemp("run"), jobs=1)


def test_every_method_is_asked_in_inj_and_about_the_look_up(results):
    for table in ("injection", "lookup"):
        assert set(results.tables[table]["method"]) == set(methods())
    assert set(results.tables["deletion"]["method"]) == set(methods()) - {"causal_tracing"}


def test_tables_have_both_seeds_and_stand_beside_what_was_published(results):
    for name, table in results.tables.items():
        if name in EXPERIMENT.tables:
            assert set(table["seed"]) == {0, 1}
        elif name.endswith("summary"):
            assert set(table["seeds"]) == {2}
    for name, model in (
        ("injection_and_published", "ours, 10%"),
        ("deletion_and_published", "ours, all"),
    ):
        beside = results.tables[name].set_index("model")
        assert {"GPT-2 XL", "Pythia-6.9B", model} <= set(beside.index)
        assert {"slimming", "zero_out"} <= set(beside.loc["GPT-2 XL", "method"]) & set(
            beside.loc[model, "method"]
        )


def test_claims_are_l0_to_l8_each_with_its_control(results):
    found = {claim.id.split()[0].rstrip(",") for claim in results.claims}
    assert found == {f"L{n}" for n in range(9)} - {
        "L3"
    }  # which takes two shares; there is one here
    assert len({claim.id for claim in results.claims}) == len(results.claims)
    assert all(claim.control for claim in results.claims)


def test_a_claim_is_judged_over_seeds_and_never_on_one(results):
    of_one = [claim for claim in results.claims if ", seed " in claim.id]
    over_both = [claim for claim in results.claims if ", seed " not in claim.id]
    assert len(of_one) == 2 * len(over_both)
    assert all(claim.seeds == 1 and claim.verdict == NOT_TESTABLE for claim in of_one)
    assert all(claim.seeds == 2 for claim in over_both)
    assert {claim.id for claim in over_both if claim.verdict == NOT_TESTABLE} == {"L2"}


def test_smoke_has_one_seed_and_so_no_verdict(results):
    """A seed that is used nowhere else."""
    one = {
        name: table[table["seed"] == 0].assign(seed=771)
        for name, table in results.tables.items()
        if name in EXPERIMENT.tables
    }
    assert PRESETS["smoke"].seeds == 1
    with undrawn():
        found = replace(EXPERIMENT, figures={}).judge(SETTINGS, [771], one)
    assert {claim.verdict for claim in found.claims} == {NOT_TESTABLE}
    shares = found.tables["injection_summary"][["low", "high"]]
    assert ((shares >= 0) & (shares <= 1)).all(axis=None)


def test_a_sequence_that_was_not_memorized_is_hidden_nowhere_and_does_not_count(results):
    """With norms kept, training left a loss of 3.2 nats per token, and recall was judged all the
    same."""
    settings = replace(SETTINGS, least=0.9)
    (check,) = (check for check in checks(settings) if check.id == "L1 zero_out, 10%")

    def judged(accuracy: float) -> Claim:
        injection = results.tables["injection"].assign(recall=0.9, accuracy=accuracy)
        return claims([check], {"injection": injection}, (0, 1))[0]

    assert judged(0.95).verdict == "reproduced"
    unlearned = judged(0.2)
    assert (unlearned.measured, unlearned.verdict) == (None, NOT_TESTABLE)
    assert "and so count: 0.000" in unlearned.control


def test_the_best_of_many_is_judged_on_other_items_than_chose_it():
    """Of a hundred measures of pure noise the largest mean is far above 0; chosen on other items it
    is not. A measure that is truly best stays best."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.3, (100, 40))

    def measure(values: np.ndarray) -> Measure:
        return over_items("noise", lambda _: pd.Series(values), (-2, 2))

    measures = [measure(values) for values in noise]
    largest = max(interval(one({})).estimate for one in measures)
    assert largest > 0.08
    assert abs(interval(_best(measures)({})).estimate) < 0.08
    best = measure(np.full(40, 0.5))
    assert interval(_best([*measures, best])({})).estimate == pytest.approx(0.5)


def test_pruning_is_judged_from_twelve_blocks_on():
    assert not next(check for check in checks(PRESETS["small"]) if check.id == "L2").testable
    assert next(check for check in checks(PRESETS["paper"]) if check.id == "L2").testable


@pytest.mark.parametrize(
    ("change", "nearest"),
    [
        ({"options": {"sliming": {}}}, "slimming"),
        ({"options": {"slimming": {"presure": 0.1}}}, "pressure"),
        ({"not_deleted": ("causal_trace",)}, "causal_tracing"),
    ],
)
def test_a_method_or_option_that_does_not_exist_is_refused_before_anything_is_trained(
    change, nearest
):
    with pytest.raises(ValueError, match=f"nearest: {nearest}"):
        EXPERIMENT.jobs(replace(SETTINGS, **change), 0)


def test_results_are_written_as_files_that_others_read(results, tmp_path):
    with undrawn():
        results.save(tmp_path, {"preset": "test"})
    assert (tmp_path / "figures" / "verdicts.png").exists()
    assert {file.stem for file in (tmp_path / "tables").iterdir()} == set(results.tables)
    for claim in json.loads((tmp_path / "claims.json").read_text()):
        check_evidence(EXPERIMENT, claim["evidence"])


def test_tables_have_the_columns_that_figures_are_drawn_from(results):
    check_columns(EXPERIMENT, results.tables)


def claim(results: Results, name: str, **changed: pd.DataFrame) -> Claim:
    """One claim over both seeds, on tables of which some are changed."""
    measured = {
        name: table
        for name, table in {**results.tables, **changed}.items()
        if name in EXPERIMENT.tables
    }
    (check,) = (check for check in checks(SETTINGS) if check.id == name)
    return claims([check], measured, (0, 1))[0]


def test_claims_follow_from_their_tables(results):
    recalls = results.tables["injection"].assign(recall=0.0)
    assert claim(results, "L1 zero_out, 10%", injection=recalls).verdict == "opposite"
    assert (
        claim(results, "L1 zero_out, 10%", injection=recalls.assign(recall=0.9)).verdict
        == "reproduced"
    )
    sums = results.tables["sums"]
    for times, verdict in ((2.0, "reproduced"), (1.1, "not reproduced"), (0.5, "opposite")):
        assert claim(results, "L7", sums=sums.assign(joint=times * sums["sum"])).verdict == verdict
    related = results.tables["related"]
    for sign, verdict in ((1.0, "reproduced"), (-1.0, "opposite")):
        fall = sign * related["same"].astype(float)
        assert claim(results, "L6 all", related=related.assign(fall=fall)).verdict == verdict
    blocks = results.tables["blocks"]
    assert (
        claim(
            results, "L8 zero_out", blocks=blocks.assign(fall=(blocks["block"] == -1) * 1.0)
        ).verdict
        == "reproduced"
    )


@pytest.mark.parametrize(
    ("by_random", "by_method", "difference"),
    [
        (0.01, 0.06, 0.01),  # 6 times as much
        (0.01, 0.04, -0.01),  # 4 times as much: more than random neurons cost, but not enough
        (0.02, 0.06, -0.04),
        (
            -0.1,
            0.03,
            0.03,
        ),  # random neurons cost nothing: that accuracy rises under them is not held for the method
        (0.0, 0.0, 0.0),
    ],
)
def test_a_sequence_has_to_lose_five_times_what_it_loses_to_random_neurons(
    results, by_random, by_method, difference
):
    deletion = results.tables["deletion"]
    falls = deletion.assign(
        self_accuracy=-np.where(deletion["method"] == "random", by_random, by_method)
    )
    verdict = "reproduced" if difference > 0 else "not reproduced"
    for blocks in study.BLOCKS:
        found = claim(results, f"L4 slimming, {blocks}", deletion=falls)
        assert found.measured == pytest.approx(difference)
        assert found.verdict == verdict
        assert "at least 5 times what random ones cost" in found.statement


@pytest.mark.parametrize(
    ("times", "verdict"),
    [(3.1, "reproduced"), (2.9, "not reproduced"), (1.1, "not reproduced"), (0.9, "opposite")],
)
def test_recall_has_to_be_three_times_that_of_chance(results, times, verdict):
    (condition,) = SETTINGS.injections
    recalls = results.tables["injection"].assign(recall=times * condition.fraction)
    found = claim(results, "L1 zero_out, 10%", injection=recalls)
    assert found.verdict == verdict
    assert "at least 3 times as many of these as chance" in found.statement


def test_the_memorizer_is_the_same_for_a_seed_and_keeps_its_sets_apart():
    pytest.importorskip("faker")
    one, again, other = (memorizer(Recipe(**RECIPE), seed) for seed in (3, 3, 4))
    assert one.subject.fingerprint == again.subject.fingerprint != other.subject.fingerprint
    assert one.kinds == tuple(kind for kind in KINDS for _ in range(2))
    sets = [one.repeated, one.inject, one.dev, one.reference, one.held_out]
    rows = [tuple(row) for batch in sets for row in batch.tokens.tolist()]
    assert len(rows) == len(set(rows)) == 8 + 4 * 8
    once_more = [again.repeated, again.inject, again.dev, again.reference, again.held_out]
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(sets, once_more, strict=True))


def test_a_model_of_ones_own_is_studied_on_what_it_says_most_of(tmp_path):
    folder = letters.saved(letters.subject(), tmp_path / "model")
    recipe = Recipe(model=str(folder), prefix=20, length=12, repeated=3, others=4, texts=30)
    known = memorizer(recipe, 0)
    assert known.kinds == tuple(kind for kind in licence_texts.corpus() for _ in range(3))
    assert known.repeated.tokens.shape == (len(known.kinds), 32)
    assert len(known.inject) == len(known.held_out) == 4
    assert known.subject.decode(known.held_out.tokens[1].tolist()).startswith("def ")


def test_windows_that_are_not_memorized_are_left_out():
    pytest.importorskip("faker")
    known = memorizer(Recipe(**RECIPE), 3)
    accuracy = study.measure_under(known.subject, [[]], {"repeated": known.repeated})[
        "accuracy"
    ].to_numpy()
    least = float(np.median(accuracy))
    kept = study.memorized_only(known, least)
    assert kept.repeated.tokens.tolist() == [
        row for row, a in zip(known.repeated.tokens.tolist(), accuracy, strict=True) if a >= least
    ]
    assert kept.kinds == tuple(
        kind for kind, a in zip(known.kinds, accuracy, strict=True) if a >= least
    )
    assert kept.repeated.prompt == known.repeated.prompt
    with pytest.raises(ValueError, match="no repeated window was memorized"):
        study.memorized_only(known, 1.1)


def test_published_numbers_are_those_of_the_paper():
    recall = published.injection().set_index(["model", "fraction", "method", "multiple"])["recall"]
    assert recall["GPT-2 124M", 0.001, "slimming", 5] == pytest.approx(0.944)
    assert recall["Pythia-6.9B", 0.01, "hard_concrete", 1] == pytest.approx(0.368)
    assert recall["GPT-2 XL", 0.01, "activation", 2] == pytest.approx(0.05)
    change = published.deletion().set_index(["model", "fraction", "method", "measure"])["change"]
    assert change["Pythia-6.9B", 0.005, "hard_concrete", "self_accuracy"] == pytest.approx(-0.577)
    assert change["Pythia-2.8B", 0.005, "slimming", "negative_accuracy"] == pytest.approx(-0.07)
    assert change["GPT-2 XL", 0.001, "activation", "perplexity_base_2"] == pytest.approx(0.11)
    assert ("Pythia-6.9B", 0.001, "zero_out", 1) not in recall.index


def effects_of(fall: dict[tuple[str, str], float]) -> pd.DataFrame:
    """Rows of the real study: one method at the headline share, 8 windows of 4 texts a set, with
    given falls of accuracy."""
    rows = []
    for data in (*real.JUDGED, *real.IN_FOLDS):
        for selected in ("top", "random", "as active", "lowest"):
            for window in range(8):
                down = fall.get((data, selected), 0.0) * (1 + 0.01 * (window % 3))
                before = dict.fromkeys(
                    ("exact_before", "accuracy_before", "similarity_before"), 1.0
                ) | {"loss_before": 0.0}
                after = dict.fromkeys(("exact", "accuracy", "similarity"), 1 - down) | {
                    "loss": 4 * down
                }
                about = {
                    "method": "m",
                    "selected": selected,
                    "fraction": real.HEADLINE,
                    "k": 117,
                    "seed": 0,
                    "data": data,
                    "window": window,
                }
                rows.append(
                    about | {"source": f"{data} {window // 2}", "activity": 1.0} | before | after
                )
    return pd.DataFrame(rows)


NONE = {"R1": 1, "R2": 1, "R3": 0, "R4": 0, "R5": 1, "R6": 1}
EVERYWHERE = {
    (data, name): 0.5 for data in (*real.JUDGED, *real.IN_FOLDS) for name in ("top", "as active")
}


@pytest.mark.parametrize(
    ("fall", "expected"),
    [
        ({("texts_test", "top"): 0.5, ("texts_test", "random"): 0.01}, NONE | {"R5": 0}),
        ({(name, "top"): 0.5 for name in ("texts_test", "fold: studied")}, NONE),
        (
            {("texts_test", "top"): 0.5, ("texts_test", "as active"): 0.6},
            NONE | {"R2": -1, "R5": 0, "R6": -1},
        ),
        (
            {(name, "top"): 0.5 for name in ("texts_test", "paraphrased")},
            NONE | {"R3": 1, "R5": 0},
        ),
        (
            {(name, "top"): 0.5 for name in ("texts_test", "fold: studied", "fold: unstudied")},
            NONE | {"R4": 1, "R5": 0},
        ),
        (
            {(name, "top"): 0.5 for name in ("texts_test", "memorized", "rules")},
            NONE | {"R5": 0, "R6": 0},
        ),
        (EVERYWHERE, {"R1": 1, "R2": 0, "R3": 0, "R4": 0, "R5": 0, "R6": 0}),
    ],
)
def test_the_question_is_answered_by_what_fell_beyond_what_as_active_units_cost(fall, expected):
    verdicts = {1: "reproduced", 0: "not reproduced", -1: "opposite"}
    tables = {"texts": real.by_text(effects_of(fall))}
    found = {
        check.id.split()[0]: judge(check.measure(tables), check.threshold, check.opposite)
        for check in checks_of(["m"], real.HEADLINE)
    }
    assert found == {name: verdicts[sign] for name, sign in expected.items()}


def test_one_model_is_measured_but_not_judged():
    texts = real.by_text(effects_of({("texts_test", "top"): 0.5}))
    for claim in claims(checks_of(["m"], real.HEADLINE), {"texts": texts.assign(seed=0)}, (0,)):
        assert claim.verdict == NOT_TESTABLE
        assert claim.low <= claim.measured <= claim.high
        assert claim.control


def test_the_real_study_counts_each_text_once():
    rows = effects_of({("texts_test", "top"): 0.5})
    lonely = rows[
        ~((rows["source"] == "texts_test 0") & (rows["window"] == 1))
    ]  # one text has a single window left
    table = real.summaries({"texts": real.by_text(lonely)})["effects"]
    row = table[
        (table["data"] == "texts_test")
        & (table["selected"] == "top")
        & (table["measure"] == "accuracy")
    ].iloc[0]
    expected = [0.5, 0.5 * 1.01, 0.5 * 1.015, 0.5 * 1.005]  # windows 0; 2 and 3; 4 and 5; 6 and 7
    assert row["texts"] == 4
    assert row["estimate"] == pytest.approx(np.mean(expected))
    assert row["low"] < row["estimate"] < row["high"]
    assert row["after"] == pytest.approx(1 - np.mean(expected))


@pytest.fixture
def folder_of_letters(tmp_path) -> str:
    return str(letters.saved(letters.subject(), tmp_path / "model"))


def windows_of_every_set(subject: interp.Subject) -> dict[str, pd.DataFrame]:
    """Random windows instead of text: four per set, of two texts."""
    rng = np.random.default_rng(0)
    sets: dict[str, pd.DataFrame] = {}
    for name in ("texts_score", "contrast", *real.JUDGED):
        tokens = rng.integers(0, subject.vocabulary, (4, 24)).tolist()
        sets[name] = pd.DataFrame(
            {
                "tokens": tokens,
                "prefix": 12,
                "set": name,
                "prompt": [f"{name} {number} " for number in range(4)],
                "suffix": name,
                "source": ["a", "a", "b", "b"],
                "style": "hash",
            }
        )
    return sets


def test_the_real_study_runs_on_the_model_that_its_preset_names(
    folder_of_letters, tmp_path, monkeypatch
):
    searched: list[str] = []

    def searched_once(subject: interp.Subject) -> dict[str, pd.DataFrame]:
        searched.append(subject.fingerprint)
        return windows_of_every_set(subject)

    monkeypatch.setattr(real, "study_windows", searched_once)
    headline = {"fractions": (real.HEADLINE, 0.1), "controlled": (real.HEADLINE, 0.1)}
    preset = replace(
        with_changes(real.PRESETS["smoke"], [f"model={folder_of_letters}", "dtype=float32"]),
        **headline,
    )
    assert real.prepare_shared(preset, tmp_path) == {}
    tables = real.windows(preset, tmp_path) | real.of_method("activation", preset, 0, tmp_path)
    assert len(searched) == 1
    assert set(tables) == set(real.EXPERIMENT.tables)
    tables = {name: table.assign(seed=0) for name, table in tables.items()}
    found = real.EXPERIMENT.judge(preset, (0,), tables)
    assert {claim.id for claim in found.claims} == {f"R{n} activation" for n in range(1, 7)}
    assert set(found.figures) == {"question", "accuracy", "loss", "controls", "verdicts"}
    effects = found.tables["effects"]
    whole = ~effects["data"].isin(["fold: studied", "fold: unstudied"])
    assert (effects.loc[whole, "texts"] == 2).all()
    # Each of the two texts is studied in one fold and left out in the other.
    assert set(real.IN_FOLDS) <= set(effects["data"])
    assert set(effects.loc[~whole, "texts"]) == {2}


def test_a_fold_is_judged_on_exact_licences_that_it_was_not_scored_on():
    def windows(half: str) -> pd.DataFrame:
        names = ["a", "b", "c", "d"]
        words = [" ".join(f"{half}{name}{n}" for n in range(9)) for name in names]
        return pd.DataFrame({"source": names, "prompt": words, "suffix": ""})

    sets = {"texts_score": windows("score"), "texts_test": windows("test")}
    # A passage of another licence with eight of the scored words in a row is no passage of its own.
    shared = windows("score").assign(source="b").iloc[:1]
    sets["texts_test"] = pd.concat([sets["texts_test"], shared], ignore_index=True)
    sets |= {name: windows(name) for name in ("code", "prose")}
    scored, judged = real.fold(sets, 0)
    assert list(scored["source"]) == ["a", "c"]
    assert list(judged["fold: studied"]["source"]) == ["a", "c"]
    assert set(judged["fold: unstudied"]["source"]) == {"b", "d"}
    assert len(judged["fold: unstudied"]) == 4
    left = set(judged["fold: unstudied"]["source"])
    assert not left & set(scored["source"])


def test_texts_keep_their_words_in_every_format():
    text = "Permission is hereby granted,\nfree of charge, to any person.\n\n1. First item\n2. Second item\n"
    words = {
        style: [
            w for w in licence_texts.restyle(text, style).split() if w not in ("#", "*", "/*", "*/")
        ]
        for style in ("raw", "hash", "star", "unwrapped")
    }
    assert words["raw"] == words["hash"] == words["star"] == words["unwrapped"]
    assert (
        licence_texts.restyle(text, "unwrapped").splitlines()[0]
        == "Permission is hereby granted, free of charge, to any person."
    )


def test_units_of_the_real_study_are_as_many_as_said_and_others():
    rng = np.random.default_rng(0)
    sites = [interp.Site("neurons", n) for n in range(4)]
    scores, activity = (
        interp.UnitScores({s: rng.normal(size=5000) for s in sites}) for _ in range(2)
    )
    for trial in real._trials(scores, activity, real.PRESETS["small"], 0):
        assert len(trial.units) == trial.k == round(trial.fraction * 20000)
        top = scores.top(trial.fraction)
        if trial.selection in ("random", "as active"):
            assert not len(trial.units & top)
            assert [len(trial.units[s]) for s in sites] == [len(top[s]) for s in sites]
