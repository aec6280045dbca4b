"""What is run on one seed: a pool of classifiers for each data set of pictures, and a pool of
language models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import interp
from experiments.informia import pictures, prose
from experiments.informia.measures import Signals, attacks, curve_points, judged, token_auc
from experiments.informia.presets import Pictures, Preset, Prose
from interp.experiment.jobs import Folder, Job, folder_of, job
from interp.memorization.membership.corpus import membership, scored_texts
from interp.memorization.membership.token_map import token_map
from interp.subject.batch import Batch
from interp.training.fit import fit
from interp.training.reference_pool import ReferencePool, complementary_halves
from interp.training.state import load_weights, save_weights

TABLES = (
    "attacks",
    "training",
    "curves",
    "passages",
    "kinds",
    "top",
    "dose",
    "identity",
    "example",
)
_LIKELY_OFFSET = 0.3  # RMIA's `a` for pictures, its authors' value for CIFAR-10
_TOP = 0.06  # share of the passages that count as highest-scoring: 60 of 1,000
_IDENTITY_PASSAGES = 50
# Columns of `membership` that are no scores, or are those of an attack that has its row already.
_NO_ATTACKS = ["text", "tokens", "loss", "ratio", "informia_sum"]
# Scores that need no reference model, and so one forward pass per text and not two.
_WITHOUT_REFERENCE = ("zlib", "min_k", "min_k_plus_plus")
Tables = dict[str, pd.DataFrame]


def jobs(preset: Preset, seed: int) -> Iterator[Job]:
    """One job for the text, which takes longest, and one per data set of pictures."""
    yield job(text, preset, seed, Folder("models"))
    for settings in preset.pictures:
        yield job(classifiers, preset, settings, seed, Folder("models"))


def classifiers(preset: Preset, settings: Pictures, seed: int, folder: Path) -> Tables:
    """Every model of a pool of classifiers attacked with the others as references."""
    data, population = pictures.draw(settings, seed)
    pool = complementary_halves(len(data), settings.pairs, seed)
    place = folder_of(folder, settings, seed)
    of_data: list[np.ndarray] = []
    of_population: list[np.ndarray] = []
    accuracy: list[dict[str, Any]] = []
    for number, classifier in enumerate(pictures.trained(settings, pool, data, seed, place)):
        of_data.append(pictures.log_p(classifier, data))
        of_population.append(pictures.log_p(classifier, population))
        members = pool.members[number]
        accuracy.append(
            {
                "data": settings.name,
                "target": number,
                "epochs": settings.epochs,
                "loss_members": -of_data[-1][members].mean(),
                "loss_others": -of_data[-1][~members].mean(),
            }
        )
    log_p = np.stack(of_data)  # [models, pictures], nats
    log_p_population = np.stack(of_population)  # [models, points], nats

    rows: list[dict[str, Any]] = []
    curves: list[pd.DataFrame] = []
    # Every model is a target in turn: the items of the claims are targets.
    for target in range(pool.models):
        for references in preset.references_of(settings):
            of_points = pool.untrained_on_population(
                target, references, len(population), seed=1000 * seed + target
            )
            signals = Signals(
                target=log_p[target],
                out=pool.choose(log_p, target, references),
                population=log_p_population[target],
                population_out=np.take_along_axis(log_p_population, of_points, axis=0),
                members=pool.members[target],
            )
            about = {
                "data": settings.name,
                "epochs": settings.epochs,
                "target": target,
                "references": references,
            }
            found = attacks(
                signals,
                preset.populations,
                preset.draws,
                a=_LIKELY_OFFSET,
                seed=1000 * seed + target,
            )
            rows += [{**about, **row} for row in found]
            if target == 0 and references == max(preset.references_of(settings)):
                curves.append(curve_points(signals, preset.populations, _LIKELY_OFFSET, about))
    tables = {"attacks": pd.DataFrame(rows), "training": pd.DataFrame(accuracy)}
    if curves:
        tables["curves"] = pd.concat(curves, ignore_index=True)
    return tables


def text(preset: Preset, seed: int, folder: Path) -> Tables:
    """Every model of a pool of language models attacked after several epochs of fine-tuning, and
    what is found about single tokens."""
    settings = preset.prose
    texts = prose.corpus(settings, seed)
    pool = complementary_halves(len(texts.pool), settings.pairs, seed)
    place = folder_of(folder, settings, seed)
    base = prose.base_model(settings, texts, seed, place)
    _train_all(settings, texts, pool, base, seed, place)
    one_step = _one_step(settings, texts, seed)

    rows: list[dict[str, Any]] = []
    losses: list[dict[str, Any]] = []
    curves: list[pd.DataFrame] = []
    tokens: list[Tables] = []
    for epochs in settings.epochs:
        models = [_at(base, place, number, epochs) for number in range(pool.models)]
        for target, model in enumerate(models):
            about = {"data": "text", "epochs": epochs, "target": target, "references": 1}
            ids = texts.pool.tokens.tolist()
            scores = _against(model, models, ids, pool.untrained_on(target, 1)[0])
            if epochs == preset.epoch:
                for name, reference in (("base", base), ("one_step", one_step)):
                    other = membership(model, ids, reference, batch_size=64)
                    scores[f"informia_{name}"] = other["informia"]
            of_points = pool.untrained_on_population(
                target, 1, len(texts.population), seed=1000 * seed + target
            )[0]
            population = _against(model, models, texts.population.tokens.tolist(), of_points)
            signals = Signals(
                # The score "loss" is the mean log-probability per token, larger for members.
                target=scores["loss"].to_numpy(),
                out=_log_p_out(scores)[None],
                population=population["loss"].to_numpy(),
                population_out=_log_p_out(population)[None],
                members=pool.members[target],
            )
            members = pool.members[target]
            found = attacks(
                signals, preset.populations, preset.draws, a=1.0, seed=1000 * seed + target
            )
            # Scores from tokens or from the text, which `attacks` cannot make: it has log p of
            # whole texts.
            for name in scores.columns.difference(_NO_ATTACKS):
                passes = 1 if name in _WITHOUT_REFERENCE else 2
                row = judged(str(name), scores[name], members, forwards=passes * len(scores))
                found.append(row)
            rows += [{**about, **row} for row in found]
            losses.append(
                {
                    "data": "text",
                    "target": target,
                    "epochs": epochs,
                    "loss_members": -scores["loss"][members].mean(),
                    "loss_others": -scores["loss"][~members].mean(),
                }
            )
            if epochs == preset.epoch:
                tokens.append(_token_tables(model, models, scores, texts, pool, target))
                if target == 0:
                    curves.append(curve_points(signals, preset.populations, 1.0, about))
                    tokens[-1]["example"] = _example(model, models, texts, pool, target)
                    tokens[-1]["identity"] = _identity(models, one_step, texts)
    tables = {
        # The first target has all tables: "example" and "identity" are made once, with it.
        name: pd.concat([part[name] for part in tokens if name in part], ignore_index=True)
        for name in tokens[0]
    }
    return tables | {
        "attacks": pd.DataFrame(rows),
        "training": pd.DataFrame(losses),
        "curves": pd.concat(curves, ignore_index=True),
        "dose": _dose(settings, texts, base, seed, place),
    }


def _train_all(
    settings: Prose,
    texts: prose.Corpus,
    pool: ReferencePool,
    base: interp.Subject,
    seed: int,
    place: Path,
) -> None:
    """Fine-tunes every model of the pool and keeps its weights after the epochs that are
    measured."""
    for number in range(pool.models):
        if _file(place, number, settings.epochs[-1]).exists():
            continue
        learner = prose.copied(base)

        def keep(epoch: int, learner: interp.Subject = learner, number: int = number) -> None:
            if epoch in settings.epochs:
                save_weights(_file(place, number, epoch), learner.module)

        own = texts.pool.rows(torch.from_numpy(pool.members[number]))
        order = 1000 * seed + number
        prose.fine_tune(learner, settings, own, order, settings.epochs[-1], keep)


def _file(place: Path, number: int, epoch: int) -> Path:
    return place / f"model{number}-epoch{epoch}.safetensors"


def _at(base: interp.Subject, place: Path, number: int, epoch: int) -> interp.Subject:
    model = prose.copied(base)
    load_weights(_file(place, number, epoch), model.module)
    return model


def _one_step(settings: Prose, texts: prose.Corpus, seed: int) -> interp.Subject:
    """A model after one step of training: what the paper takes as reference for models that were
    only pre-trained."""
    learner = prose.language_model(settings, texts.tokenizer, seed + 1)
    batch = texts.base.batch.rows(slice(0, settings.batch_size))
    fit(learner, [batch], 1, settings.base_lr)
    return learner


def _against(
    model: interp.Subject,
    models: list[interp.Subject],
    ids: list[list[int]],
    references: np.ndarray,
) -> pd.DataFrame:
    """Scores of passages, each with a reference model of its own, in their order."""
    parts: list[pd.DataFrame] = []
    for reference in np.unique(references):
        rows = np.flatnonzero(references == reference)
        part = membership(model, [ids[row] for row in rows], models[reference], batch_size=64)
        parts.append(part.assign(text=rows))
    return pd.concat(parts).sort_values("text", ignore_index=True)


def _log_p_out(scores: pd.DataFrame) -> np.ndarray:
    """Mean log-probability per token under the reference model."""
    # The ratio is log p under the target minus log p under the reference.
    return (scores["loss"] - scores["ratio"]).to_numpy()


def _token_tables(
    model: interp.Subject,
    models: list[interp.Subject],
    scores: pd.DataFrame,
    texts: prose.Corpus,
    pool: ReferencePool,
    target: int,
) -> Tables:
    """What is found about private tokens, against the other tokens of the same passages."""
    members = pool.members[target]
    values = np.empty((len(texts.pool), texts.pool.tokens.shape[1] - 1))
    untrained = pool.untrained_on(target, 1)[0]
    for reference in np.unique(untrained):
        rows = np.flatnonzero(untrained == reference)
        batch = texts.pool.rows(torch.from_numpy(rows)).batch
        values[rows] = _token_values(model, batch, models[reference])

    carries = texts.pool.carries
    # From the second token on: scores are of the tokens that are predicted, [passages, length - 1].
    private = texts.pool.private[:, 1:].numpy() & carries[:, None]
    other = ~texts.pool.private[:, 1:].numpy() & carries[:, None]
    kinds: list[dict[str, Any]] = []
    for kind, mask in (("private", private), ("other", other)):
        kinds.append(
            {
                "target": target,
                "kind": kind,
                "auc": token_auc(values, mask, members),
                "score_members": values[members][mask[members]].mean(),
                "score_others": values[~members][mask[~members]].mean(),
            }
        )
    chosen = np.flatnonzero(carries & members)
    passages = pd.DataFrame(
        {
            "target": target,
            "passage": chosen,
            "private": [values[row][private[row]].mean() for row in chosen],
            "other": [values[row][other[row]].mean() for row in chosen],
        }
    )
    count = round(_TOP * len(scores))
    # The scores are in the order of the passages, so that an index is the number of a passage.
    top = scores["informia"].nlargest(count).index.to_numpy()
    highest = pd.DataFrame(
        {"target": target, "carries": carries[top], "member": members[top], "passage": top}
    )
    return {"kinds": pd.DataFrame(kinds), "passages": passages, "top": highest}


def _token_values(model: interp.Subject, batch: Batch, reference: interp.Subject) -> np.ndarray:
    """[passages, predicted] token-level InfoRMIA."""
    parts: list[np.ndarray] = []
    for part in scored_texts(model, batch, [reference], batch_size=64):
        assert part.scores.informia is not None
        parts.append(part.scores.informia.numpy())
    return np.concatenate(parts)


def _example(
    model: interp.Subject,
    models: list[interp.Subject],
    texts: prose.Corpus,
    pool: ReferencePool,
    target: int,
) -> pd.DataFrame:
    """The token map of the first member that carries a telephone number."""
    row = int(np.flatnonzero(texts.pool.carries & pool.members[target])[0])
    reference = models[pool.untrained_on(target, 1)[0, row]]
    return token_map(model, texts.pool.tokens[row].tolist(), reference).frame


def _identity(
    models: list[interp.Subject], one_step: interp.Subject, texts: prose.Corpus
) -> pd.DataFrame:
    """How close scores with a one-step reference are to what a uniform one would give: the logit
    minus its mean over the vocabulary."""
    batch = texts.pool.batch.rows(slice(0, _IDENTITY_PASSAGES))
    rows: list[dict[str, Any]] = []
    for target, model in enumerate(models):
        scores = _token_values(model, batch, one_step)
        with torch.no_grad():
            logits = model.target_logits(batch)
        of_true = logits.gather(-1, batch.targets[..., None])[..., 0]
        # With a uniform reference over V tokens the score is log p(x) + log V, plus a KL of -log V
        # minus the mean of log p: what is left of the two is the logit of x minus its mean.
        centred = (of_true - logits.mean(-1)).numpy()
        correlation = np.corrcoef(scores.ravel(), centred.ravel())[0, 1]
        rows.append({"target": target, "correlation": float(correlation)})
    return pd.DataFrame(rows)


def _dose(
    settings: Prose, texts: prose.Corpus, base: interp.Subject, seed: int, place: Path
) -> pd.DataFrame:
    """What repetition does to private tokens: in a pair of models, passages with a telephone number
    are repeated by different numbers, drawn at random. The base model is the reference."""
    # Other halves than those of the pool, so that repetition is not tied to one of its models.
    pair = complementary_halves(len(texts.pool), 1, seed + 500)
    rng = np.random.default_rng([seed, 3])
    repeats = np.where(texts.pool.carries, rng.choice(settings.repeats, len(texts.pool)), 1)
    private = texts.pool.private[:, 1:].numpy()
    rows: list[dict[str, Any]] = []
    for target in range(pair.models):
        members = pair.members[target]
        weights = place / f"dose{target}.safetensors"
        learner = prose.copied(base)
        if weights.exists():
            load_weights(weights, learner.module)
        else:
            # A passage that is repeated comes several times in each epoch.
            order = np.repeat(np.flatnonzero(members), repeats[members])
            own = texts.pool.rows(torch.from_numpy(order))
            number = 1000 * seed + 900 + target
            prose.fine_tune(learner, settings, own, number, settings.dose_epochs, lambda _: None)
            save_weights(weights, learner.module)
        values = _token_values(learner, texts.pool.batch, base)
        for count in settings.repeats:
            # the others are the same for every dose: they were never trained on
            compared = ~members | (repeats == count)
            mask = private & compared[:, None]
            rows.append(
                {
                    "target": target,
                    "repeats": count,
                    "auc": token_auc(values, mask, members),
                    "score_members": values[members][mask[members]].mean(),
                }
            )
    return pd.DataFrame(rows)
