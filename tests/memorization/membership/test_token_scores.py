"""Laws of token-level scores: golden cases by hand, identities, and an independent implementation in
float64 with scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from scipy.stats import entropy
from torch import Tensor
from torch.testing import assert_close

from interp.memorization.membership import token_scores as module
from interp.memorization.membership.token_scores import Mix, Over, token_scores

LOG2 = float(np.log(2))


def every_token(target: Any, references: list[Any], **options: Any) -> Any:
    """The scores of each token of a small vocabulary, under given probabilities."""
    size = len(target)
    targets = torch.arange(size)[None]

    def logits(law: Any) -> Tensor:
        return torch.tensor(law, dtype=torch.float64).log().expand(1, size, size)

    return token_scores(logits(target), targets, [logits(law) for law in references], **options)


def informia(target: Any, references: list[Any], **options: Any) -> Tensor:
    return every_token(target, references, **options).informia[0]


def near(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_uniform_reference_by_hand():
    scores = every_token([1 / 2, 1 / 4, 1 / 8, 1 / 8], [[1 / 4] * 4])
    assert_close(scores.kl[0] / LOG2, near(0.25, 0.25, 0.25, 0.25))
    assert_close(scores.informia[0] / LOG2, near(1.25, 0.25, -0.75, -0.75))


def test_the_reference_comes_first_in_the_divergence():
    scores = every_token([3 / 4, 1 / 4], [[1 / 2, 1 / 2]])
    assert_close(scores.kl[0] / LOG2, near(0.207519, 0.207519), atol=1e-6, rtol=0)
    assert_close(scores.informia[0] / LOG2, near(0.792481, -0.792481), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ("vocabulary", (1.683609, 0.584996, -1.024441)),
        ("other_tokens", (1.903331, 0.584996, -1.829160)),
        ("other_tokens_normalized", (2.104511, 0.835709, -2.048883)),
    ],
)
def test_a_reference_that_is_not_uniform_by_hand(over: Over, expected: tuple[float, ...]):
    target, reference = [0.6, 0.3, 0.1], [0.2, 0.3, 0.5]
    found = informia(target, [reference], over=over)
    assert_close(found, near(*expected), atol=1e-6, rtol=0)
    if over == "vocabulary":
        assert_close(found @ near(*reference), near(0)[0], atol=1e-12, rtol=0)
        assert_close(found @ near(*target), near(1.083220)[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        ("probabilities", 0.823959),
        ("log_probabilities", 1.015988),
        ("log_probabilities_normalized", 1.022937),
    ],
)
def test_two_reference_models_by_hand(mix: Mix, expected: float):
    found = informia([0.5, 0.5], [[0.1, 0.9], [0.4, 0.6]], mix=mix)
    assert_close(found[:1], near(expected), atol=1e-6, rtol=0)


def test_standardized_log_p_by_hand():
    """The law (1/2, 1/4, 1/4) has mean log p -1.5 ln 2 and standard deviation .5 ln 2."""
    scores = every_token([1 / 2, 1 / 4, 1 / 4], [])
    assert_close(scores.standardized[0], near(1, -1, -1))
    assert scores.informia is None


def test_a_law_without_spread_has_standardized_zeros():
    assert every_token([1 / 4] * 4, []).standardized.tolist() == [[0.0] * 4]


def random_logits(seed: int, shape: tuple[int, ...], scale: float = 4.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def test_a_model_compared_with_itself_has_scores_of_zero():
    logits = random_logits(0, (2, 5, 50))
    targets = torch.arange(10).reshape(2, 5)
    scores = token_scores(logits, targets, [logits])
    assert scores.informia is not None
    assert scores.informia.abs().max() < 1e-6
    moved = token_scores(logits + 3, targets, [logits - 20])
    assert_close(moved.informia, scores.informia, atol=1e-5, rtol=0)


@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 10), models=st.integers(1, 3))
@settings(deadline=None)
def test_equals_an_independent_implementation(seed: int, scale: float, models: int):
    vocabulary = 23
    shape = (2, 3, vocabulary)
    target = random_logits(seed, shape, scale)
    references = [random_logits(seed + 1 + n, shape, scale) for n in range(models)]
    targets = torch.randint(vocabulary, (2, 3), generator=torch.Generator().manual_seed(seed))
    scores = token_scores(target, targets, references)
    assert scores.informia is not None
    assert scores.kl is not None

    log_p = log_softmax(target.double().numpy(), axis=-1)
    q = np.mean([np.exp(log_softmax(r.double().numpy(), axis=-1)) for r in references], axis=0)
    for row in range(2):
        for position in range(3):
            true = int(targets[row, position])
            own, other = log_p[row, position], q[row, position]
            kl = float(entropy(other, np.exp(own)))
            mean = np.exp(own) @ own
            spread = np.sqrt(np.exp(own) @ (own - mean) ** 2)
            expected = {
                "log_p": own[true],
                "kl": kl,
                "informia": own[true] - np.log(other[true]) + kl,
                "log_p_reference": np.log(other[true]),
            }
            for name, value in expected.items():
                found = float(getattr(scores, name)[row, position])
                assert found == pytest.approx(value, abs=1e-4, rel=1e-4), name
            if spread > 1e-2:
                found = float(scores.standardized[row, position])
                assert found == pytest.approx((own[true] - mean) / spread, abs=1e-3, rel=1e-3)


def test_means_under_reference_and_target():
    """Under the reference the mean score is 0; under the target it is the Jeffreys divergence."""
    target = random_logits(1, (7,)).softmax(0).double().tolist()
    reference = random_logits(2, (7,)).softmax(0).double().tolist()
    found = informia(target, [reference])
    assert_close(found @ near(*reference), near(0)[0], atol=1e-6, rtol=0)
    jeffreys = entropy(target, reference) + entropy(reference, target)
    assert_close(found @ near(*target), near(float(jeffreys))[0], atol=1e-6, rtol=0)


def test_one_step_reference_gives_centred_logits():
    logits = random_logits(3, (1, 6, 6)).double()
    uniform = torch.zeros_like(logits)
    found = token_scores(logits, torch.arange(6)[None], [uniform]).informia
    expected = logits.diagonal(dim1=1, dim2=2) - logits.mean(-1)
    assert_close(found, expected)


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch):
    logits, reference = random_logits(4, (3, 7, 11)), random_logits(5, (3, 7, 11))
    targets = torch.arange(21).reshape(3, 7) % 11
    whole = token_scores(logits, targets, [reference])
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 23)
    parts = token_scores(logits, targets, [reference])
    for name, value in vars(whole).items():
        assert_close(getattr(parts, name), value)


def test_padded_vocabularies_are_cut_and_normalized_again():
    logits, reference = random_logits(6, (1, 4, 12)), random_logits(7, (1, 4, 9))
    targets = torch.tensor([[0, 3, 8, 2]])
    found = token_scores(logits, targets, [reference])
    expected = token_scores(logits[..., :9], targets, [reference])
    assert_close(found.informia, expected.informia)
    with pytest.raises(ValueError, match="token 9 is beyond the 9 tokens that all models predict"):
        token_scores(logits, torch.tensor([[0, 9, 1, 1]]), [reference])


def test_forbidden_tokens():
    """Tokens that both models forbid change nothing; one that only the target forbids is infinite
    divergence, and refused."""
    logits, reference = random_logits(8, (1, 2, 5)), random_logits(9, (1, 2, 5))
    targets = torch.tensor([[0, 1]])
    expected = token_scores(logits, targets, [reference])
    wider = [
        torch.cat([part, torch.full((1, 2, 2), -torch.inf)], -1) for part in (logits, reference)
    ]
    found = token_scores(wider[0], targets, [wider[1]])
    for name, value in vars(expected).items():
        assert_close(getattr(found, name), value)

    forbids = logits.clone()
    forbids[0, 1, 4] = -torch.inf
    with pytest.raises(ValueError, match="target 1 of row 0: a model gives probability 0"):
        token_scores(forbids, targets, [reference])
    # a reference that gives it next to nothing, but not nothing
    tiny = reference.clone()
    tiny[0, 1, 4] = -300.0
    with pytest.raises(ValueError, match="probability 0"):
        token_scores(forbids, targets, [tiny])
    # the true token itself, without any reference
    with pytest.raises(ValueError, match="probability 0"):
        token_scores(forbids, torch.tensor([[0, 4]]))
    # where nothing is measured it does not matter
    counted = torch.tensor([[True, False]])
    token_scores(forbids, targets, [reference], counted=counted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_in_single(dtype: torch.dtype):
    logits, reference = (
        random_logits(10, (1, 3, 40)).to(dtype),
        random_logits(11, (1, 3, 40)).to(dtype),
    )
    targets = torch.tensor([[1, 2, 3]])
    found = token_scores(logits, targets, [reference])
    expected = token_scores(logits.float(), targets, [reference.float()])
    assert found.log_p.dtype == torch.float32
    assert_close(found.informia, expected.informia)


def over_others(log_p: Any, log_q: Any, true: int) -> float:
    """log(p(x) / q(x)) plus the mean of log(q(z) / p(z)) over the other tokens, in numpy."""
    difference = np.asarray(log_q) - np.asarray(log_p)
    weights = np.exp(log_softmax(np.delete(log_q, true)))
    return float(weights @ np.delete(difference, true) - difference[true])


@pytest.mark.parametrize("lead", [5.0, 15.0, 17.0, 25.0, 120.0, 900.0])
@pytest.mark.parametrize("models", [1, 2])
def test_a_reference_that_is_sure_of_the_true_token(lead: float, models: int):
    """1 - p_ref(x) is 0 in float32 from a lead of 17 nats on; the score is not infinite."""
    target, reference = [2.0, 1.0, 0.5, -1.0], [lead, 1.0, 0.0, 0.5]
    found = token_scores(
        torch.tensor([[target]]),
        torch.tensor([[0]]),
        [torch.tensor([[reference]])] * models,
        over="other_tokens_normalized",
    )
    assert found.informia is not None
    expected = over_others(log_softmax(target), log_softmax(reference), true=0)
    assert found.informia.item() == pytest.approx(expected, rel=1e-5)


def test_the_normalized_weights_are_those_of_the_other_tokens_in_any_mix():
    """A geometric mean of predictions does not sum to 1; the weights of the mean do."""
    target, first, second = [0.2, 0.5, 0.3], [0.1, 0.8, 0.1], [0.6, 0.1, 0.3]
    mixed = np.log([first, second]).mean(0)
    options: Any = {"mix": "log_probabilities", "over": "other_tokens_normalized"}
    found = informia(target, [first, second], **options)
    expected = [over_others(np.log(target), mixed, true) for true in range(3)]
    assert_close(found, near(*expected))


@pytest.mark.parametrize("forbidden", [[1, 2], [1], []])
def test_no_other_token_is_possible(forbidden: list[int]):
    """The mean over the other tokens needs one that is possible; the other sums do not."""
    target = torch.zeros(1, 1, 3)
    reference = torch.zeros(1, 1, 3)
    target[..., forbidden] = -torch.inf
    reference[..., forbidden] = -torch.inf
    true = torch.tensor([[0]])
    for over in ("vocabulary", "other_tokens"):
        assert_close(token_scores(target, true, [reference], over=over).informia, torch.zeros(1, 1))
    if len(forbidden) < 2:
        found = token_scores(target, true, [reference], over="other_tokens_normalized")
        assert_close(found.informia, torch.zeros(1, 1))
        return
    with pytest.raises(ValueError, match="target 0 of row 0: the reference finds no token possibl"):
        token_scores(target, true, [reference], over="other_tokens_normalized")
    elsewhere = torch.tensor([[False]])
    token_scores(target, true, [reference], counted=elsewhere, over="other_tokens_normalized")


@pytest.mark.parametrize("models", [2, 3, 5])
@pytest.mark.parametrize("mix", ["log_probabilities", "log_probabilities_normalized"])
def test_what_one_reference_forbids_is_impossible_in_a_geometric_mean(mix: Mix, models: int):
    some = [random_logits(20 + number, (1, 1, 6)) for number in range(models)]
    target = random_logits(19, (1, 1, 6))
    some[0][..., 5] = -torch.inf
    with pytest.raises(ValueError, match="probability 0"):
        token_scores(target, torch.tensor([[5]]), some, mix=mix)
    # Forbidden by the target too: as if the token had never been there.
    target[..., 5] = -torch.inf
    true = torch.tensor([[2]])
    found = token_scores(target, true, some, mix=mix)
    log_p = torch.stack([part.log_softmax(-1)[..., :5] for part in some]).mean(0)
    if mix == "log_probabilities_normalized":
        log_p = log_p.log_softmax(-1)
    own = target.log_softmax(-1)[..., :5]
    kl = (log_p.exp() * (log_p - own)).sum(-1)
    assert_close(found.kl, kl)
    assert_close(found.informia, own[..., 2] - log_p[..., 2] + kl)


def test_references_that_have_no_token_in_common():
    """Each forbids what the other finds possible: their geometric mean is 0 everywhere."""
    first = torch.tensor([[[0.0, -torch.inf]]])
    second = torch.tensor([[[-torch.inf, 0.0]]])
    true = torch.tensor([[0]])
    for mix in ("log_probabilities", "log_probabilities_normalized"):
        with pytest.raises(ValueError, match="probability 0"):
            token_scores(torch.zeros(1, 1, 2), true, [first, second], mix=mix)
    assert_close(
        token_scores(torch.zeros(1, 1, 2), true, [first, second]).informia, torch.zeros(1, 1)
    )


def test_logits_that_are_nan_are_refused():
    logits = torch.zeros(1, 2, 3)
    logits[0, 1, 2] = torch.nan
    fine = torch.zeros(1, 2, 3)
    targets = torch.tensor([[0, 1]])
    with pytest.raises(ValueError, match=r"target 1 of row 0: .* NaN"):
        token_scores(logits, targets)
    with pytest.raises(ValueError, match=r"target 1 of row 0: .* NaN"):
        token_scores(fine, targets, [logits])
