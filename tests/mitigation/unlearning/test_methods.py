"""Laws of the methods: each loss equals a plain computation by hand, padding changes nothing, and
the methods reduce to each other."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import interp
from interp.mitigation.unlearning.methods import find, methods
from interp.mitigation.unlearning.sets import Sets

PROMPT = 1


def sets(seed: int = 0, *, scored: bool = True) -> Sets:
    """Padded sequences to forget, some of whose tokens are secrets, and padded ones to retain."""
    forget = tiny.batch("llama", rows=3, length=8, seed=seed, padded=True)
    if scored:
        secret = torch.zeros(3, 8, dtype=torch.bool)
        secret[0, 2:5] = True
        secret[1, 4:] = True  # as far as the padding
        secret[2, 1:3] = True
        forget = replace(forget, scored=secret)
    return Sets(forget, tiny.batch("llama", rows=2, length=6, seed=seed + 50, padded=True))


def original() -> interp.Subject:
    return tiny.subject("llama", torch.float64)


def trained(noise: float = 0.05) -> interp.Subject:
    """The same model after some training."""
    module = copy.deepcopy(original().module)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            shift = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(noise * shift)
    return tiny.wrapped(module)


def losses(name: str, given_sets: Sets, noise: float = 0.05, **options: Any) -> Mapping[str, float]:
    with torch.no_grad():
        found = find(name, options).losses(original(), given_sets)
        after = trained(noise)
        return {part: loss(after).item() for part, loss in found.items()}


class ByHand:
    """Everything that the formulas need, token by token, from the bare modules."""

    def __init__(self, given_sets: Sets, noise: float = 0.05) -> None:
        self.sets = given_sets
        self.models = (original().module, trained(noise).module)

    def tokens(self, batch: interp.Batch, wanted: str) -> list[tuple[int, int]]:
        """Row and position of each target of a kind."""
        found = []
        for row in range(len(batch)):
            for position in range(PROMPT, batch.length):
                is_real = batch.mask is None or bool(batch.mask[row, position])
                is_scored = batch.scored is None or bool(batch.scored[row, position])
                kinds = {
                    "real": is_real,
                    "secret": is_real and is_scored,
                    "context": is_real and not is_scored,
                    "every": True,
                }
                if kinds[wanted]:
                    found.append((row, position))
        return found

    def log_p(self, batch: interp.Batch, model: int) -> Tensor:
        with torch.no_grad():
            logits = self.models[model](batch.tokens).logits
        return logits.log_softmax(-1)

    def ce(self, batch: interp.Batch, where: list[tuple[int, int]]) -> list[float]:
        log_p = self.log_p(batch, 1)
        return [-log_p[r, p - 1, batch.tokens[r, p]].item() for r, p in where]

    def kl(self, batch: interp.Batch, where: list[tuple[int, int]]) -> list[float]:
        before, after = self.log_p(batch, 0), self.log_p(batch, 1)
        found = []
        for row, position in where:
            f, g = before[row, position - 1], after[row, position - 1]
            found.append((f.exp() * (f - g)).sum().item())
        return found

    def sequence_log_p(self, batch: interp.Batch, model: int) -> list[float]:
        log_p = self.log_p(batch, model)
        found = [0.0] * len(batch)
        for row, position in self.tokens(batch, "secret"):
            found[row] += log_p[row, position - 1, batch.tokens[row, position]].item()
        return found


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_gradient_ascent_is_of_the_whole_sequence():
    hand = ByHand(sets())
    forget = hand.sets.forget
    expected = -mean(hand.ce(forget, hand.tokens(forget, "real")))
    assert losses("ga", hand.sets) == {"forget": pytest.approx(expected)}


@pytest.mark.parametrize("padding", [False, True])
def test_cu_sums_both_divergences_and_divides_by_sequences(padding):
    hand = ByHand(sets())
    forget, retain = hand.sets.forget, hand.sets.kept
    where = "every" if padding else "real"
    pushed = sum(hand.kl(forget, hand.tokens(forget, where))) / 3
    kept = sum(hand.kl(retain, hand.tokens(retain, where))) / 2
    ascent = mean(hand.ce(forget, hand.tokens(forget, "real")))
    found = losses("cu", hand.sets, lam=0.3, alpha=0.7, padding=padding)
    assert found == {
        "forget": pytest.approx(-ascent - 0.3 * pushed),
        "retain": pytest.approx(0.3 * 0.7 * kept),
    }


@pytest.mark.parametrize("padding", [False, True])
def test_codeeraser_has_a_mean_divergence_on_secrets_and_a_summed_one_on_retained_data(padding):
    hand = ByHand(sets())
    forget, retain = hand.sets.forget, hand.sets.kept
    secret = hand.tokens(forget, "secret")
    context = hand.tokens(forget, "context")
    count = len(hand.tokens(forget, "every")) - len(secret) if padding else len(context)
    of_context = sum(hand.ce(forget, context)) / count
    expected = -mean(hand.ce(forget, secret)) + 0.4 * of_context
    expected -= 0.2 * mean(hand.kl(forget, secret))
    kept = sum(hand.kl(retain, hand.tokens(retain, "real"))) / 2
    found = losses("codeeraser", hand.sets, gamma=0.4, lam=0.2, alpha=0.9, padding=padding)
    assert found == {
        "forget": pytest.approx(expected),
        "retain": pytest.approx(0.2 * 0.9 * kept),
    }
    without_kl = losses("ssga", hand.sets, gamma=0.4, padding=padding)
    by_hand = -mean(hand.ce(forget, secret)) + 0.4 * of_context
    assert without_kl == {"forget": pytest.approx(by_hand)}


class Given:
    """A subject that predicts what it is given: log-probabilities of two tokens."""

    def __init__(self, log_p_of_0: list[list[float]]) -> None:
        p = torch.tensor(log_p_of_0, dtype=torch.float64).exp()
        self.logits = torch.stack([p, 1 - p], dim=-1).log()
        self.module = torch.nn.Identity()

    def run(self, batch: interp.Batch, keep: int) -> Tensor:
        assert keep == self.logits.shape[1]
        return self.logits

    def target_logits(self, batch: interp.Batch) -> Tensor:
        return self.run(batch, batch.length - batch.prompt)


def with_divergence(wanted: float, log_p: float) -> float:
    """The log-probability of token 0 under f for which KL(f || f') is what is wanted."""
    p, low, high = math.exp(log_p), 1e-9, math.exp(log_p)
    for _ in range(200):
        q = (low + high) / 2
        kl = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
        low, high = (q, high) if kl > wanted else (low, q)
    return math.log(q)


def test_codeeraser_by_hand():
    """Secret CE 0.2 and 0.4, context CE 1 and 3, gamma 0.1, lambda 0.1, KL on secrets 0.5."""
    log_p = [-0.2, -0.4, -1.0, -3.0]
    scored = torch.tensor([[False, True, True, False, False]])
    forget = interp.Batch(torch.zeros(1, 5, dtype=torch.long), scored=scored)
    # two sequences, each with a KL of 2 in all
    retain = interp.Batch(torch.zeros(2, 5, dtype=torch.long))
    kept = [-0.2] * 4

    def subject(divergences: list[float], after: list[float], rows: int) -> Any:
        pairs = zip(divergences, after, strict=True)
        return Given([[with_divergence(kl, own) if kl else own for kl, own in pairs]] * rows)

    before = subject([0.3, 0.7, 0, 0], log_p, 1)
    erase = find("codeeraser", {"gamma": 0.1, "lam": 0.1, "alpha": 1.0})

    class Both(Given):
        """Reads the two sets, each with its own predictions."""

        def __init__(self, forgotten: Any, retained: Any) -> None:
            super().__init__([[0.0]])
            self.of = {1: forgotten, 2: retained}

        def run(self, batch: interp.Batch, keep: int) -> Tensor:
            return self.of[len(batch)].run(batch, keep)

    original_model: Any = Both(before, subject([0.4, 0.6, 0.9, 0.1], kept, 2))
    trained_model: Any = Both(Given([log_p]), Given([kept] * 2))
    found = erase.losses(original_model, Sets(forget, retain))
    assert found["forget"](trained_model).item() == pytest.approx(-0.3 + 0.2 - 0.05)
    assert found["retain"](trained_model).item() == pytest.approx(0.2)


def test_graddiff_is_one_step():
    hand = ByHand(sets())
    forget, retain = hand.sets.forget, hand.sets.kept
    ascent = mean(hand.ce(forget, hand.tokens(forget, "secret")))
    kept = mean(hand.ce(retain, hand.tokens(retain, "real")))
    found = losses("graddiff", hand.sets, retain_weight=2.0)
    assert found == {"both": pytest.approx(-ascent + 2 * kept)}


def test_npo_compares_whole_secrets_with_the_original_model():
    hand = ByHand(sets())
    forget, retain = hand.sets.forget, hand.sets.kept
    pairs = zip(hand.sequence_log_p(forget, 1), hand.sequence_log_p(forget, 0), strict=True)
    terms = [torch.tensor(0.2 * (own - other)).exp().log1p().item() for own, other in pairs]
    kept = mean(hand.ce(retain, hand.tokens(retain, "real")))
    found = losses("npo", hand.sets, beta=0.2, retain_weight=0.5)
    assert found == {"both": pytest.approx(2 / 0.2 * mean(terms) + 0.5 * kept, rel=1e-6)}


def test_simnpo_is_per_token():
    hand = ByHand(sets())
    forget, retain = hand.sets.forget, hand.sets.kept
    lengths = forget.counted.sum(1).tolist()
    per_token = [
        -value / n for value, n in zip(hand.sequence_log_p(forget, 1), lengths, strict=True)
    ]
    terms = [torch.tensor(-2.0 * (value - 0.5)).exp().log1p().item() for value in per_token]
    kept = mean(hand.ce(retain, hand.tokens(retain, "real")))
    found = losses("simnpo", hand.sets, beta=2.0, delta=0.5)
    assert found == {"both": pytest.approx(mean(terms) + kept, rel=1e-6)}


@pytest.mark.parametrize("site", ["", "blocks.1.mlp_out"])
def test_rmu_pushes_activations_to_a_direction(site):
    given_sets = sets()
    chosen = site or "blocks.0.resid_post"
    after, before = trained(), original()

    def values(subject: interp.Subject, batch: interp.Batch) -> Tensor:
        assert batch.mask is not None
        return tiny.values_by_hand(subject, batch, chosen)[batch.mask]

    pushed = values(after, given_sets.forget)
    generator = torch.Generator().manual_seed(3)
    direction = torch.rand(pushed.shape[1], generator=generator)
    target = 2.0 * direction / direction.norm()
    moved = values(after, given_sets.kept) - values(before, given_sets.kept)
    expected = (pushed - target).square().sum(1).mean() + 5 * moved.square().sum(1).mean()
    found = losses("rmu", given_sets, site=site, coefficient=2.0, alpha=5.0, seed=3)
    assert found == {"both": pytest.approx(expected.item())}


def test_rmu_needs_one_position_per_token():
    policy = tiny.batch("policy", rows=2, length=6)
    with pytest.raises(
        ValueError, match=r"vision.blocks.0.resid_post has 5 positions for 6 tokens"
    ):
        find("rmu", {"site": "vision.blocks.0.resid_post"}).losses(
            tiny.subject("policy"), Sets(policy, policy)
        )


def test_without_mask_and_weights_codeeraser_is_gradient_ascent():
    everything = sets(scored=False)
    ascent = losses("ga", everything)
    assert losses("codeeraser", everything, gamma=0.0, lam=0.0) == ascent
    assert losses("ssga", everything, gamma=0.0) == ascent
    # without context, gamma has nothing to act on
    assert losses("codeeraser", everything, gamma=0.5, lam=0.0) == ascent
    assert losses("cu", everything, lam=0.0) == ascent


@pytest.mark.parametrize("name", ["cu", "codeeraser"])
def test_the_first_divergence_is_exactly_0(name):
    without_kl = {"cu": "ga", "codeeraser": "ssga"}[name]
    found = losses(name, sets(), noise=0)
    assert found["retain"] == 0
    assert found["forget"] == losses(without_kl, sets(), noise=0)["forget"]


@pytest.mark.parametrize("name", methods())
@settings(max_examples=5)
@given(extra=st.integers(1, 4), filler=st.integers(0, 60))
def test_padding_changes_nothing(name, extra, filler):
    def padded(batch: interp.Batch | None) -> interp.Batch:
        assert batch is not None
        assert batch.mask is not None
        scored = batch.scored
        return replace(
            batch,
            tokens=torch.nn.functional.pad(batch.tokens, (0, extra), value=filler),
            mask=torch.nn.functional.pad(batch.mask, (0, extra)),
            scored=None
            if scored is None
            else torch.nn.functional.pad(scored, (0, extra), value=True),
        )

    plain = sets()
    wider = Sets(padded(plain.forget), padded(plain.retain))
    expected = losses(name, plain)
    assert losses(name, wider) == {part: pytest.approx(loss) for part, loss in expected.items()}


@pytest.mark.parametrize("name", methods())
def test_gradients_are_those_of_differences(name):
    """Along one direction, the gradient of each loss equals the slope between two models. (Llama's
    norms compute in single precision, so that the slope is known to a few digits.)"""
    for loss in find(name, {}).losses(original(), sets()).values():
        after = trained()
        loss(after).backward()
        generator = torch.Generator().manual_seed(2)
        slope, size = 0.0, 1e-4
        steps: list[tuple[Tensor, Tensor]] = []
        for parameter in after.module.parameters():
            step = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            steps.append((parameter, step))
            if parameter.grad is not None:  # rmu has none behind its site
                slope += (parameter.grad * step).sum().item()

        ends: list[float] = []
        with torch.no_grad():
            for shift in (-size, 2 * size):
                for parameter, step in steps:
                    parameter.add_(shift * step)
                ends.append(loss(after).item())
        difference = (ends[1] - ends[0]) / (2 * size)
        assert difference == pytest.approx(slope, rel=2e-2, abs=0.02)


@pytest.mark.parametrize("name", methods())
def test_the_original_model_is_left_alone(name):
    subject = original()
    with tiny.untouched(subject.module):
        found = find(name, {}).losses(subject, sets())
        with torch.no_grad():
            first = {part: loss(trained()).item() for part, loss in found.items()}
    # what is compared with is what was there when the losses were made
    changed = trained(0.3)
    made = find(name, {}).losses(changed, sets())
    with torch.no_grad():
        for parameter in changed.module.parameters():
            parameter.mul_(0.9)
        assert all(torch.isfinite(loss(changed)) for loss in made.values())
        again = {part: loss(trained()).item() for part, loss in found.items()}
    assert first == again


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "codeerasr",
            {},
            r"method='codeerasr': expected one of codeeraser, cu.*nearest: codeeraser",
        ),
        (
            "npo",
            {"betta": 1.0},
            "npo has no option 'betta': it takes beta, retain_weight; nearest: beta",
        ),
        ("ga", {"beta": 1.0}, "ga has no option 'beta': it has none"),
        (
            "cu",
            {"padding": 1},
            "cu: padding=1 is a int; expected a value of type bool, such as False",
        ),
        ("rmu", {"seed": 0.5}, "rmu: seed=0.5 is a float; expected a value of type int"),
        ("npo", {"beta": True}, "npo: beta=True is a bool; expected a value of type float"),
    ],
)
def test_what_is_not_a_method_or_an_option_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        find(name, options)
