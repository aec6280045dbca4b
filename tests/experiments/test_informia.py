"""The membership study end to end on models of a moment, and laws of what its claims are made of."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import figure_laws
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from experiments.informia import EXPERIMENT, prose
from experiments.informia.checks import checks
from experiments.informia.measures import Signals, attacks, token_auc
from experiments.informia.pictures import draw
from experiments.informia.presets import PRESETS, Pictures
from interp.experiment.checks import interval
from interp.memorization.membership.corpus import membership
from interp.training.reference_pool import complementary_halves
from interp.training.state import load_weights

SMOKE = PRESETS["smoke"]
TINY = replace(
    SMOKE,
    pictures=(Pictures(data="digits", noise=0.2, pool=200, population=60, pairs=2, epochs=3),),
    prose=replace(
        SMOKE.prose,
        vocabulary=300,
        length=24,
        base=32,
        pool=200,
        population=24,
        width=16,
        base_epochs=1,
        epochs=(1,),
        repeats=(1, 2),
        dose_epochs=1,
    ),
    populations=(10, 1000),
    draws=2,
    epoch=1,
)
SEED = 7


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("informia")


@pytest.fixture(scope="module")
def results(out: Path) -> Any:
    pytest.importorskip("faker")
    return EXPERIMENT.run(TINY, SEED, out, jobs=1, device="cpu")


def test_every_claim_is_measured_and_every_figure_can_be_read(results: Any):
    assert len({claim.id for claim in results.claims}) == len(results.claims)
    assert not [claim.id for claim in results.claims if claim.measured is None]
    assert set(results.figures) == {*EXPERIMENT.figures, "verdicts"}
    for figure in results.figures.values():
        figure_laws.check(figure)


def test_an_attack_on_texts_is_that_of_the_kept_models(results: Any, out: Path):
    """The AUC of Ref, from models that are loaded again, with scikit-learn."""
    texts = prose.corpus(TINY.prose, SEED)
    pool = complementary_halves(len(texts.pool), TINY.prose.pairs, SEED)
    [place] = (out / "models").glob(f"prose-*-seed{SEED}")
    models = []
    for number in range(pool.models):
        model = prose.language_model(TINY.prose, texts.tokenizer, seed=0)
        load_weights(place / f"model{number}-epoch1.safetensors", model.module)
        models.append(model)
    ids = texts.pool.tokens.tolist()
    log_p = np.stack([membership(model, ids)["loss"] for model in models])
    target = 1
    scores = log_p[target] - pool.choose(log_p, target, 1)[0]
    table: Any = results.tables["attacks"]
    chosen = table[(table["data"] == "text") & (table["target"] == target)]
    row = chosen[chosen["attack"] == "informia_sequence"].iloc[0]
    assert row["auc"] == pytest.approx(roc_auc_score(pool.members[target], scores), abs=1e-4)
    assert row["forwards"] == 2 * len(ids)


def test_claims_are_read_from_the_tables(results: Any):
    by_id = {claim.id: claim for claim in results.claims}
    table: Any = results.tables["attacks"]
    of_data = table[table["data"] == TINY.headline]
    exact = of_data[of_data["attack"] == "informia_sequence"].groupby("target")["auc"].mean()
    rmia = of_data[(of_data["attack"] == "rmia") & (of_data["population"] == 10)]
    difference = exact - rmia.groupby("target")["auc"].mean()
    assert by_id["F1"].measured == pytest.approx(difference.mean())
    # A law, whatever was trained
    assert by_id["F3"].measured == 0
    assert by_id["L1"].measured >= 0
    passages: Any = results.tables["passages"]
    expected = passages["private"].mean() - passages["other"].mean()
    assert by_id["F8"].measured == pytest.approx(expected)


def test_private_tokens_are_the_invented_name_and_number():
    pytest.importorskip("faker")
    texts = prose.corpus(replace(TINY.prose, length=48), SEED)
    sets = (texts.base, texts.pool, texts.population)
    plain = [set(map(tuple, part.tokens[~part.private.any(1)].tolist())) for part in sets]
    assert not plain[0] & plain[1] | plain[0] & plain[2] | plain[1] & plain[2]
    assert not texts.base.private.any()
    for part in sets[1:]:
        assert part.carries.tolist() == [row % 2 == 0 for row in range(len(part))]
        assert not part.private[:, 0].any()  # nothing predicts the first token
        for row in range(0, len(part), 2):
            kept = part.tokens[row][part.private[row]].tolist()
            private = texts.tokenizer.decode(kept)
            assert re.fullmatch(r" [A-Z]\S+ [A-Z]\S+ [0-9]{7}", private)
            whole = texts.tokenizer.decode(part.tokens[row].tolist())
            assert f" Call{private[:-8]} at{private[-8:]}." in whole


def test_pool_and_population_of_pictures_share_none_and_their_labels_the_noise():
    settings = TINY.pictures[0]
    pool, population = draw(settings, SEED)
    pixels = [set(map(tuple, part.conditioning["pixels"].tolist())) for part in (pool, population)]
    assert not pixels[0] & pixels[1]
    clean, _ = draw(replace(settings, noise=0.0), SEED)
    assert torch.equal(clean.conditioning["pixels"], pool.conditioning["pixels"])
    changed = (clean.tokens != pool.tokens).float().mean().item()
    assert 0.1 < changed < 0.3  # a fifth, of which a tenth keep theirs
    with pytest.raises(ValueError, match="digits has 1797 pictures; expected 3000"):
        draw(replace(settings, pool=2000, population=1000), SEED)


def test_attacks_on_signals_that_are_known():
    """Members have twice the probability that models in general give: every attack with a reference
    finds them all, LOSS none better than chance."""
    rng = np.random.default_rng(0)
    p = rng.uniform(0.05, 0.4, 400)
    members = np.arange(400) % 2 == 0
    signals = Signals(
        target=np.log(np.where(members, 2 * p, p)),
        out=np.log(p)[None],
        population=np.log(p[:100]),
        population_out=np.log(p[:100])[None],
        members=members,
    )
    found = pd.DataFrame(attacks(signals, (10, 1000), 3, a=1.0, seed=0)).set_index("attack")
    assert found.loc["informia_sequence", "auc"] == 1
    assert found.loc["informia_sequence", "tpr_1_percent"] == 1
    assert 0.5 < found.loc["loss", "auc"] < 0.95
    rmia = found.loc["rmia"]
    assert rmia["population"].tolist() == [10, 10, 10, 100]  # all of them once
    assert (rmia["advantage"] >= 0).all()
    assert rmia["forwards"].tolist() == [820, 820, 820, 1000]
    # 200 non-members, all of which tie with the population at a ratio of exactly 1
    assert np.isnan(found["tpr_0.1_percent"]).all()


def test_token_auc_compares_tokens_of_members_with_those_of_others():
    values = np.array([[3.0, 9.0], [1.0, 2.0]])
    mask = np.array([[True, False], [True, True]])
    assert token_auc(values, mask, np.array([True, False])) == 1
    assert token_auc(values, mask, np.array([False, True])) == 0


def test_too_few_non_members_for_one_percent_are_refused():
    with pytest.raises(ValueError, match="pool=150: expected at least 200"):
        replace(TINY, prose=replace(TINY.prose, pool=150))


def test_a_score_without_a_reference_takes_one_forward_per_text(results: Any):
    table: Any = results.tables["attacks"]
    texts = table[table["data"] == "text"]
    forwards = texts[texts["attack"] != "rmia"].groupby("attack")["forwards"].max()
    without = {"loss", "zlib", "min_k", "min_k_plus_plus"}
    assert without < set(forwards.index)
    one = TINY.prose.pool
    compared = forwards.drop("informia_with_population")
    assert {name: count // one for name, count in compared.items()} == {
        name: 1 if name in without else 2 for name in compared.index
    }


def test_claims_are_about_numbers_of_references_that_were_measured():
    """Of 1, 3 and 8 reference models, a data set of 3 pairs is measured with 1, and one of 5 with
    1 and 3."""
    few = replace(TINY.pictures[0], pairs=3)
    many = replace(few, noise=0.0, pairs=5)
    preset = replace(TINY, pictures=(few, many), references=(1, 3, 8), headline=few.name)
    assert [preset.references_of(each) for each in preset.pictures] == [(1,), (1, 3)]
    found = {check.id: check for check in checks(preset)}
    assert "P3" not in found  # one reference model is the most of this data set
    assert (
        "with 3 reference models"
        in {check.id: check for check in checks(replace(preset, headline=many.name))}["P3"].text
    )
    attacked = [("informia_sequence", 0.9), ("lira", 0.6)]
    rows = [
        {"data": each.name, "references": number, "attack": attack, "auc": auc, "target": 0}
        for each in preset.pictures
        for number in preset.references_of(each)
        for attack, auc in attacked
    ]
    tables = {"attacks": pd.DataFrame(rows)}
    for each in preset.pictures:
        measured = found[f"F5 LiRA, {each.name}"].measure(tables)
        assert measured is not None
        assert interval(measured).estimate == pytest.approx(0.3)


def test_a_preset_without_enough_models_or_with_another_headline_is_refused():
    with pytest.raises(ValueError, match=r"references=\(2, 4\): expected .* smaller than pairs=2"):
        replace(TINY, references=(2, 4))
    with pytest.raises(ValueError, match="headline='digits': expected one of digits, noisy"):
        replace(TINY, headline="digits")
