"""Laws of the Unlearning Depth Score: equal to a naive loop with plain torch hooks on every kind of
model, 0 for the model itself, 1 for the reference, golden cases of the arithmetic."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import interp
from interp.mitigation.depth import UnlearningDepth, log_p_drops, unlearning_depth

KINDS = ("llama", "gpt2", "neox", "opt", "mixtral", "bloom", "var", "rar", "policy")
PROMPT = 4
# How far before a token the position of the blocks is that predicts it.
BEHIND = {"var": 0, "rar": -1, "policy": 0}


def other(name: str, seed: int) -> interp.Subject:
    """A model of the same anatomy with other weights."""
    return tiny.wrapped(tiny.model(name, torch.float64, seed))


def known(name: str, rows: int = 3) -> interp.Batch:
    """What a model itself continues prompts with, which it knows better than others do."""
    subject = tiny.subject(name, torch.float64)
    if name in tiny.IMAGE:
        prompt = 5 if name == "var" else PROMPT  # a scale of VAR ends there
        batch = tiny.image_batch(name, rows, prompt=prompt)
    else:
        batch = tiny.batch(name, rows, prompt=PROMPT, dtype=torch.float64)
    given = batch.tokens[:, : batch.prompt]
    return replace(batch, tokens=torch.cat([given, subject.generate(batch)], dim=1))


def naive_drops(
    before: interp.Subject, source: interp.Subject, batch: interp.Batch, behind: int
) -> dict[tuple[int, str], float]:
    """One row, one site, one position at a time, with plain torch hooks."""
    found: dict[tuple[int, str], float] = {}
    for item in range(len(batch)):
        row = batch.rows(np.array([item]))
        targets = (row.counted[0].nonzero()[:, 0] + row.prompt).tolist()

        def log_p(row: interp.Batch = row, targets: list[int] = targets) -> float:
            with torch.no_grad():
                predicted = before.logits(row).log_softmax(-1)[0]
            return sum(float(predicted[t, row.tokens[0, t]]) for t in targets) / len(targets)

        clean = log_p()
        for site in before.anatomy.expand("resid_post"):
            donor = tiny.values_by_hand(source, row, site)
            everywhere = site.stack == "vision"
            positions = range(donor.shape[1]) if everywhere else [t - behind for t in targets]

            def put(value: Tensor, donor: Tensor = donor, positions=tuple(positions)) -> Tensor:
                new = value.clone()
                for position in positions:
                    new[0, position] = donor[0, position]
                return new

            with tiny.by_hand(before.module, before.anatomy.place(site), put):
                found[item, str(site)] = clean - log_p()
    return found


@pytest.mark.parametrize("name", KINDS)
def test_drops_equal_a_naive_loop(name: str):
    before, source, batch = tiny.subject(name, torch.float64), other(name, 1), known(name)
    with tiny.untouched(before.module), tiny.untouched(source.module):
        table = log_p_drops(before, source, batch, batch_size=2)
    wanted = naive_drops(before, source, batch, BEHIND.get(name, 1))
    found = {(row.item, row.site): row.drop for row in table.itertuples()}
    assert found.keys() == wanted.keys()
    for key, drop in wanted.items():
        assert found[key] == pytest.approx(drop, abs=1e-9), key
    assert max(found.values()) > 0.05


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_rows_have_their_own_spans_and_padding(name: str):
    before, source = tiny.subject(name, torch.float64), other(name, 1)
    batch = tiny.batch(name, rows=4, padded=True)
    scored = torch.rand(batch.tokens.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    scored[:, 2] = True
    batch = replace(batch, scored=scored)
    table = log_p_drops(before, source, batch, batch_size=3)
    found = {(row.item, row.site): row.drop for row in table.itertuples()}
    for key, drop in naive_drops(before, source, batch, 1).items():
        assert found[key] == pytest.approx(drop, abs=1e-9), key


@pytest.mark.parametrize("name", KINDS)
def test_nothing_removed_is_0_and_the_reference_itself_is_1(name: str):
    before, reference = tiny.subject(name), tiny.wrapped(tiny.model(name, seed=1))
    batch = known(name)
    if name == "policy":
        given = {key: value.float() for key, value in batch.conditioning.items()}
        batch = replace(batch, conditioning=given)
    own = log_p_drops(before, before, batch)
    assert (own["drop"] == 0).all()  # to the bit
    copied = log_p_drops(before, tiny.wrapped(copy.deepcopy(before.module)), batch)
    assert (copied["drop"] == 0).all()
    intact = unlearning_depth(before, before, reference, batch)
    assert intact.score.estimate == 0
    assert intact.unclipped.estimate == 0
    erased = unlearning_depth(before, reference, reference, batch)
    assert erased.score.estimate == pytest.approx(1, abs=1e-12)
    assert erased.unclipped.estimate == pytest.approx(1, abs=1e-12)


def test_a_plan_is_the_model_that_it_makes():
    """A plan on the original, and a copy whose weights are edited in the same way."""
    name = "llama"
    before, reference, batch = tiny.subject(name, torch.float64), other(name, 1), known(name)
    neurons = [0, 5, 17, 40]
    plan = interp.Zero(before.units(["blocks.0.neurons", "blocks.2.neurons"], neurons))
    module = copy.deepcopy(before.module)
    with torch.no_grad():
        for block in (0, 2):
            module.model.layers[block].mlp.down_proj.weight[:, neurons] = 0
    with tiny.untouched(before.module):
        by_plan = unlearning_depth(before, plan, reference, batch)
    by_weights = unlearning_depth(before, interp.load(module), reference, batch)
    pd.testing.assert_frame_equal(by_plan.frame, by_weights.frame)
    assert 0 < by_plan.score.estimate < 1
    # As reference too.
    reference_plan = unlearning_depth(before, [plan], plan, batch, threshold=0.0)
    assert reference_plan.score.estimate == pytest.approx(1)


def test_nothing_changes_below_an_edit():
    before, batch = tiny.subject("gpt2", torch.float64), known("gpt2")
    plan = interp.Zero(before.units("blocks.1.neurons"))
    drops = log_p_drops(before, plan, batch)
    assert (drops.loc[drops["block"] == 0, "drop"] == 0).all()
    assert (drops.loc[drops["block"] > 0, "drop"].abs() > 0).all()


def test_batches_do_not_matter():
    before, source, batch = tiny.subject("llama", torch.float64), other("llama", 1), known("llama")
    whole = log_p_drops(before, source, batch)
    parts = log_p_drops(before, source, [batch.rows(np.array([0])), batch.rows(np.array([1, 2]))])
    pd.testing.assert_frame_equal(whole, parts)
    few = log_p_drops(before, source, batch, ["blocks.0.resid_post", "blocks.2.mlp_out"])
    first = whole[whole["site"] == "blocks.0.resid_post"].reset_index(drop=True)
    same = few[few["site"] == "blocks.0.resid_post"].reset_index(drop=True)
    pd.testing.assert_frame_equal(first, same)


def test_what_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch):
    before, source, batch = tiny.subject("llama", torch.float64), other("llama", 1), known("llama")
    wanted = log_p_drops(before, source, batch)
    whole = interp.Subject.target_logits

    def out_of_memory(self: interp.Subject, batch: interp.Batch) -> Tensor:
        if len(batch) > 1:
            raise torch.OutOfMemoryError
        return whole(self, batch)

    monkeypatch.setattr(interp.Subject, "target_logits", out_of_memory)
    with tiny.untouched(before.module):
        pd.testing.assert_frame_equal(log_p_drops(before, source, batch), wanted)


def table(drops: list[list[float]], log_p: float = -0.1) -> pd.DataFrame:
    """A frame of drops, [items][sites]."""
    rows = [
        {
            "item": item,
            "site": f"blocks.{block}.resid_post",
            "block": block,
            "log_p": log_p,
            "drop": drop,
        }
        for item, of_item in enumerate(drops)
        for block, drop in enumerate(of_item)
    ]
    return pd.DataFrame(rows)


def test_the_score_by_hand():
    """The first site of item 0 does not encode it (0.01 <= 0.05). Of the others, with weights 0.5
    and 1, half and more than all is gone: (0.25 + 1) / 1.5 is 5/6, and unclipped 2.25 / 1.5.

    Item 1 comes out closer than before at one site: (0 + 0.2) / 0.5. Item 2 is encoded nowhere.
    """
    reference = table([[0.01, 0.5, 1.0], [0.3, 0.04, 0.2], [0.05, 0.0, -1.0]])
    drops = table([[5.0, 0.25, 2.0], [-0.1, 9.0, 0.2], [1.0, 1.0, 1.0]])
    depth = UnlearningDepth.from_drops(drops, reference)
    items = depth.items
    np.testing.assert_allclose(items["depth"], [5 / 6, 0.4, np.nan])
    np.testing.assert_allclose(items["unclipped"], [1.5, 0.2, np.nan])
    assert items["sites"].tolist() == [2, 2, 0]
    assert depth.score.estimate == pytest.approx((5 / 6 + 0.4) / 2)
    assert depth.score.n == 2
    assert depth.unclipped.estimate == pytest.approx(0.85)
    ratios = depth.frame["ratio"].tolist()
    np.testing.assert_allclose(ratios[:6], [np.nan, 0.5, 1.0, 0.0, np.nan, 1.0])
    stricter = UnlearningDepth.from_drops(drops, reference, threshold=0.6)
    np.testing.assert_allclose(stricter.items["depth"], [1.0, np.nan, np.nan])


finite = st.floats(-10, 10)
drop_rows = st.lists(st.lists(finite, min_size=3, max_size=3), min_size=1, max_size=4)


@settings(max_examples=60)
@given(drop_rows, st.data())
def test_the_score_equals_a_loop(reference: list[list[float]], data: st.DataObject):
    reference[0][0] = 1.0  # something is encoded
    size = len(reference)
    drops = data.draw(
        st.lists(st.lists(finite, min_size=3, max_size=3), min_size=size, max_size=size)
    )
    depth = UnlearningDepth.from_drops(table(drops), table(reference))
    wanted: list[float] = []
    for own, of_reference in zip(drops, reference, strict=True):
        numerator, denominator = 0.0, 0.0
        for d2, d1 in zip(own, of_reference, strict=True):
            if d1 > 0.05:
                numerator += d1 * min(max(d2 / d1, 0.0), 1.0)
                denominator += d1
        if denominator > 0:
            wanted.append(numerator / denominator)
    assert depth.score.estimate == pytest.approx(np.mean(wanted))
    assert 0 <= depth.score.estimate <= 1
    assert UnlearningDepth.from_drops(table(reference), table(reference)).score.estimate == 1


def letters_of(subject: interp.Subject, tokenizer: object) -> interp.Subject:
    return interp.Subject(subject.module, subject.anatomy, subject.forward, tokenizer)


def test_other_models_are_refused():
    before, batch = tiny.subject("llama"), tiny.batch("llama")
    with pytest.raises(
        ValueError, match=r"cannot be put into .*its blocks.0.resid_post is 16 wide"
    ):
        log_p_drops(before, _llama(hidden_size=16), batch)
    with pytest.raises(ValueError, match=r"it has 2 blocks and not 3 blocks.*retrained copy"):
        log_p_drops(before, _llama(num_hidden_layers=2), batch)
    with pytest.raises(ValueError, match="a vocabulary of 66 tokens and not 67"):
        log_p_drops(before, _llama(vocab_size=66), batch)
    with pytest.raises(ValueError, match="2 blocks in vision and 3 blocks in decoder"):
        log_p_drops(before, tiny.subject("policy"), batch)
    named = letters_of(before, tiny.tokenizer(67))
    shifted = tiny.tokenizer(66)
    shifted.add_tokens(["another"])
    with pytest.raises(ValueError, match="its tokenizer is another one: 'w66' is token None there"):
        log_p_drops(named, letters_of(before, shifted), batch)
    # One that is not known, or one that is the same, is no reason.
    log_p_drops(named, before, batch)
    log_p_drops(named, letters_of(before, tiny.tokenizer(67)), batch)


def _llama(**changes: int) -> interp.Subject:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**(tiny.GATED | changes))
    return interp.load(tiny.seeded(lambda: LlamaForCausalLM(config)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s, b: log_p_drops(s, s, []), ValueError, "no texts"),
        (
            lambda s, b: log_p_drops(s, s, replace(b, scored=torch.zeros(2, 9, dtype=torch.bool))),
            ValueError,
            "item 0 has no scored target",
        ),
        (lambda s, b: log_p_drops(s, s, b, "blocks.9.resid_post"), interp.SiteError, "nearest"),
        (
            lambda s, b: log_p_drops(s, interp.Zero(s.units("heads"), positions=(50,)), b),
            interp.HookError,
            "never applied",
        ),
        (
            lambda s, b: unlearning_depth(s, s, s, b),
            ValueError,
            "no item is encoded at any site: .*does the reference not",
        ),
        (
            lambda s, b: UnlearningDepth.from_drops(table([[1.0]]), table([[1.0], [2.0]])),
            ValueError,
            "not of the same original model, items and sites",
        ),
        (
            lambda s, b: UnlearningDepth.from_drops(table([[1.0]]), table([[1.0]], log_p=-3)),
            ValueError,
            "not of the same original model, items and sites",
        ),
        (
            lambda s, b: UnlearningDepth.from_drops(table([[1.0]]), table([[1.0]]), -1.0),
            ValueError,
            "threshold=-1.0",
        ),
        (
            lambda s, b: UnlearningDepth.from_drops(table([[1.0]]), table([[1.0]]), float("nan")),
            ValueError,
            "threshold=nan",
        ),
    ],
)
def test_errors(call, error, message):
    subject = tiny.subject("llama")
    with tiny.untouched(subject.module), pytest.raises(error, match=message):
        call(subject, tiny.batch("llama"))
