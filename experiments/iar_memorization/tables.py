"""The jobs of the study: for each model, which images are extracted, where units are selective, and
what edits of them do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from experiments.iar_memorization.build import Study, Tables, tokenizer, train_or_load
from experiments.iar_memorization.measures import (
    by_correlation,
    complete_images,
    extraction,
    reference,
    selectivity,
    selectivity_map,
    subsets,
    votes,
)
from experiments.iar_memorization.mitigation import Bench, score_units, trials, with_intervals
from experiments.iar_memorization.presets import (
    FAMILIES,
    SETS,
    Preset,
    Public,
    Sampling,
    Trained,
)
from experiments.iar_memorization.public import public
from experiments.iar_memorization.quality import Quality, features_of
from interp.data.images import Images
from interp.experiment.jobs import Folder, Job, job
from interp.localization.registry import find
from interp.mitigation.weight_edits import in_weights
from interp.reporting.looks import in_percent
from interp.sites.units import UnitScores


def jobs(settings: Preset, seed: int) -> Iterator[Job]:
    """One job per model.

    Models that are edited take longest. They come first, so that processors end together.
    """
    # False sorts before True: the regime whose models are edited comes first.
    for regime in sorted(settings.regimes, key=lambda regime: regime != settings.edited):
        for family in FAMILIES:
            yield job(of_model, family, regime, settings, seed, Folder("models"))


def preparation(settings: Preset) -> Iterator[Job]:
    """The job before all others; see `prepare_shared`.

    Raises:
        ValueError: a localization method or option that does not exist, with the nearest one.
    """
    for method, options in settings.methods.items():
        find(method, options)
    yield job(prepare_shared, settings, Folder("models"))


def prepare_shared(settings: Preset, out: Path) -> Tables:
    """Trains what all models of a preset share, tokenizers and classifier, before models are
    trained in parallel. Returns no tables."""
    if isinstance(settings, Public):
        return {}
    assert isinstance(settings, Trained)
    for family in FAMILIES:
        tokenizer(settings, family, out)
    features_of(settings, out)
    return {}


def of_model(family: str, regime: str, settings: Preset, seed: int, out: Path) -> Tables:
    """All tables of one model. Edits are tried in one regime only, in which models still
    generalize."""
    study = _study(settings, family, regime, seed, out)
    found, scores = localization_tables(study, settings)
    tables = extraction_tables(study, settings) | found
    if regime == settings.edited:
        sampling = settings.sampling.get(family, Sampling())
        quality = Quality(study, features_of(settings, out), settings.draws, sampling)
        # The order matters: edits, controls and figures take the first scores for the paper's
        # method (UnitMem) and the last ones for its rival.
        tables |= mitigation_tables(
            study, scores | score_units(study, settings.methods), quality, settings
        )
    if study.history is not None:
        tables["training"] = study.history.assign(**study.about())
    return tables


def _study(settings: Preset, family: str, regime: str, seed: int, out: Path) -> Study:
    if isinstance(settings, Public):
        return public(settings, family, regime, seed)
    assert isinstance(settings, Trained)
    return train_or_load(settings, family, regime, seed, out)


def extraction_tables(study: Study, settings: Preset) -> Tables:
    """Which images are extracted from which prefix, exactly and by correlation."""
    table = extraction(study, settings.tried)
    return {"extraction": table, "correlation": by_correlation(table).assign(**study.about())}


def localization_tables(study: Study, settings: Preset) -> tuple[Tables, dict[str, UnitScores]]:
    """Where UnitMem is high, and whether it is high because of the planted images.

    UnitMem is computed on shifted views of each image, the same number as the paper's augmented
    ones, and without augmentation.

    Returns:
        The tables, with a column `views`; and the scores by name, of which "UnitMem" has the first
        number of views of the settings.
    """
    images = reference(study, settings.reference)
    parts: list[Tables] = []
    scores: dict[str, UnitScores] = {}
    for views in settings.views:
        found, examples = selectivity(study, images, views)
        name = "UnitMem" if views == settings.views[0] else f"UnitMem, {views} view"
        scores[name] = found
        tables = {
            "map": selectivity_map(study, images, views),
            "blocks": found.by_block().assign(**study.about()),
            "votes": votes(study, found, examples, len(images)),
            "members": members(study, views),
            "subsets": subset_profiles(study, settings, found, views),
        }
        parts.append({name: table.assign(views=views) for name, table in tables.items()})

    joined: Tables = {}
    for name in parts[0]:
        joined[name] = pd.concat([part[name] for part in parts], ignore_index=True)
    return joined, scores


def members(study: Study, views: int) -> pd.DataFrame:
    """The mean UnitMem over the same number of `images` of each `set`, in one model."""
    # The same number of each set: a unit's largest response grows with the number of images, and
    # UnitMem with it.
    count = min(len(images) for images in study.images.values())
    rows: list[tuple[str, int, float]] = []
    for name in SETS:
        images = study.images[name].rows(slice(0, count))
        rows.append((name, len(images), _mean_selectivity(study, images, views)))
    return pd.DataFrame(rows, columns=["set", "images", "UnitMem"]).assign(**study.about())


def _mean_selectivity(study: Study, images: Images, views: int) -> float:
    scores, _ = selectivity(study, images, views)
    return float(np.concatenate(list(scores.values.values())).mean())


def subset_profiles(study: Study, settings: Preset, whole: UnitScores, views: int) -> pd.DataFrame:
    """Whether a subset of the reference images ranks the blocks as the whole set does, and whether
    the same number of held-out images does so too.

    Returns:
        One row per `share` of D' and `set` ("reference" or "held out"): the number of `images`, and
        Spearman's `correlation` of the mean UnitMem per block with that over the whole of D'.
    """
    profile = whole.by_block()["mean"]
    images = reference(study, settings.reference)
    held_out = study.images["held out"]
    rows: list[tuple[float, str, int, float]] = []

    def compare(share: float, name: str, count: int, found: UnitScores) -> None:
        own_profile = found.by_block()["mean"]
        likeness = float(own_profile.corr(profile, method="spearman"))
        rows.append((share, name, count, likeness))

    for share, count, found in subsets(study, images, settings.shares, views):
        compare(share, "reference", count, found)
        if count <= len(held_out):
            others, _ = selectivity(study, held_out.rows(slice(0, count)), views)
            compare(share, "held out", count, others)
    columns = ["share", "set", "images", "correlation"]
    return pd.DataFrame(rows, columns=columns).assign(**study.about())


def mitigation_tables(
    study: Study, scores: dict[str, UnitScores], quality: Quality, settings: Preset
) -> Tables:
    """Every edit with its controls, also at equal cost; the Frechet distance under other noise; and
    some images before and after."""
    measured = Bench(study, quality).run(trials(study, scores, settings))
    distances = [quality.distance(seed) for seed in range(settings.noise_draws)]
    noise = pd.DataFrame({"draw": range(len(distances)), "distance": distances})
    return {
        "edits": measured.table(),
        "edited images": measured.by_image(),
        "equal cost": with_intervals(measured),
        "noise": noise.assign(**study.about()),
        "pictures": pictures(study, scores, settings),
    }


def pictures(study: Study, scores: dict[str, UnitScores], settings: Preset) -> pd.DataFrame:
    """Some planted images in several rows of a figure.

    The rows are the images themselves, what the tokenizer makes of them, and what greedy decoding
    makes of the prefix that edits are judged from: in the unedited model, and with the top units of
    UnitMem or of the last method halved.

    Returns:
        One row per `row` and `image`: the `pixels`, flat, and their `shape`.
    """
    some = slice(0, settings.shown)
    batch = replace(study.batches["planted"].rows(some), prompt=study.judged)
    judged = settings.at[study.family]
    last = next(reversed(scores))
    rows = {
        "original": study.images["planted"].pixels[some],
        "as tokens": study.module.decode(batch.tokens),
        "extracted": complete_images(study, batch),
    }
    for name in ("UnitMem", last):
        plan = in_weights(study.subject, scores[name].top(judged), 0.5)
        with study.subject.intervened(plan):
            rows[f"{name}, {in_percent(judged)} halved"] = complete_images(study, batch)
    flat = [_flat(name, pixels) for name, pixels in rows.items()]
    return pd.concat(flat, ignore_index=True).assign(**study.about())


def _flat(name: str, pixels: Tensor) -> pd.DataFrame:
    images = [image.flatten().tolist() for image in pixels]
    shape = list(pixels.shape[1:])
    return pd.DataFrame(
        {
            "row": name,
            "image": range(len(images)),
            "pixels": images,
            "shape": [shape] * len(images),
        }
    )
