"""Which rule a neuron fires by: neurons are matched to heuristics, which are sets of prompts such
as "all with x_0 = 3".

After "Arithmetic Without Algorithms" (Nikankin et al. 2024, arXiv 2410.21272). Rules about operands
are matched on the neuron's activations, `ReadOut.rows`; rules about results are matched on the
activation times what the neuron writes to the right result, `key_value`. The paper's rules are
about whole numbers; rules about digits are our choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from interp.analysis.neuron_shifts import ReadOut, Tokens
from interp.errors import closest
from interp.sites.site import Site
from interp.sites.units import Units

Maps = Float[np.ndarray, "prompts neurons"]
Cover = Bool[np.ndarray, " prompts"]


def key_value(out: ReadOut, results: Tokens) -> Maps:
    """Returns each neuron's activation times the logit that its output row gives to the right
    result of the prompt (see `ReadOut.direct_effects`).

    Args:
        out: the prompts and the neurons.
        results: the token id of each prompt's right result.
    """
    return out.contribution(out.rows, results)


def match(maps: Maps, covers: Mapping[str, Cover], *, both: bool = False) -> pd.DataFrame:
    """Returns how well each heuristic describes each neuron (Nikankin et al. 2024).

    If a heuristic covers k prompts, its score is the share of them among the k prompts where the
    neuron's map is largest. Prompts that tie for the last of these places share them: the score is
    the exact mean over all ways to order them. A neuron that is the same on all prompts therefore
    scores `chance`, the share of all prompts that is covered.

    Args:
        maps: [prompts, neurons], such as activations.
        covers: which prompts each heuristic covers, [prompts] booleans by name.
        both: also score the k prompts where the map is smallest. For neurons of gated MLPs, which
            fire with both signs.

    Returns:
        One row per `neuron`, `heuristic` and `side` ("top", "bottom"), with `score` and `chance`.

    Raises:
        ValueError: no heuristic, one for another number of prompts or that covers none, or maps
            that are not finite.

    Example:
        >>> from interp.analysis.heuristics import match
        >>> maps = np.array([[0.9], [0.8], [0.1], [0.2]])
        >>> match(maps, {"first half": np.array([True, True, False, False])})
           neuron   heuristic side  score  chance
        0       0  first half  top    1.0     0.5
    """
    values = np.asarray(maps, np.float64)
    not_finite = int((~np.isfinite(values)).sum())
    if values.ndim != 2 or not_finite or not covers:
        raise ValueError(
            "expected finite maps [prompts, neurons] and at least one heuristic; "
            f"got shape {values.shape}, {not_finite} not finite, and {len(covers)} heuristics"
        )
    for name, cover in covers.items():
        _check_cover(name, np.asarray(cover), len(values))

    frames = list(_scores_by_heuristic(values, covers, "top"))
    if both:
        frames += _scores_by_heuristic(-values, covers, "bottom")
    return pd.concat(frames, ignore_index=True)


def _check_cover(name: str, cover: Cover, prompts: int) -> None:
    if cover.dtype != np.bool_ or cover.shape != (prompts,) or not cover.any():
        raise ValueError(
            f"heuristic {name!r}: expected a boolean for each of {prompts} prompts, True for some; "
            f"got {cover.dtype} of shape {cover.shape}, {int(cover.sum())} of them covered"
        )


def _scores_by_heuristic(
    values: Maps, covers: Mapping[str, Cover], side: str
) -> Iterator[pd.DataFrame]:
    # Once for all heuristics, which differ only in how many of the first places they ask for.
    descending = -np.sort(-values, axis=0)
    for name, cover in covers.items():
        score = _score(values, descending, np.asarray(cover))
        yield pd.DataFrame(
            {
                "neuron": np.arange(len(score)),
                "heuristic": name,
                "side": side,
                "score": score,
                "chance": float(np.mean(cover)),
            }
        )


def _score(values: Maps, descending: Maps, cover: Cover) -> Float[np.ndarray, " neurons"]:
    k = int(cover.sum())
    kth_value = descending[k - 1]  # [neurons]
    covered = values[cover]  # [covered prompts, neurons]

    # Prompts above the k-th value have a place for certain. Those equal to it share the places that
    # are left, so each of them counts with its chance of getting one.
    above = (values > kth_value).sum(0)
    covered_above = (covered > kth_value).sum(0)
    places_left = k - above
    covered_tied = (covered == kth_value).sum(0)
    tied = (values == kth_value).sum(0)
    covered_by_chance = places_left * covered_tied / tied
    expected_covered = covered_above + covered_by_chance
    return expected_covered / k


def best_matches(choosing: pd.DataFrame, judging: pd.DataFrame) -> pd.DataFrame:
    """Returns for each neuron the heuristic that exceeds chance most on some prompts, with its
    score on other prompts.

    The best of many heuristics scores above chance even for a neuron that fires at random, on the
    prompts that chose it. On prompts that did not, it does not.

    Args:
        choosing: what `match` returns on the prompts that choose.
        judging: what `match` returns on other prompts, of the same neurons and heuristics.

    Returns:
        One row per neuron, of `judging`, with the further column `score_where_chosen`.

    Raises:
        ValueError: a heuristic that was chosen has no row in `judging`.

    Example:
        >>> from interp.analysis.heuristics import best_matches, match
        >>> maps = np.array([[0.9], [0.8], [0.1], [0.2]])
        >>> covers = {"first": np.array([True, True, False, False])}
        >>> covers["even"] = np.array([True, False, True, False])
        >>> chosen = best_matches(match(maps, covers), match(maps[::-1], covers))
        >>> chosen[["heuristic", "score", "score_where_chosen"]]
          heuristic  score  score_where_chosen
        0     first    0.0                 1.0
    """
    # `idxmax` gives labels, which tables that were joined may have on several rows.
    choosing = choosing.reset_index(drop=True)
    above_chance = choosing["score"] - choosing["chance"]
    best = choosing.loc[above_chance.groupby(choosing["neuron"]).idxmax()]
    best = best.rename(columns={"score": "score_where_chosen"}).drop(columns="chance")
    keys = [name for name in best.columns if name != "score_where_chosen"]
    # From the left, so that a choice without a row to judge it is refused below, and not lost.
    found = best.merge(judging, on=keys, how="left")
    missing = found["score"].isna()
    if missing.any():
        first = found.loc[missing, "heuristic"].iloc[0]
        raise ValueError(
            "expected a score of each chosen heuristic on the prompts that judge; "
            f"{int(missing.sum())} have none, the first is {first!r}"
        )
    return found


def keep_matches(frame: pd.DataFrame, threshold: float = 0.6) -> pd.DataFrame:
    """Returns the rows of `match`, or of `best_matches`, whose score is at least a threshold, by
    default that of Nikankin et al. 2024.

    The threshold is the same for all heuristics, so a heuristic whose `chance` is as high matches
    any neuron. Compare the two columns before counting.

    Args:
        frame: what `match` returns.
        threshold: the lowest score that is a match.
    """
    return frame.loc[frame["score"] >= threshold].reset_index(drop=True)


def neurons_of(frame: pd.DataFrame, heuristic: str, site: Site | str, width: int) -> Units:
    """Returns the neurons that matched a heuristic, on either side, as units: for `Zero`, for
    example.

    Args:
        frame: what `keep_matches` returns.
        heuristic: name of the heuristic.
        site: the site of the neurons.
        width: the number of neurons at the site.

    Raises:
        ValueError: no neuron matched the heuristic.

    Example:
        >>> from interp.analysis.heuristics import match, keep_matches, neurons_of
        >>> maps = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.8], [0.2, 0.9]])
        >>> found = keep_matches(match(maps, {"late": np.array([False, False, True, True])}))
        >>> neurons_of(found, "late", "blocks.0.neurons", 2)[interp.Site("neurons", 0)]
        array([1])
    """
    neurons = frame.loc[frame["heuristic"] == heuristic, "neuron"].tolist()
    if not neurons:
        names = frame["heuristic"].unique().tolist()
        raise ValueError(
            f"no neuron matched {heuristic!r}; "
            f"nearest of {len(names)} that were: {closest(heuristic, names)}"
        )
    where = Site.parse(site) if isinstance(site, str) else site
    return Units({where: neurons}, {where: width})


def digit_features(values: Mapping[str, Int[np.ndarray, " prompts"]]) -> dict[str, Cover]:
    """Returns heuristics about variables of a prompt, such as a digit, a carry or the sum of two
    digits.

    For each variable: that it equals one of its values, its parity, its remainder modulo 5, and
    whether it is in the lower or the upper half of its range (`low` includes the middle of the
    smallest and the largest value). Heuristics that cover all prompts are left out, and so are
    those of a variable that cover the same prompts as an earlier one in this list.

    Args:
        values: the value of each prompt, by the name of the variable.

    Returns:
        Which prompts each heuristic covers, by a name such as "x_0 = 3".

    Example:
        >>> from interp.analysis.heuristics import digit_features
        >>> list(digit_features({"carry": np.array([0, 1, 1, 0])}))
        ['carry = 0', 'carry = 1']
    """
    features: dict[str, Cover] = {}
    for name, of_prompts in values.items():
        for rule, cover in _rules(np.asarray(of_prompts)).items():
            features[f"{name} {rule}"] = cover
    return features


def _rules(values: Int[np.ndarray, " prompts"]) -> dict[str, Cover]:
    rules: dict[str, Cover] = {}
    for value in np.unique(values):
        rules[f"= {value}"] = values == value
    for modulus in (2, 5):
        remainders = values % modulus
        for remainder in np.unique(remainders):
            rules[f"% {modulus} = {remainder}"] = remainders == remainder
    middle = (values.min() + values.max()) / 2
    rules["low"] = values <= middle
    rules["high"] = values > middle

    # Two rules that cover the same prompts cannot be told apart: a neuron would be given to the one
    # that comes first.
    distinct: dict[str, Cover] = {}
    seen: set[bytes] = set()
    for rule, cover in rules.items():
        covers_some = cover.any() and not cover.all()
        if covers_some and cover.tobytes() not in seen:
            seen.add(cover.tobytes())
            distinct[rule] = cover
    return distinct
