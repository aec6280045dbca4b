"""What is checked: the claims C1 to C13 about the paper, the bars B that toy models must meet
before the other claims mean anything, and D, practices seen elsewhere that should be avoided.

What the paper says is known from its abstract and from public notes on it (`found`). The models
that it names are not trained here: in the preset small its claims are checked on models of the same
architecture. Thresholds were fixed on pilot seeds 100 and 101.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from experiments.iar_memorization.checks_of_edits import cheaper, of_edits, tokens
from experiments.iar_memorization.measures import SAFE, centre
from experiments.iar_memorization.presets import FAMILIES, Bar, Preset, Trained
from interp.experiment.checks import (
    Check,
    Measure,
    Measured,
    Tables,
    above,
    at_least,
    at_most,
    below,
    bounded,
    constant,
    mean,
    minus,
    over_items,
    rows,
)

_EXTRACTION = "figures/extraction.png"
_BLOCKS = "figures/blocks.png"
# The exchange of two neighbours among the six blocks of `small` leaves a correlation of 0.943:
# above 0.95, their order must be the same.
_SAME_ORDER = 0.95


def checks(settings: Preset) -> list[Check]:
    """All checks of a preset. The checks of duplicates and of bars are left out of a preset without
    these."""
    found: list[Check] = []
    for family in FAMILIES:
        found += _extraction(family, settings)
        found += _duplicates(family, settings)
        found += _selective(family, settings)
        found += of_edits(family, settings)
    return [*found, cheaper(settings), _deepening(settings), _early(settings), _depth(settings)]


def _model(family: str, settings: Preset) -> dict[str, Any]:
    """The columns that choose the models of a family that are edited."""
    return {"family": family, "regime": settings.edited}


def _extracted(**where: Any) -> Measure:
    """The share of some images that is extracted exactly."""
    return mean("extraction", "exact", item=["set", "image"], bounds=(0, 1), **where)


def _extraction(family: str, settings: Preset) -> list[Check]:
    model = _model(family, settings)
    prefixes = settings.prefixes[family]
    longest = prefixes[-1]

    def share(name: str, prefix: int) -> Measured:
        return _extracted(set=name, prefix=prefix, **model)

    def by_prefix(name: str, tables: Tables) -> np.ndarray:
        """The share extracted from each prefix."""
        chosen = rows(tables["extraction"], model | {"set": name})
        return chosen.groupby("prefix")["exact"].mean().to_numpy()

    def least_rise(tables: Tables) -> float:
        return float(np.diff(by_prefix("planted", tables)).min())

    def most_held_out(tables: Tables) -> float:
        return float(by_prefix("held out", tables).max())

    def above_fixed(prefix: int) -> Measure:
        """Of the held-out images that set no threshold, the share that correlates above SAFE."""
        where = model | {"set": "held out", "prefix": prefix}

        def above_it(tables: Tables) -> pd.Series:
            correlations = rows(tables["extraction"], where).set_index("image")["correlation"]
            # The even images set the other threshold. Both thresholds are judged on the odd ones,
            # so that the two shares differ by the threshold alone.
            return (correlations[1::2] > SAFE).astype(float)

        return over_items("share above the threshold", above_it, (0, 1))

    def above_own_threshold() -> Measured:
        where = model | {"set": "held out", "prefix": longest}
        return mean("correlation", "share", bounds=(0, 1), fixed=False, **where)

    from_class = share("planted", prefixes[0])
    from_longest = share("planted", longest)
    found = [
        Check(
            id=f"C10a {family}",
            statement="exact extraction does not fall as the prefix grows, on any seed",
            measure=least_rise,
            threshold=at_least(0),
            evidence=_EXTRACTION,
            controls={"from the class alone": from_class, "from the longest prefix": from_longest},
            source="inferred",
            over="every",
        ),
        Check(
            id=f"C10b {family}",
            # On every seed: a mean over seeds would hide one on which prefixes give images away
            # that the model has never seen.
            statement="at most 1% of the held-out images are extracted exactly, from any prefix, "
            "on any seed",
            measure=most_held_out,
            threshold=at_most(0.01),
            evidence=_EXTRACTION,
            controls={"planted, from the longest prefix": from_longest},
            source="inferred",
            over="every",
        ),
        Check(
            id=f"D1 {family}",
            statement=f"{family}: with {tokens(longest, family, settings)} given, more than 1% of "
            f"the held-out images correlate above {SAFE} with their completion, so that they would "
            "count as extracted",
            measure=above_fixed(longest),
            threshold=above(0.01),
            evidence="figures/correlation.png",
            controls={
                f"with {tokens(prefixes[1], family, settings)} given": above_fixed(prefixes[1]),
                "with the threshold set on the other half of them": above_own_threshold(),
            },
            paper="0.29 in a pilot with another tokenizer",
            source="measured",
        ),
    ]
    return found if settings.bar is None else [_bar(family, settings, settings.bar), *found]


def _bar(family: str, settings: Preset, bar: Bar) -> Check:
    model = _model(family, settings)
    given = bar.prefix[family]

    def extracted(tables: Tables) -> float:
        table = rows(tables["extraction"], model | {"prefix": given})
        return float(table[table["set"].isin(bar.sets)]["exact"].sum())

    held_out = _extracted(set="held out", prefix=given, **model)
    return Check(
        id=f"B1 {family}",
        statement=f"{family}: at least {bar.least} of {bar.of} training images are extracted "
        f"exactly from {tokens(given, family, settings)}, on every seed",
        measure=extracted,
        threshold=at_least(bar.least),
        evidence=_EXTRACTION,
        controls={"share of held-out images": held_out},
        source="chosen",
        over="every",
    )


def _duplicates(family: str, settings: Preset) -> list[Check]:
    if settings.duplicated is None:
        return []
    # The shortest prefix beyond the class: from longer ones nearly all training images are
    # extracted, and duplicates cannot be told from singles.
    prefix = settings.prefixes[family][1]

    def share(name: str) -> Measured:
        where = {"family": family, "regime": settings.duplicated}
        return _extracted(set=name, prefix=prefix, **where)

    given = "token" if prefix == 1 else "tokens"
    duplicates = share("planted")
    singles = share("background")
    return [
        Check(
            id=f"C11 {family}",
            statement=f"with {prefix} {given} given, duplicated images are extracted more often "
            "than images that occur once in training",
            measure=minus(duplicates, singles),
            threshold=above(0),
            evidence=_EXTRACTION,
            controls={"duplicates": duplicates, "singles": singles},
            source="inferred",
            opposite=below(0),
        )
    ]


def _selective(family: str, settings: Preset) -> list[Check]:
    model = _model(family, settings)
    many, *_, one = settings.views

    def least_correlation(images: str) -> Measured:
        where = model | {"views": many, "set": images}

        def least(tables: Tables) -> float:
            return float(rows(tables["subsets"], where)["correlation"].min())

        return bounded(least, -1, 1)

    def mean_unitmem(views: int) -> Measured:
        return mean("blocks", "mean", bounds=(0, 1), views=views, **model)

    def held_out_unitmem(views: int) -> Measured:
        where = model | {"set": "held out", "views": views}
        return mean("members", "UnitMem", bounds=(0, 1), **where)

    return [
        Check(
            id=f"C9 {family}",
            statement="parts of the reference set D' rank the blocks as the whole set does, on "
            f"every seed (Spearman correlation above {_SAME_ORDER}{_blocks(settings)})",
            measure=least_correlation("reference"),
            threshold=above(_SAME_ORDER),
            evidence="figures/subsets.png",
            controls={"the same number of held-out images": least_correlation("held out")},
            paper="same pattern for 1, 5, 10 and 20% (notes)",
            over="every",
        ),
        _respond_to_planted("a", family, many, model),
        _respond_to_planted("b", family, one, model),
        _higher_over_members(family, settings),
        Check(
            id=f"D2 {family}",
            statement="augmented views raise UnitMem, as they do in self-supervised models",
            measure=minus(mean_unitmem(many), mean_unitmem(one)),
            threshold=above(0),
            evidence=_BLOCKS,
            controls={
                "over held-out images alone": minus(held_out_unitmem(many), held_out_unitmem(one)),
                "no augmentation": mean_unitmem(one),
            },
            paper="without augmentation UnitMem is lower (Wang et al. 2024)",
            opposite=below(0),
        ),
    ]


def _blocks(settings: Preset) -> str:
    """What the threshold of C9 says about the blocks of a model, where their number is known."""
    if not isinstance(settings, Trained):
        return ""
    count = settings.model.depth
    # Spearman's correlation when two neighbours change places.
    one_exchange = 1 - 12 / (count * (count**2 - 1))
    allowed = "the same order" if one_exchange <= _SAME_ORDER else "neighbours may change places"
    return f": with {count} blocks, {allowed}"


def _respond_to_planted(letter: str, family: str, views: int, model: Mapping[str, Any]) -> Check:
    def enrichment(neurons: str) -> Measured:
        return mean("votes", "enrichment", views=views, neurons=neurons, **model)

    augmentation = "no augmentation" if views == 1 else f"{views} views"
    return Check(
        id=f"C12{letter} {family}",
        statement="of the top 10% of neurons by UnitMem, a larger share responds most to a planted "
        f"image than the share of planted images in the reference set D' ({augmentation})",
        measure=enrichment("top 10%"),
        threshold=above(1),
        evidence="figures/votes.png",
        controls={"chance": constant(1.0), "all neurons": enrichment("all")},
        paper="2.7 (VAR) and 6.0 (RAR) in a pilot without augmentation, of another implementation",
        source="measured",
        opposite=below(1),
    )


def _higher_over_members(family: str, settings: Preset) -> Check:
    many, *_, one = settings.views

    def excess(regime: str, views: int) -> Measured:
        where = {"family": family, "regime": regime, "views": views}
        return minus(
            mean("members", "UnitMem", bounds=(0, 1), set="planted", **where),
            mean("members", "UnitMem", bounds=(0, 1), set="held out", **where),
        )

    # Where most of what was trained on is memorized, UnitMem has the best chance to be higher on
    # it.
    regime = settings.duplicated or settings.edited
    return Check(
        id=f"C13 {family}",
        statement="mean UnitMem is higher over training images than over the same number of "
        "held-out images, in the same model (no augmentation)",
        measure=excess(regime, one),
        threshold=above(0),
        evidence="figures/members.png",
        controls={
            f"{many} views": excess(regime, many),
            f"{settings.edited}, no augmentation": excess(settings.edited, one),
        },
        source="inferred",
        opposite=below(0),
    )


def _deepening(settings: Preset) -> Check:
    where = _model("VAR", settings) | {"views": settings.views[0]}

    def rising(tables: Tables) -> float:
        segments = rows(tables["map"], where).groupby("segment", sort=False)
        centres = [centre(part, "top") for _, part in segments]
        # Scale 1 sees the class alone: a unit that is selective there responds to the class, not to
        # the image.
        later = centres[1:]
        return float(spearmanr(range(len(later)), later).statistic)

    return Check(
        id="C6",
        statement="VAR: the later the scale, the deeper lies the centre of its top 10% of neurons "
        "by UnitMem (Spearman correlation, from scale 2 on)",
        measure=bounded(rising, -1, 1),
        threshold=above(0),
        evidence="figures/map.png",
        paper="early blocks at coarse scales, deeper ones at finer scales (abstract)",
        opposite=below(0),
    )


def _early(settings: Preset) -> Check:
    model = _model("VAR", settings)
    many, *_, one = settings.views

    def first_fifth(views: int) -> Measured:
        def share(tables: Tables) -> float:
            chosen = rows(tables["blocks"], model | {"views": views})
            by_block = chosen.groupby("block")["share"].mean()
            # Blocks 0 to 2 of the 16 of VAR-d16 are about a fifth of its depth; other depths are
            # judged on the same share.
            count = max(1, round(len(by_block) / 5))
            return float(by_block[by_block.index < count].sum())

        return bounded(share, 0, 1)

    return Check(
        id="C7",
        statement="VAR-d16: the first fifth of the blocks holds more than half of the top 10% of "
        "neurons by UnitMem",
        measure=first_fifth(many),
        threshold=above(0.5),
        evidence=_BLOCKS,
        controls={"no augmentation": first_fifth(one)},
        paper="0.569 in blocks 0 to 2 of the real VAR-d16 (an independent run)",
        # The statement names VAR-d16, which is not trained here: the number is reported and never
        # judged.
        testable=False,
    )


def _depth(settings: Preset) -> Check:
    def depth(family: str) -> Measured:
        where = _model(family, settings) | {"views": settings.views[0]}
        return bounded(lambda tables: centre(rows(tables["blocks"], where), "share"), 0, 1)

    return Check(
        id="C8",
        statement="RAR: the centre of the top 10% of neurons by UnitMem lies beyond half the depth",
        measure=depth("RAR"),
        threshold=above(0.5),
        evidence=_BLOCKS,
        controls={"evenly spread": constant(0.5), "VAR": depth("VAR")},
        paper="middle and late blocks (abstract, notes)",
        opposite=below(0.5),
    )
