"""What is run on one seed: a model that is trained once over the corpus, a model of another
architecture, and random strings over alphabets of different sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

import interp
from experiments.entropy_law import corpus
from experiments.entropy_law.corpus import Corpus, Rows, Tokens
from experiments.entropy_law.presets import Network, Preset
from interp.experiment.jobs import Job, job
from interp.memorization.entropy.baselines import is_trivial, text_baselines
from interp.memorization.entropy.dataset_inference import dataset_inference
from interp.memorization.entropy.gibberish import entropy_gap
from interp.memorization.entropy.law import EntropyLaw, law_of
from interp.memorization.entropy.level_sets import LevelSets
from interp.memorization.entropy.scored_windows import ScoredWindows, joined_corpora, score_all
from interp.models.small_text import small_language_model
from interp.subject.batch import Batch
from interp.training.fit import Step, fit

TABLES = ("fits", "levels", "baselines", "windows", "inference", "sets", "kinds", "gap", "strings")
Tables = dict[str, pd.DataFrame]
_BATCH = 64
_WARMUP = 20


def jobs(preset: Preset, seed: int) -> Iterator[Job]:
    """One job for each model."""
    yield job(main_model, preset, seed)
    yield job(other_model, preset, seed)
    yield job(random_strings, preset, seed)


def main_model(preset: Preset, seed: int) -> Tables:
    """Everything that is asked of the main model."""
    texts = corpus.build(preset, seed)
    kinds: list[pd.DataFrame] = []
    steps = len(corpus.training_batches(texts, preset.batch_size))
    # Step 0 is scored before the training, and left out here.
    scored_at = np.linspace(0, steps, preset.checkpoints + 1).round().astype(int)[1:]

    model = _untrained(preset.network, texts, seed)
    kinds.append(_score_kinds(preset, model, texts, step=0))

    def score(step: Step) -> None:
        if step.number + 1 in scored_at:
            kinds.append(_score_kinds(preset, model, texts, step.number + 1))

    _train(preset, preset.network, model, texts, score)

    scored = _score_data(preset, model, texts, seed)
    laws = _laws(preset, model, texts, scored, seed)
    inference, sets = _inference(preset, scored, seed)
    gap = entropy_gap(texts.kinds["gibberish"], texts.kinds["code"], seed=seed)
    return {
        "fits": joined_laws(laws, "fits"),
        "levels": joined_laws(laws, "levels"),
        "baselines": _baselines(model, scored),
        "windows": window_rows(scored),
        "inference": inference,
        "sets": sets,
        "kinds": pd.concat(kinds, ignore_index=True),
        "gap": pd.DataFrame([vars(gap)]),
    }


def other_model(preset: Preset, seed: int) -> Tables:
    """The law in a model of another architecture."""
    texts = corpus.build(preset, seed)
    model = _untrained(preset.other, texts, seed)
    _train(preset, preset.other, model, texts)
    scored = _scored(preset, model, texts.twice, seed)
    laws = {"other architecture": _law(preset, scored, seed)}
    return {"fits": joined_laws(laws, "fits"), "levels": joined_laws(laws, "levels")}


def random_strings(preset: Preset, seed: int) -> Tables:
    """Scores of random strings while a model is trained on all of them at once."""
    settings = preset.strings
    rng = np.random.default_rng([seed, 3])
    symbols = max(settings.alphabets)
    strings: list[np.ndarray] = []
    sizes: list[int] = []
    for size in settings.alphabets:
        for _ in range(settings.per_alphabet):
            # Each string has symbols of its own, so that an alphabet is not known from the others.
            alphabet = rng.permutation(symbols)[:size]
            strings.append(rng.choice(alphabet, settings.length))
            sizes.append(size)
    tokens = torch.from_numpy(np.stack(strings))
    network = preset.other
    module = small_language_model(
        symbols,
        width=network.width,
        layers=network.layers,
        context=settings.length,
        seed=seed,
        architecture=network.architecture,
    )
    model = interp.load(module)
    found: list[pd.DataFrame] = []

    def score(step: int) -> None:
        scored = _score(model, tokens.tolist(), settings.prefix)
        rows = {"step": step, "string": range(len(sizes)), "alphabet": sizes}
        found.append(pd.DataFrame({**rows, "score": scored.scores}))

    def after(step: Step) -> None:
        if (step.number + 1) % settings.every == 0:
            score(step.number + 1)

    score(0)
    batches = [Batch(tokens)] * settings.steps
    fit(model, batches, settings.steps, settings.lr, warmup=_WARMUP, callback=after)
    return {"strings": pd.concat(found, ignore_index=True)}


def _untrained(network: Network, texts: Corpus, seed: int) -> interp.Subject:
    module = small_language_model(
        len(texts.tokenizer),
        width=network.width,
        layers=network.layers,
        context=texts.rows.shape[1],
        seed=seed,
        architecture=network.architecture,
        tied=True,
    )
    return interp.load(module, tokenizer=texts.tokenizer)


def _train(
    preset: Preset, network: Network, model: interp.Subject, texts: Corpus, callback: Any = None
) -> None:
    """Trains a model on the rows once."""
    batches = corpus.training_batches(texts, preset.batch_size)
    steps = len(batches)
    fit(
        model,
        batches,
        steps,
        network.lr,
        warmup=_WARMUP,
        decay=steps,
        floor=0.1,
        weight_decay=0.01,
        clip=1.0,
        callback=callback,
    )


def _score_data(
    preset: Preset, model: interp.Subject, texts: Corpus, seed: int
) -> dict[str, ScoredWindows]:
    """The windows of every kind of data, scored."""
    scored = {
        "once": _scored(preset, model, texts.once, seed),
        "twice": _scored(preset, model, texts.twice, seed),
        "unseen": _scored(preset, model, texts.unseen, seed),
    }
    for copies, passages in texts.planted.items():
        scored[f"{copies} times"] = _score(model, passages, preset.prefix)
    return scored


def _scored(
    preset: Preset,
    model: interp.Subject,
    documents: Sequence[Rows],
    seed: int,
    *,
    prefix: int | None = None,
    length: int | None = None,
) -> ScoredWindows:
    """Windows of documents, a random sample if there are more than the preset scores.

    No window lies across two rows: rows are shuffled, and a model has not seen the end of one go on
    as the start of the next.
    """
    prefix = prefix or preset.prefix
    length = length or preset.length
    windows: list[tuple[int, Tokens]] = []
    seen: set[tuple[int, ...]] = set()
    for number, rows in enumerate(documents):
        for window in corpus.cut(rows, prefix + length):
            if tuple(window) not in seen:
                seen.add(tuple(window))
                windows.append((number, window))
    # Sorted again: windows that follow each other in a document have to stay neighbours, because
    # the jackknife and the shuffles take such blocks together.
    order = np.random.default_rng([seed, 2]).permutation(len(windows))[: preset.windows]
    chosen = [windows[place] for place in sorted(order)]
    scored = _score(model, [window for _, window in chosen], prefix)
    # Each window was given as a text of its own, and now gets the number of its document.
    return replace(scored, texts=np.array([number for number, _ in chosen]))


def _score(model: interp.Subject, windows: Sequence[Tokens], prefix: int) -> ScoredWindows:
    length = len(windows[0]) - prefix
    # Rows have to stay those of `windows`: with `distinct` some would be left out.
    return score_all(model, windows, prefix, length, batch_size=_BATCH, distinct=False)


def _laws(
    preset: Preset,
    model: interp.Subject,
    texts: Corpus,
    scored: dict[str, ScoredWindows],
    seed: int,
) -> dict[str, EntropyLaw]:
    """The law on every kind of data, and on slices of what was seen twice."""
    twice = scored["twice"]
    planted = [scored[f"{copies} times"] for copies in texts.planted]
    is_in_package = np.array(texts.in_packages)[twice.texts]
    found = {
        "seen twice": _law(preset, twice, seed),
        "seen once": _law(preset, scored["once"], seed),
        "unseen": _law(preset, scored["unseen"], seed),
        "with planted copies": _law(preset, joined_corpora([twice, *planted]), seed),
        "without trivial": _law(
            preset, twice.rows(~is_trivial(twice.prompts, twice.suffixes)), seed
        ),
        "files of packages": _law(preset, twice.rows(is_in_package), seed),
    }
    for length in preset.slice_lengths:
        of_length = _scored(preset, model, texts.twice, seed, prefix=length, length=length)
        found[f"{length} + {length} tokens"] = _law(preset, of_length, seed)
    return found


def _law(preset: Preset, windows: ScoredWindows, seed: int) -> EntropyLaw:
    return law_of(
        LevelSets().update([windows]),
        min_windows=preset.min_windows,
        rarefied_to=preset.rarefied_to,
        shuffles=preset.shuffles,
        seed=seed,
    )


def joined_laws(laws: dict[str, EntropyLaw], table: str) -> pd.DataFrame:
    """Returns one table of several laws, with the name of each as `data`."""
    parts = [getattr(law, table).assign(data=name) for name, law in laws.items()]
    return pd.concat(parts, ignore_index=True)


def _baselines(model: interp.Subject, scored: dict[str, ScoredWindows]) -> pd.DataFrame:
    parts: list[pd.DataFrame] = []
    for name, data in (("seen twice", "twice"), ("seen once", "once"), ("unseen", "unseen")):
        parts.append(text_baselines(scored[data], model.decode).assign(data=name))
    return pd.concat(parts, ignore_index=True)


def window_rows(scored: dict[str, ScoredWindows]) -> pd.DataFrame:
    """Returns the score, loss and text of each window, by the name of its data."""
    parts: list[pd.DataFrame] = []
    for name, windows in scored.items():
        length = windows.suffixes.shape[1]
        parts.append(
            pd.DataFrame(
                {
                    "data": name,
                    "text": windows.texts,
                    "score": windows.scores,
                    "exact": windows.scores == 0,
                    "loss": -windows.log_p / length,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def _inference(
    preset: Preset, scored: dict[str, ScoredWindows], seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How well sets of data that was seen are told from sets of unseen data, and sets of unseen
    data from one another."""
    planted = [windows for name, windows in scored.items() if name.endswith("times")]
    often = joined_corpora(planted)
    unseen = scored["unseen"]
    # Halves by document, so that this control holds what two sets of documents differ in anyway.
    documents = np.unique(unseen.texts)
    chosen = np.random.default_rng([seed, 4]).permutation(documents)[: len(documents) // 2]
    in_one_half = np.isin(unseen.texts, chosen)
    one_half, other_half = unseen.rows(in_one_half), unseen.rows(~in_one_half)
    pairs = {
        "once": scored["once"],
        "twice": scored["twice"],
        "often": often,
        "unseen": one_half,
    }
    tables: list[pd.DataFrame] = []
    sets: list[pd.DataFrame] = []
    for name, reference in pairs.items():
        found = dataset_inference(
            reference,
            other_half,
            windows_per_set=preset.windows_per_set,
            sets=preset.sets,
            seed=seed,
        )
        tables.append(found.table.assign(data=name))
        # The candidate is the same half of the unseen data in all pairs: its sets are not kept.
        own: Any = found.sets[found.sets["role"] == "reference"]
        sets.append(own.assign(data=name))
    return pd.concat(tables, ignore_index=True), pd.concat(sets, ignore_index=True)


def _score_kinds(preset: Preset, model: interp.Subject, texts: Corpus, step: int) -> pd.DataFrame:
    """Scores of gibberish and code, planted and unseen, at one step of training."""
    parts: list[pd.DataFrame] = []
    for kind, strings in texts.kinds.items():
        scored = _score(model, strings, preset.prefix)
        about = {"step": step, "kind": kind, "string": range(len(strings))}
        parts.append(pd.DataFrame({**about, "score": scored.scores}))
    return pd.concat(parts, ignore_index=True)
