"""Which method finds the sinks of a model that was trained with them: its memorizing neurons are
known, because training put what is repeated there (Ghosal et al., arXiv 2507.09937)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from interp.adapters.weights import applied
from interp.interventions.plan import Plan
from interp.localization.benchmarks.known_answers import Choice, scored_each
from interp.localization.registry import WindowMethod, find, localize
from interp.progress import track
from interp.sites.site import Site
from interp.sites.units import Units, UnitScores, rank_units
from interp.subject.batch import Batch, Batches, reusable
from interp.subject.subject import Subject

# How many random predictions a control is a mean over.
_DRAWS = 20


def sink_recall(
    subject: Subject,
    plan: Plan,
    pool: Units,
    own: Sequence[Units],
    windows: Batch,
    methods: Mapping[str, Choice],
    reference: Batches | None = None,
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """Asks every method for the sinks of each window, and for the whole pool.

    A method predicts the same number of neurons at each site as there are true ones, so that recall
    and precision are the same.

    Args:
        subject: a model that was trained with sinks.
        plan: how it is run while it is searched, without a method being told any document:
            `sinks.scaled()`.
        pool: all sinks, `sinks.pool`.
        own: the sinks of each window, `sinks.units([id])`.
        windows: repeated windows of the training.
        methods: the methods, by the name that they have in the result.
        reference: windows that are given to the methods that compare.
        seed: seed of the random control.

    Returns:
        A frame with one row per `method`, `truth`, `selection` and `window`, and the `recall`.
        `truth` is "own sinks" (among all neurons), "own sinks, among sinks" (whoever knows the pool
        asks for the document's part) or "pool", which is asked for once for all windows, with
        `window` -1. `selection` is "highest" or a control: "lowest" scores, or "random" neurons,
        whose recall is also that of chance.

    Raises:
        ValueError: not one set of sinks for each window, or a plan that weights cannot express.

    Example:
        >>> from interp.localization.benchmarks.known_answers import Choice
        >>> from interp.localization.benchmarks.sinks import sink_recall
        >>> from interp.mitigation.sinks import Sinks
        >>> sinks = Sinks.of(subject, general=0.5, active=0.25)
        >>> own = [sinks.units([document]) for document in (1, 2)]
        >>> methods = {"by activation": Choice("activation")}
        >>> two = batch.rows(slice(2))
        >>> found = sink_recall(subject, sinks.scaled(), sinks.pool, own, two, methods)
        >>> found.groupby("truth", sort=False).size().to_dict()
        {'own sinks': 6, 'own sinks, among sinks': 6, 'pool': 3}
    """
    if len(own) != len(windows):
        raise ValueError(
            f"sinks of {len(own)} documents were given for {len(windows)} windows: expected those "
            "of each window"
        )
    # A stream can be read once, and every method reads it.
    reference = None if reference is None else reusable(reference)
    rows: list[dict[str, Any]] = []
    with applied(subject, plan):
        for name, choice in track(methods.items(), "methods"):
            against = reference if choice.compares else None
            [each] = scored_each(subject, windows, {name: choice}, reference).values()
            for number, (scores, truth) in enumerate(zip(each, own, strict=True)):
                for kind, among in (("own sinks", None), ("own sinks, among sinks", pool)):
                    for selection, recall in _recalls(scores, truth, among, seed + number).items():
                        about = {"method": name, "truth": kind, "selection": selection}
                        rows.append({**about, "window": number, "recall": recall})
            of_all = _of_all(subject, windows, against, choice, each)
            for selection, recall in _recalls(of_all, pool, None, seed).items():
                about = {"method": name, "truth": "pool", "selection": selection}
                rows.append({**about, "window": -1, "recall": recall})
    return pd.DataFrame(rows)


def _of_all(
    subject: Subject,
    windows: Batch,
    reference: Batches | None,
    choice: Choice,
    each: Sequence[UnitScores],
) -> UnitScores:
    """What `localize` finds for all windows, given what it found for each."""
    if isinstance(find(choice.method, choice.options), WindowMethod):
        # Their mean: it need not be measured once more.
        values = {site: np.mean([one[site] for one in each], 0) for site in each[0].widths}
        return UnitScores(values, choice.method)
    return localize(subject, windows, reference, choice.method, "neurons", **choice.options)


def _recalls(scores: UnitScores, truth: Units, among: Units | None, seed: int) -> dict[str, float]:
    """The share of the true units that the highest, the lowest and random scores find."""
    rng = np.random.default_rng(seed)
    found = {"highest": 0, "lowest": 0}
    drawn = 0.0
    for site in truth.sites:
        is_true = _mask(truth, site)
        # Neurons that may be predicted; from here on they are counted among themselves.
        candidates = np.arange(len(is_true)) if among is None else among[site]
        count = int(is_true.sum())
        is_candidate_true = is_true[candidates]
        order = rank_units(scores[site][candidates])
        found["highest"] += int(is_candidate_true[order[:count]].sum())
        # `count` is at least 1, because `truth.sites` are those with units: [-0:] would be all.
        found["lowest"] += int(is_candidate_true[order[-count:]].sum())
        for _ in range(_DRAWS):
            drawn += is_candidate_true[rng.permutation(len(candidates))[:count]].sum() / _DRAWS
    found_shares = {name: hits / len(truth) for name, hits in found.items()}
    return {**found_shares, "random": float(drawn) / len(truth)}


def _mask(units: Units, site: Site) -> Bool[np.ndarray, " width"]:
    mask = np.zeros(units.widths[site], dtype=bool)
    mask[units[site]] = True
    return mask
