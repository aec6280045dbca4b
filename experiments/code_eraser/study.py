"""What every analysis works on: a model that has memorized secrets in code, a model that never read
those that are to be forgotten, and the sets on which both are measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

import interp
from experiments.code_eraser.presets import Setup
from interp.data import code_secrets
from interp.data.code_secrets import SecretCorpus, SecretFile
from interp.experiment.jobs import folder_of
from interp.files import writable
from interp.memorization.recitation import levels, recitation
from interp.mitigation.removal.stress import duplicate
from interp.models.small_text import byte_level_bpe, small_language_model
from interp.subject.batch import Batch
from interp.training.fit import epochs, fit
from interp.training.state import load_weights, save_weights

_CONTEXT = 512


@dataclass(frozen=True, eq=False)
class Study:
    """One seed.

    Attributes:
        setup: how it was made.
        model: what is unlearned; it has read all repeated texts.
        clean: the same model, trained without the files that are to be forgotten.
        corpus: the texts.
        forget: files whose secrets are to be forgotten; secrets are scored.
        twins: the same files with secrets that no model has read.
        others: files with other secrets.
        retain: code that unlearning is told to keep.
        memorized: code that was memorized and that it is not told about.
        held_out: code that no model has read.
        ordinary: code that models have read once.
    """

    setup: Setup
    model: interp.Subject
    clean: interp.Subject
    corpus: SecretCorpus
    forget: Batch
    twins: Batch
    others: Batch
    retain: Batch
    memorized: Batch
    held_out: Batch
    ordinary: Batch

    @cached_property
    def thresholds(self) -> dict[str, float]:
        """The levels at which secrets count as forgotten: see `thresholds`."""
        return thresholds(self.model, self.twins)


def build(setup: Setup, seed: int, folder: Path) -> Study:
    """Returns the study of a seed. Its models are trained once and kept in a folder, also where
    several jobs ask for them at the same time."""
    secret_files = setup.forget + setup.spare
    corpus = code_secrets.plant(
        secret_files,
        setup.others,
        setup.retained,
        setup.memorized,
        seed=seed,
        characters=setup.characters,
        head=setup.head,
    )
    texts = [file.text for file in corpus.background]
    tokenizer = byte_level_bpe(texts, setup.vocabulary)
    model = _untrained(setup, tokenizer, seed)
    background = _rows(model, texts, setup.row)
    held_out = _rows(model, [file.text for file in corpus.held_out], setup.row)

    place = folder_of(folder, setup, seed)
    everything = corpus.repeated
    # The texts begin with the files of `forget`, and the spare ones are the last of these: both
    # models read them.
    without = everything[setup.forget :]
    # Of the jobs that need these models, the first one trains them, and the others wait for it.
    with FileLock(writable(place) / ".lock"):
        _train_base(setup, model, background, seed, place / "base.safetensors")
        clean = duplicate(model)
        # Both go on from the same base: they differ in what they have repeated, and not in the
        # rest.
        _memorize(setup, model, everything, background, seed, place / "model.safetensors")
        _memorize(setup, clean, without, background, seed, place / "clean.safetensors")
    return Study(
        setup=setup,
        model=model,
        clean=clean,
        corpus=corpus,
        forget=marked(setup, model, corpus.forget[: setup.forget]),
        twins=marked(setup, model, corpus.twins[: setup.forget]),
        others=marked(setup, model, corpus.others),
        retain=_padded(setup, model, [file.text for file in corpus.retained]),
        memorized=_padded(setup, model, [file.text for file in corpus.memorized]),
        held_out=_spread(held_out, setup.held_out),
        ordinary=_spread(background, setup.held_out),
    )


def _untrained(setup: Setup, tokenizer: Any, seed: int) -> interp.Subject:
    module = small_language_model(
        len(tokenizer),
        width=setup.training.width,
        layers=setup.training.layers,
        context=_CONTEXT,
        seed=seed,
        architecture="gpt2",
        tied=True,
    )
    return interp.load(module, tokenizer=tokenizer)


def _train_base(
    setup: Setup, model: interp.Subject, background: Batch, seed: int, weights: Path
) -> None:
    """Trains a model on the background once."""
    if weights.exists():
        load_weights(weights, model.module)
        return
    recipe = setup.training
    steps = len(background) // recipe.batch_size
    stream = epochs(background, recipe.batch_size, seed)
    fit(
        model,
        stream,
        steps,
        recipe.lr,
        warmup=20,
        decay=steps,
        floor=0.1,
        weight_decay=0.01,
        clip=1.0,
    )
    save_weights(weights, model.module)


def _memorize(
    setup: Setup,
    model: interp.Subject,
    texts: Sequence[str],
    background: Batch,
    seed: int,
    weights: Path,
) -> None:
    """Trains a model on the repeated texts, among rows of background."""
    if weights.exists():
        load_weights(weights, model.module)
        return
    recipe = setup.training
    repeated = _padded(setup, model, texts)
    # Each text is shown `repeats` times whatever their number: the clean model takes fewer steps.
    steps = recipe.repeats * len(repeated) // recipe.texts_per_step
    stream = _mixed(repeated, background, setup, seed)
    fit(model, stream, steps, recipe.repeated_lr, decay=steps, floor=0.1, clip=1.0)
    save_weights(weights, model.module)


def _mixed(repeated: Batch, background: Batch, setup: Setup, seed: int) -> Iterator[Batch]:
    recipe = setup.training
    of_repeated = epochs(repeated, recipe.texts_per_step, seed)
    of_background = epochs(background, recipe.background_per_step, seed)
    for texts, rows in zip(of_repeated, of_background, strict=True):
        yield Batch.pad([*texts.sequences(), *rows.sequences()])


def _rows(model: interp.Subject, texts: Sequence[str], row: int) -> Batch:
    """Texts in rows of equal length, without what is left at their ends."""
    rows: list[list[int]] = []
    for text in texts:
        tokens = model.tokens(text)
        rows += [tokens[start : start + row] for start in range(0, len(tokens) - row + 1, row)]
    return Batch(torch.tensor(rows))


def _spread(batch: Batch, count: int) -> Batch:
    """Some rows, spread evenly."""
    if count > len(batch):
        raise ValueError(f"there are {len(batch)} rows of code, fewer than {count}")
    return batch.rows(torch.arange(count) * len(batch) // count)


def _padded(setup: Setup, model: interp.Subject, texts: Sequence[str]) -> Batch:
    return Batch.pad([model.tokens(text)[: setup.length] for text in texts])


def marked(setup: Setup, model: interp.Subject, files: Sequence[SecretFile]) -> Batch:
    """Files with their secrets scored."""
    return code_secrets.mark(model, files, setup.length)


def thresholds(model: interp.Subject, twins: Batch) -> dict[str, float]:
    """The levels of MA and EL_10 at which secrets count as forgotten: those of secrets that the
    model has not read, in the same files."""
    return levels(recitation(model, twins, ngrams=(10,)))
