"""Laws of subspaces: what is removed is gone, for every classifier and by hand, and nothing else
is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp.analysis.concept_erasure import (
    Subspace,
    class_means,
    containment,
    erasure_plan,
    inlp,
    principal,
    random_subspace,
    random_subspace_of_variance,
    variance_share,
)
from interp.analysis.probes import fit_probe, rows_at

CLASSES, WIDTH = 4, 24


def planted(items: int = 800, size: float = 3.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise of unequal spread around one mean a class, off the origin."""
    draw = np.random.default_rng(seed)
    labels, means = (
        draw.integers(0, CLASSES, items),
        size * np.random.default_rng(9).normal(size=(CLASSES, WIDTH)),
    )
    return 5 + means[labels] + draw.normal(size=(items, WIDTH)) * np.linspace(0.5, 2, WIDTH), labels


def held_out_accuracy(rows: np.ndarray, labels: np.ndarray) -> float:
    half = len(rows) // 2
    return fit_probe(rows[:half], labels[:half]).accuracy(rows[half:], labels[half:])


def check_orthonormal(space: Subspace) -> None:
    np.testing.assert_allclose(space.basis @ space.basis.T, np.eye(space.rank), atol=1e-10)


def test_without_the_class_means_all_classes_have_the_mean_of_all():
    rows, labels = planted()
    space = class_means(rows, labels)
    left = space.remove(rows)
    check_orthonormal(space)
    assert space.rank == CLASSES - 1
    np.testing.assert_allclose(
        [left[labels == n].mean(0) for n in range(CLASSES)],
        np.tile(rows.mean(0), (CLASSES, 1)),
        atol=1e-10,
    )
    np.testing.assert_allclose(left.mean(0), rows.mean(0))
    np.testing.assert_allclose(space.remove(left), left)
    assert held_out_accuracy(rows, labels) > 0.95


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_the_rank_is_that_of_the_means(offset: float):
    noise = np.random.default_rng(0).normal(size=(90, WIDTH))
    labels = np.repeat(["a", "b", "c"], 30)
    noise -= np.repeat([noise[labels == c].mean(0) for c in "abc"], 30, axis=0)
    along = np.random.default_rng(1).normal(size=WIDTH)
    on_a_line = noise + np.repeat([0.0, 1.0, 5.0], 30)[:, None] * along + offset
    space = class_means(on_a_line, labels)
    assert space.rank == 1
    assert abs(space.basis[0] @ along) == pytest.approx(np.linalg.norm(along))
    assert class_means(noise, labels).rank == 0


def test_the_classifiers_of_inlp_never_see_the_rows_that_judge_them():
    """Of labels that mean nothing, more columns than rows let a classifier learn every row that it
    sees."""
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(80, 200)), rng.integers(2, size=80)
    space, progress = inlp(rows, labels)
    assert progress["accuracy"].iloc[0] < 0.9
    assert fit_probe(rows, labels).accuracy(rows, labels) == 1
    assert space.rank == 0


def test_nothing_linear_is_left_after_inlp_and_a_random_subspace_leaves_it():
    rows, labels = planted()
    space, seen = inlp(rows, labels, seed=3)
    check_orthonormal(space)
    np.testing.assert_allclose(space.center, rows.mean(0))
    assert seen["accuracy"].iloc[0] > 0.95
    last, chance = seen.iloc[-1], seen["chance"].iloc[0]
    error = np.sqrt(chance * (1 - chance) / 200)
    assert last["accuracy"] <= chance + 2 * error
    assert (seen["accuracy"].iloc[:-1] > chance + 2 * error).all()
    assert last["rank"] == space.rank
    assert list(seen["round"]) == list(range(len(seen)))
    assert (np.diff(seen["rank"]) <= CLASSES - 1).all()
    fresh, truth = planted(seed=7)
    assert held_out_accuracy(space.remove(fresh), truth) < 1 / CLASSES + 0.1
    control = random_subspace(space, seed=0)
    assert held_out_accuracy(control.remove(fresh), truth) > 0.9


def test_inlp_of_two_classes_finds_the_planted_direction():
    draw = np.random.default_rng(0)
    labels = np.array(["no", "yes"])[draw.integers(0, 2, 600)]
    rows = draw.normal(size=(600, WIDTH))
    rows[:, 2] += 8.0 * (labels == "yes")
    space, seen = inlp(rows, labels)
    assert seen["rank"].tolist() == list(range(len(seen)))
    assert np.linalg.norm(space.basis[:, 2]) > 0.95


def test_inlp_stops_when_rounds_are_used_up_and_says_what_is_left():
    rows, labels = planted()
    space, seen = inlp(rows, labels, rounds=1, slack=-100.0)
    again, same = inlp(rows, labels, rounds=1, slack=-100.0)
    assert len(seen) == 2
    assert seen["rank"].tolist() == [0, space.rank]
    np.testing.assert_array_equal(space.basis, again.basis)
    assert seen.equals(same)
    nothing, once = inlp(rows, labels, rounds=0)
    assert (nothing.rank, len(once)) == (0, 1)
    np.testing.assert_array_equal(nothing.remove(rows), rows)


def test_labels_without_a_trace_are_left_alone():
    rows, _ = planted()
    space, seen = inlp(rows, np.random.default_rng(5).integers(0, 2, len(rows)))
    assert (space.rank, len(seen)) == (0, 1)


def test_a_random_subspace_is_like_the_other_and_uniform():
    like = Subspace(np.eye(6)[:2], np.arange(6.0))
    drawn = [random_subspace(like, seed) for seed in range(2000)]
    for one in drawn[:5]:
        check_orthonormal(one)
        assert one.rank == 2
        np.testing.assert_array_equal(one.center, like.center)
    mean = np.mean([one.basis.T @ one.basis for one in drawn], axis=0)
    np.testing.assert_allclose(mean, np.eye(6) / 3, atol=0.05)
    np.testing.assert_array_equal(random_subspace(like, 3).basis, drawn[3].basis)
    assert random_subspace(Subspace(np.empty((0, 6)), like.center), 0).rank == 0


@pytest.mark.parametrize("name", ["gpt2", "llama", "policy"])
def test_an_erasure_is_the_removal_at_its_position_and_nothing_elsewhere(name: str):
    subject, batch = (
        tiny.subject(name, torch.float64),
        tiny.batch(name, rows=30, dtype=torch.float64),
    )
    site = interp.Site("resid_post", 1, list(subject.anatomy.stacks)[-1])
    clean = tiny.values_by_hand(subject, batch, site).numpy()
    space = class_means(clean[:, 4], np.arange(30) % 3)
    with subject.intervened(erasure_plan(subject, site, space, (4,))):
        erased = interp.localization.unit_values.values_at(subject, batch, (site,))[site].numpy()
        at = rows_at(subject, batch, site, 4, batch_size=7)[site]
    np.testing.assert_allclose(erased[:, 4], space.remove(clean[:, 4]), atol=1e-12)
    np.testing.assert_array_equal(np.delete(erased, 4, 1), np.delete(clean, 4, 1))
    np.testing.assert_allclose(at, erased[:, 4], atol=1e-12)
    with subject.intervened(erasure_plan(subject, str(site), space)):
        everywhere = interp.localization.unit_values.values_at(subject, batch, (site,))[
            site
        ].numpy()
    np.testing.assert_allclose(
        everywhere.reshape(-1, 32), space.remove(clean.reshape(-1, 32)), atol=1e-12
    )


ROWS, LABELS = planted(items=40)


@pytest.mark.parametrize("method", [class_means, inlp])
@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (ROWS, np.zeros(40), "at least two classes, none missing; got 1"),
        (ROWS, LABELS[:39], r"expected one per row, \[40\]; got shape \(39,\)"),
        (ROWS, np.zeros((40, 2)), r"got shape \(40, 2\)"),
        (np.where(ROWS > 10, np.nan, ROWS), LABELS, "not finite"),
        (ROWS[0], LABELS, r"\[items, width\]; got shape \(24,\)"),
        (ROWS, np.array([None, *LABELS[1:]], dtype=object), "1 missing"),
    ],
)
def test_what_has_no_subspace_is_refused(
    method: Any, rows: np.ndarray, labels: np.ndarray, message: str
):
    with pytest.raises(ValueError, match=message):
        method(rows, labels)


def test_impossible_subspaces_are_refused(llama: interp.Subject):
    with pytest.raises(ValueError, match="not orthonormal"):
        Subspace(2 * np.eye(3), np.zeros(3))
    with pytest.raises(ValueError, match=r"a center \[width\]; got \(3, 3\) and \(2,\)"):
        Subspace(np.eye(3), np.zeros(2))
    with pytest.raises(ValueError, match="leaves none to train or to test on"):
        inlp(ROWS, LABELS, held_out=1.0)
    for basis in (np.empty((0, 32)), np.eye(31)[:2]):
        with pytest.raises(
            ValueError, match=r"blocks.1.resid_post has 32 columns; got a subspace of rank"
        ):
            erasure_plan(llama, "blocks.1.resid_post", Subspace(basis, np.zeros(basis.shape[1])))


def test_the_basis_of_inlp_is_in_order_of_its_rounds():
    rows, labels = planted()
    whole, progress = inlp(rows, labels, rounds=3, slack=-1000)
    for rounds, rank in enumerate(progress["rank"]):
        shorter, _ = inlp(rows, labels, rounds=rounds, slack=-1000)
        first = whole.first(rank)
        np.testing.assert_allclose(
            first.basis.T @ first.basis, shorter.basis.T @ shorter.basis, atol=1e-8
        )


def test_inlp_ends_at_chance_where_nothing_is_left():
    rows, labels = planted()
    space, progress = inlp(rows, labels, rounds=50, slack=-1000)
    assert space.rank == progress["rank"].iloc[-1] == WIDTH
    assert progress["accuracy"].iloc[-1] == progress["chance"].iloc[-1]
    assert len(progress) < 50


@settings(max_examples=40, deadline=None)
@given(rank=st.integers(1, WIDTH - 1), place=st.floats(0, 1), seed=st.integers(0, 1000))
def test_a_random_subspace_holds_the_share_of_the_variance_that_is_asked(rank, place, seed):
    rows, _ = planted(items=200)
    eigenvalues = np.linalg.eigvalsh(np.cov(rows, rowvar=False))
    least, most = eigenvalues[:rank].sum(), eigenvalues[::-1][:rank].sum()
    share = (least + place * (most - least)) / eigenvalues.sum()
    drawn = random_subspace_of_variance(rows, rank, share, seed)
    check_orthonormal(drawn)
    assert drawn.rank == rank
    left = drawn.remove(rows).var(0).sum() / rows.var(0).sum()
    assert left == pytest.approx(1 - share, abs=1e-6)
    assert variance_share(drawn, rows) == pytest.approx(share, abs=1e-6)


def test_random_subspaces_of_one_variance_differ_and_come_back():
    rows, labels = planted()
    means = class_means(rows, labels)
    share = 0.6 * variance_share(means, rows)
    one, other = (random_subspace_of_variance(rows, means.rank, share, seed) for seed in (0, 1))
    again = random_subspace_of_variance(rows, means.rank, share, 0)
    np.testing.assert_array_equal(one.basis, again.basis)
    assert containment(one, other) < 0.9
    uniform = np.mean([variance_share(random_subspace(means, seed), rows) for seed in range(9)])
    assert uniform < share / 2  # the control of equal rank alone removes much less
    with pytest.raises(ValueError, match=r"share=0.999: subspaces of 3 dimensions hold 0\.\d+ to"):
        random_subspace_of_variance(rows, means.rank, 0.999, 0)


def test_the_principal_subspace_is_the_one_that_holds_most():
    rows, labels = planted()
    largest = variance_share(principal(rows, CLASSES - 1), rows)
    assert largest >= variance_share(class_means(rows, labels), rows)
    drawn = random_subspace_of_variance(rows, CLASSES - 1, largest, seed=3)
    assert containment(drawn, principal(rows, CLASSES - 1)) == pytest.approx(1)


def test_containment_by_hand():
    axes = np.eye(4)
    around = np.zeros(4)
    two, three, apart = (Subspace(axes[some], around) for some in ([0, 1], [0, 1, 2], [3]))
    assert containment(three, two) == 1
    assert containment(two, three) == pytest.approx(2 / 3)
    assert containment(apart, three) == 0
    diagonal = Subspace(np.array([[1, 1, 0, 0]]) / np.sqrt(2), around)
    assert containment(Subspace(axes[:1], around), diagonal) == pytest.approx(1 / 2)
