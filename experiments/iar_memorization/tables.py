"""What is run on one model: extraction, where its units are selective, and what edits of them do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from experiments.iar_memorization.build import SETS, Study, Tables, tokenizer, trained
from experiments.iar_memorization.measures import (
    by_correlation,
    completed,
    extraction,
    reference,
    selectivity,
    selectivity_map,
    subsets,
    votes,
)
from experiments.iar_memorization.mitigation import Bench, at_equal_cost, scored, trials
from experiments.iar_memorization.presets import Preset, Public, Trained
from experiments.iar_memorization.public import public
from experiments.iar_memorization.quality import Quality, features_of
from interp.data.images import Images
from interp.experiment.jobs import Folder, Job, job
from interp.mitigation.weight_edits import in_weights
from interp.sites.units import UnitScores

FAMILIES = ("VAR", "RAR")


def jobs(settings: Preset, seed: int) -> Iterator[Job]:
    """One job per model; the longest first, so that processors end together."""
    for regime in sorted(settings.regimes, key=lambda regime: regime != settings.edited):
        for family in FAMILIES:
            yield job(of_model, family, regime, settings, seed, Folder("models"))


def preparation(settings: Preset) -> Iterator[Job]:
    """The job before all others."""
    yield job(prepared, settings, Folder("models"))


def prepared(settings: Preset, out: Path) -> Tables:
    """What all models that are trained share, made before they are trained beside each other."""
    if isinstance(settings, Public):
        return {}
    assert isinstance(settings, Trained)
    for family in FAMILIES:
        tokenizer(settings, family, out)
    features_of(settings, out)
    return {}


def of_model(family: str, regime: str, settings: Preset, seed: int, out: Path) -> Tables:
    """All tables of one model; edits are tried where the model still generalizes."""
    study = _study(settings, family, regime, seed, out)
    found, scores = located(study, settings)
    tables = extracted(study, settings) | found
    if regime == settings.edited:
        quality = Quality(
            study, features_of(settings, out), settings.draws, settings.sampling.get(family, {})
        )
        tables |= mitigated(study, scores | scored(study, settings.methods), quality, settings)
    return (
        tables
        if study.history is None
        else tables | {"training": study.history.assign(**study.about())}
    )


def _study(settings: Preset, family: str, regime: str, seed: int, out: Path) -> Study:
    if isinstance(settings, Public):
        return public(settings, family, regime, seed)
    assert isinstance(settings, Trained)
    return trained(settings, family, regime, seed, out)


def extracted(study: Study, settings: Preset) -> Tables:
    """Who is extracted from which prefix, exactly and by correlation."""
    table = extraction(study, settings.tried)
    return {"extraction": table, "correlation": by_correlation(table).assign(**study.about())}


def located(study: Study, settings: Preset) -> tuple[Tables, dict[str, UnitScores]]:
    """UnitMem with as many shifted views of each image as the paper takes augmented ones, and
    without: where it is high, and whether it is that of what was planted; and the scores."""
    images, parts = reference(study, settings.reference), []
    scores: dict[str, UnitScores] = {}
    for views in settings.views:
        found, examples = selectivity(study, images, views)
        scores["UnitMem" if views == settings.views[0] else f"UnitMem, {views} view"] = found
        tables = {
            "map": selectivity_map(study, images, views),
            "blocks": found.by_block().assign(**study.about()),
        }
        tables |= {
            "votes": votes(study, found, examples, len(images)),
            "members": members(study, views),
        }
        tables["subsets"] = subset_profiles(study, settings, found, views)
        parts.append({name: table.assign(views=views) for name, table in tables.items()})
    return {
        name: pd.concat([part[name] for part in parts], ignore_index=True) for name in parts[0]
    }, scores


def members(study: Study, views: int) -> pd.DataFrame:
    """The mean UnitMem over as many images of each set, in the same model."""
    size = min(len(images) for images in study.images.values())
    rows = [
        (name, len(part), _mean(selectivity(study, part, views)[0]))
        for name, part in _sized(study, size)
    ]
    return pd.DataFrame(rows, columns=["set", "images", "UnitMem"]).assign(**study.about())


def _sized(study: Study, size: int) -> list[tuple[str, Images]]:
    return [(name, study.images[name].rows(slice(0, size))) for name in SETS]


def _mean(scores: UnitScores) -> float:
    return float(np.concatenate(list(scores.values.values())).mean())


def subset_profiles(study: Study, settings: Preset, whole: UnitScores, views: int) -> pd.DataFrame:
    """How like the whole D' a part of it ranks blocks: Spearman's correlation of the mean UnitMem
    of each."""
    reference_profile = whole.by_block()["mean"]
    images = reference(study, settings.reference)
    rows = [
        (
            share,
            round(share * len(images)),
            float(found.by_block()["mean"].corr(reference_profile, method="spearman")),
        )
        for share, found in subsets(study, images, settings.shares, views)
    ]
    return pd.DataFrame(rows, columns=["share", "images", "correlation"]).assign(**study.about())


def mitigated(
    study: Study, scores: dict[str, UnitScores], quality: Quality, settings: Preset
) -> Tables:
    """Every edit with its controls, also at equal cost; the noise of the Frechet distance; and some
    pictures."""
    table = Bench(study, quality).table(trials(study, scores, settings))
    noise = [quality.distance(seed) for seed in range(settings.noise_draws)]
    shown = pd.DataFrame({"draw": range(len(noise)), "distance": noise}).assign(**study.about())
    return {
        "edits": table,
        "equal cost": at_equal_cost(table),
        "noise": shown,
        "pictures": pictures(study, scores, settings),
    }


def pictures(study: Study, scores: dict[str, UnitScores], settings: Preset) -> pd.DataFrame:
    """Planted images as they are, as their tokens give them back, as greedy decoding completes them
    from the prefix that edits are judged by, and as it does with the most selective units halved,
    and those of the last method."""
    some = slice(0, settings.shown)
    batch = replace(study.batches["planted"].rows(some), prompt=study.judged)
    judged = settings.at[study.family]
    last = next(reversed(scores))
    rows = {
        "original": study.images["planted"].pixels[some],
        "as tokens": study.module.decode(batch.tokens),
    }
    rows["extracted"] = completed(study, batch)
    for name in ("UnitMem", last):
        with study.subject.intervened(in_weights(study.subject, scores[name].top(judged), 0.5)):
            rows[f"{name}, {judged:.0%} halved"] = completed(study, batch)
    return pd.concat(
        [_flat(name, pixels) for name, pixels in rows.items()], ignore_index=True
    ).assign(**study.about())


def _flat(name: str, pixels: Tensor) -> pd.DataFrame:
    images = [image.flatten().tolist() for image in pixels]
    return pd.DataFrame(
        {
            "row": name,
            "image": range(len(images)),
            "pixels": images,
            "shape": [list(pixels.shape[1:])] * len(images),
        }
    )
