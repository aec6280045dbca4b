"""Which rule a neuron fires by: neurons matched to heuristics, sets of prompts such as "x_0 = 3",
as in Nikankin et al. 2024.

"Arithmetic Without Algorithms" (arXiv 2410.21272). Rules over operands are matched on the
activation map, `ReadOut.rows`; rules over results on its product with what the neuron writes to the
right result, `key_value`. Theirs are rules over whole numbers; those over digits are our choice.
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
    """A neuron's activation times the logit that its output row gives to the prompt's right result
    (see `ReadOut.direct_effects`)."""
    return out.contribution(out.rows, results)


def match(maps: Maps, covers: Mapping[str, Cover], *, both: bool = False) -> pd.DataFrame:
    """How well each heuristic describes each neuron: of the k prompts where the neuron's map is
    largest, the share that the heuristic covers, k being how many it covers in all (Nikankin et al.
    2024).

    Prompts that tie at the k-th place share the places left: the score is the mean over all ways to
    order them, exactly. A neuron that is the same everywhere scores `chance`, the share of all
    prompts that is covered.

    Args:
        both: also for the k prompts where it is smallest, for neurons of gated MLPs, which fire
        with both signs.

    Returns one row for each `neuron`, `heuristic` and `side` ("top", "bottom"), with `score` and
    `chance`. Raises ValueError without a heuristic, for one of another number of prompts or that
    covers none, and for maps that are not finite.
    """
    values = np.asarray(maps, np.float64)
    if values.ndim != 2 or not np.isfinite(values).all() or not covers:
        got = f"shape {values.shape}, {int((~np.isfinite(values)).sum())} not finite, and {len(covers)} heuristics"
        raise ValueError(
            f"expected finite maps [prompts, neurons] and at least one heuristic; got {got}"
        )
    for name, cover in covers.items():
        _check(name, np.asarray(cover), len(values))
    sides = {"top": values} | ({"bottom": -values} if both else {})
    return pd.concat(
        [frame for side, of in sides.items() for frame in _scored(of, covers, side)],
        ignore_index=True,
    )


def _check(name: str, cover: Cover, prompts: int) -> None:
    if cover.dtype != np.bool_ or cover.shape != (prompts,) or not cover.any():
        got = f"{cover.dtype} of shape {cover.shape}, {int(cover.sum())} of them covered"
        raise ValueError(
            f"heuristic {name!r}: expected a boolean for each of {prompts} prompts, True for some; got {got}"
        )


def _scored(values: Maps, covers: Mapping[str, Cover], side: str) -> Iterator[pd.DataFrame]:
    ordered = -np.sort(-values, axis=0)
    for name, cover in covers.items():
        score = _score(values, ordered, np.asarray(cover))
        yield pd.DataFrame(
            {
                "neuron": np.arange(len(score)),
                "heuristic": name,
                "side": side,
                "score": score,
                "chance": float(np.mean(cover)),
            }
        )


def _score(values: Maps, ordered: Maps, cover: Cover) -> Float[np.ndarray, " neurons"]:
    """(covered above the k-th value + places left * covered share of those that tie with it) / k."""
    k = int(cover.sum())
    cut, own = ordered[k - 1], values[cover]
    left = k - (values > cut).sum(0)
    return ((own > cut).sum(0) + left * (own == cut).sum(0) / (values == cut).sum(0)) / k


def matched(frame: pd.DataFrame, threshold: float = 0.6) -> pd.DataFrame:
    """The rows of `match` whose score is at least the threshold, which is theirs.

    It is a fixed one: a heuristic whose `chance` is as high matches any neuron. Compare the two
    columns before counting.
    """
    return frame.loc[frame["score"] >= threshold].reset_index(drop=True)


def neurons_of(frame: pd.DataFrame, heuristic: str, site: Site | str, width: int) -> Units:
    """The neurons that matched a heuristic, on either side, as units of a site so wide: what `Zero`
    knocks out.

    Raises ValueError when none did.
    """
    found = frame.loc[frame["heuristic"] == heuristic, "neuron"].tolist()
    if not found:
        names = frame["heuristic"].unique().tolist()
        raise ValueError(
            f"no neuron matched {heuristic!r}; nearest of {len(names)} that were: {closest(heuristic, names)}"
        )
    where = Site.parse(site) if isinstance(site, str) else site
    return Units({where: found}, {where: width})


def digit_features(values: Mapping[str, Int[np.ndarray, " prompts"]]) -> dict[str, Cover]:
    """Heuristics over variables of a prompt, such as a digit, a carry or the sum of two digits.

    For each: equal to one of its values, its parity, its rest modulo 5, and the lower and upper
    half of its range (`low` up to the middle of the smallest and largest value). Left out are those
    that cover all prompts, and of one variable's those that cover the same prompts as one named
    earlier in this list.
    """
    return {
        f"{name} {rule}": cover
        for name, of in values.items()
        for rule, cover in _rules(np.asarray(of)).items()
    }


def _rules(of: Int[np.ndarray, " prompts"]) -> dict[str, Cover]:
    middle = (of.min() + of.max()) / 2
    rules = {f"= {v}": of == v for v in np.unique(of)}
    rules |= {f"% {n} = {r}": of % n == r for n in (2, 5) for r in np.unique(of % n)}
    rules |= {"low": of <= middle, "high": of > middle}
    first: dict[bytes, str] = {}
    for rule, cover in rules.items():
        first.setdefault(cover.tobytes(), rule)
    return {
        rule: rules[rule] for rule in first.values() if rules[rule].any() and not rules[rule].all()
    }
