"""The first law of localization: where one neuron alone holds a passage, by construction, every
method puts it first."""

from __future__ import annotations

import planted
import pytest

import interp
from interp.localization import localize, localize_each, methods

NETWORKS = [("token", 0, 0), ("prompt", 3, 1), ("prompt", 4, 2)]  # one in each block
RANKING = [name for name in methods() if name not in ("random", "lowest", "smallest")]
BY_COMPARISON = (
    "neuron_flipping",
    "unitmem",
    "z_score",
)  # these need other windows to compare with
QUICK = {
    "causal_tracing": {"draws": 5},
    "hard_concrete": {"steps": 60},
    "integrated_gradients": {"points": 5},
    "neuron_flipping": {"at_most": 5},
    "slimming": {"steps": 40},
}
ONE_REFERENCE = (
    "causal_tracing",
    "hard_concrete",
    "integrated_gradients",
    "slimming",
    "zero_out",
)  # a price for every window


@pytest.fixture(params=NETWORKS, ids=lambda p: f"{p[0]}-{p[1]}")
def known(request: pytest.FixtureRequest) -> planted.Planted:
    return planted.planted(*request.param)


def first_and_alone(scores: interp.UnitScores, known: planted.Planted) -> bool:
    """Whether the planted neuron's score lies above all others."""
    rows = scores.to_frame()["score"]
    return known.unit in scores.top(1) and bool(rows[0] > rows[1])


@pytest.mark.parametrize("method", RANKING)
def test_every_method_puts_it_first_for_each_window(known, method):
    reference = known.reference if method in BY_COMPARISON else None
    memorized = next(known.memorized.split(2))
    for window in memorized.split(1) if method == "unitmem" else [memorized]:
        for scores in localize_each(
            known.subject, window, reference, method, **QUICK.get(method, {})
        ):
            assert first_and_alone(scores, known)


@pytest.mark.parametrize("method", RANKING)
def test_every_method_puts_it_first_for_the_group_against_other_text(method):
    """On one network: what a group scores is the mean over its windows, which has its own test."""
    known = planted.planted(*NETWORKS[-1])
    memorized, reference = (
        next(known.memorized.split(2)),
        next(known.reference.split(1 if method in ONE_REFERENCE else 10)),
    )
    assert first_and_alone(
        localize(known.subject, memorized, reference, method, **QUICK.get(method, {})), known
    )


@pytest.mark.parametrize("of", ["gradient_x_activation", "activation", "z_score", "unitmem"])
def test_the_lowest_of_a_method_puts_it_last(known, of):
    scores = localize(
        known.subject, next(known.memorized.split(2)), known.reference, "lowest", of=of
    )
    rows = scores.to_frame()
    assert known.unit in scores.lowest(1)
    assert rows["score"].iloc[-1] < rows["score"].iloc[-2]


def test_random_scores_do_not_find_it():
    found = [
        known.unit in localize(known.subject, known.memorized, method="random", seed=seed).top(0.1)
        for known in (planted.planted(*network) for network in NETWORKS)
        for seed in range(34)
    ]
    assert 0 < sum(found) < 30  # 10 expected of 102


def test_the_neuron_is_all_there_is(known):
    """The construction itself: it fires on memorized windows alone, and without it nothing is left
    of them."""
    with interp.subject.subject.evaluating(known.subject):
        clean = known.subject.losses(known.memorized).mean()
        with known.subject.intervened(
            interp.Zero(
                known.subject.anatomy.units(known.site).only(*known.unit[:1], [known.neuron])
            )
        ):
            ablated = known.subject.losses(known.memorized).mean()
    assert clean == pytest.approx(1.0, abs=1e-3)
    assert ablated > 2
    firing = interp.record(known.subject, known.reference, known.site, reduce="max")[known.site][
        known.neuron
    ]
    assert firing < 1e-3
