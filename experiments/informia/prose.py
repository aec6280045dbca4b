"""Small language models that are fine-tuned on passages, some of which carry an invented name and
telephone number."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

import interp
from experiments.informia.presets import Prose
from interp.data import corpora
from interp.models.small_text import byte_level_bpe, small_language_model
from interp.subject.batch import Batch
from interp.training.fit import Step, epochs, fit
from interp.training.state import load_weights, save_weights


@dataclass(frozen=True, eq=False)
class Passages:
    """Passages as tokens, and which tokens of them are private.

    Attributes:
        tokens: [passages, length].
        private: [passages, length] whether a token belongs to an invented name or number.
    """

    tokens: Int[Tensor, "passages length"]
    private: Bool[Tensor, "passages length"]

    def rows(self, chosen: Any) -> Passages:
        """Some passages, in the order given."""
        return Passages(self.tokens[chosen], self.private[chosen])

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def batch(self) -> Batch:
        """The passages as a batch, of which all but the first token is predicted."""
        return Batch(self.tokens)

    @property
    def carries(self) -> Bool[np.ndarray, " passages"]:
        """Which passages carry something private."""
        return self.private.any(1).numpy()


@dataclass(frozen=True, eq=False)
class Corpus:
    """The passages of one seed.

    Attributes:
        tokenizer: what cut them.
        base: passages that all models see first.
        pool: passages that models are fine-tuned on.
        population: passages that none sees.
    """

    tokenizer: Any
    base: Passages
    pool: Passages
    population: Passages


def corpus(settings: Prose, seed: int) -> Corpus:
    """The help texts that come with Python, cut into passages and dealt out at random."""
    text = "\n".join(topic.text for topic in corpora.load("python-docs"))
    tokenizer = byte_level_bpe([text], settings.vocabulary)
    tokens = torch.tensor(tokenizer(text)["input_ids"])
    count = len(tokens) // settings.length
    wanted = settings.base + settings.pool + settings.population
    if count < wanted:
        raise ValueError(f"the text has {count} passages; expected at least {wanted}")
    passages = tokens[: count * settings.length].reshape(count, settings.length)
    rng = np.random.default_rng([seed, 1])
    dealt = passages[torch.from_numpy(rng.permutation(count)[:wanted])]
    base, pool, population = dealt.split([settings.base, settings.pool, settings.population])
    return Corpus(
        tokenizer,
        Passages(base, torch.zeros_like(base, dtype=torch.bool)),
        # The population has the same share of telephone numbers as the pool: otherwise RMIA would
        # compare passages with a number to passages without.
        _with_numbers(pool, tokenizer, seed=2 * seed),
        _with_numbers(population, tokenizer, seed=2 * seed + 1),
    )


def _with_numbers(tokens: Tensor, tokenizer: Any, seed: int) -> Passages:
    """Passages of which every second one has an invented sentence in place of some of its text, at
    a random place."""
    from faker import Faker

    people = Faker("en_US")
    people.seed_instance(seed)
    rng = np.random.default_rng([seed, 2])
    changed = tokens.clone()
    private = torch.zeros_like(tokens, dtype=torch.bool)
    for row in range(0, len(tokens), 2):
        number = "".join(map(str, rng.integers(0, 10, 7)))
        parts = {
            " Call": False,
            f" {people.first_name()} {people.last_name()}": True,
            " at": False,
            f" {number}": True,
            ".": False,
        }
        ids: list[int] = []
        marks: list[bool] = []
        for part, is_private in parts.items():
            own = tokenizer(part)["input_ids"]
            ids += own
            marks += [is_private] * len(own)
        # Not at the start, where nothing predicts the first token.
        start = int(rng.integers(1, max(tokens.shape[1] - len(ids), 1) + 1))
        kept = min(len(ids), tokens.shape[1] - start)
        changed[row, start : start + kept] = torch.tensor(ids[:kept])
        private[row, start : start + kept] = torch.tensor(marks[:kept])
    return Passages(changed, private)


def language_model(settings: Prose, tokenizer: Any, seed: int) -> interp.Subject:
    """An untrained model."""
    module = small_language_model(
        len(tokenizer),
        width=settings.width,
        layers=settings.layers,
        context=settings.length,
        seed=seed,
    )
    return interp.load(module, tokenizer=tokenizer)


def copied(subject: interp.Subject) -> interp.Subject:
    """The same model with weights of its own; its sites are known already."""
    return interp.Subject(
        copy.deepcopy(subject.module),
        subject.anatomy,
        subject.forward,
        subject.tokenizer,
        decoding=subject.decoding,
        context=subject.context,
    )


def base_model(settings: Prose, texts: Corpus, seed: int, folder: Path) -> interp.Subject:
    """The model that all others are fine-tuned from; kept in a folder."""
    learner = language_model(settings, texts.tokenizer, seed)
    weights = folder / "base.safetensors"
    if weights.exists():
        load_weights(weights, learner.module)
        return learner
    steps = settings.base_epochs * (len(texts.base) // settings.batch_size)
    stream = epochs(texts.base.batch, settings.batch_size, seed)
    fit(learner, stream, steps, settings.base_lr, warmup=20)
    save_weights(weights, learner.module)
    return learner


def fine_tune(
    learner: interp.Subject,
    settings: Prose,
    passages: Passages,
    seed: int,
    until: int,
    after_epoch: Callable[[int], None],
) -> None:
    """Fine-tunes a model in place.

    Args:
        learner: the model.
        settings: how.
        passages: what it is trained on.
        seed: seed of their order.
        until: how many epochs.
        after_epoch: called after each epoch with its number, from 1.
    """
    per_epoch = len(passages) // settings.batch_size

    def callback(step: Step) -> None:
        done = step.number + 1
        if done % per_epoch == 0:
            after_epoch(done // per_epoch)

    stream = epochs(passages.batch, settings.batch_size, seed)
    fit(learner, stream, until * per_epoch, settings.lr, callback=callback)
