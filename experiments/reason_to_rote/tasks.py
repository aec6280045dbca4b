"""The two tasks, and the models that learn them from scratch: four-digit addition (FDA) and two-hop
relations (THR)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool

import interp
from interp.data import arithmetic
from interp.data.arithmetic import addition, sums
from interp.data.noisy import Items
from interp.data.relations import graph_facts, relations, tails, typed_facts
from interp.subject.subject import evaluating
from interp.training.fit import Checkpoints, Evaluation, Metrics, epochs
from interp.training.state import load_weights


@dataclass(frozen=True, eq=False)
class Task:
    """What is trained, with wrong labels among it; what is trained `beside` it, all of it right;
    and what is only tested. `answer` names the variable that each answer token shows, and `solve`
    gives the true answers to questions."""

    name: str
    train: Items
    beside: Items | None
    tests: Mapping[str, Items]
    vocabulary: int
    answer: tuple[str, ...]
    solve: Callable[[np.ndarray], np.ndarray]
    data: Mapping[str, Any]

    @property
    def noisy(self) -> Items:
        return self.train.rows(self.train.noisy)

    @property
    def clean(self) -> Items:
        return self.train.rows(~self.train.noisy)

    def batch(self, *, clean: bool) -> interp.Batch:
        """All that is trained, in one batch; `clean` with the right labels throughout."""
        shown = [self.train.batch(self.train.truth if clean else None)]
        return interp.Batch.joined(shown if self.beside is None else [*shown, self.beside.batch()])


def task(name: str, data: Mapping[str, Any], seed: int) -> Task:
    """The data of a task: `FDA` or `THR`."""
    if name == "FDA":
        train, test = addition(**data, seed=seed)
        order = data.get("order", "reversed")
        shown = tuple(f"digit{k}" for k in range(train.truth.shape[1]))[
            :: 1 if order == "reversed" else -1
        ]
        return Task(
            name,
            train,
            None,
            {"test": test},
            arithmetic.VOCABULARY,
            shown,
            lambda question: sums(question, order),
            dict(data),
        )
    facts = {"typed": typed_facts, "graph": graph_facts}[data["facts"]](**data["of"], seed=seed)
    found = relations(facts, **data["questions"], seed=seed)
    tests = {"test": found.test, "one_hop": found.facts, "ood": found.ood}
    return Task(
        name,
        found.train,
        found.facts,
        tests,
        found.vocabulary,
        ("tail",),
        lambda question: tails(found.facts, question),
        dict(data),
    )


@dataclass(frozen=True, eq=False)
class Learned:
    """A task and the model that learned it: how it went (`history`), the trained `subject`, and the
    same model when it first passed the test at .9 (`generalized`), before it had memorized; None if
    it never did."""

    task: Task
    subject: interp.Subject
    generalized: interp.Subject | None
    history: pd.DataFrame


def learned(
    of: Task,
    model: Mapping[str, Any],
    training: Mapping[str, Any],
    seed: int,
    folder: Path,
    *,
    clean: bool = False,
) -> Learned:
    """Trains a model, or goes on with what `folder` holds; `clean` without wrong labels, as the
    control."""
    subject = network(of, model, seed)
    options = {
        name: value
        for name, value in training.items()
        if name not in ("rows", "every", "memorized")
    }
    goal = training.get("memorized", np.inf)
    evaluation = Evaluation(
        lambda s: metrics(s, of),
        training["every"],
        lambda found: found.get("memorized", 0.0) >= goal,
    )
    about = {
        "data": of.data,
        "model": dict(model),
        "rows": training["rows"],
        "every": training["every"],
        "seed": seed,
        "clean": clean,
    }
    checkpoints = Checkpoints(
        folder, 10 * training["every"], {"generalized": lambda found: found["test"] >= 0.9}, about
    )
    history = interp.fit(
        subject,
        epochs(of.batch(clean=clean), training["rows"], seed),
        betas=(0.9, 0.98),
        **options,
        evaluation=evaluation,
        checkpoints=checkpoints,
    )
    kept = folder / "generalized.safetensors"
    early = network(of, model, seed, like=subject) if kept.exists() else None
    if early is not None:
        load_weights(kept, early.module)
    return Learned(of, subject, early, history.dropna())


def network(
    of: Task, model: Mapping[str, Any], seed: int, *, like: interp.Subject | None = None
) -> interp.Subject:
    """A small GPT-2 without dropout, untrained; on the device of another subject, if given."""
    from transformers import GPT2Config, GPT2LMHeadModel

    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = GPT2Config(
        vocab_size=of.vocabulary, n_positions=16, n_layer=model["blocks"], n_embd=model["width"], n_head=model["heads"],
        activation_function="gelu", initializer_range=model["spread"], tie_word_embeddings=False, **ends, **dropout,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = GPT2LMHeadModel(config)
    return interp.load(module if like is None else module.to(like.device))


def metrics(subject: interp.Subject, of: Task) -> Metrics:
    """Share of questions that the whole answer is said to: of each test; `memorized`, noisy items
    as trained; `corrected`, as is true."""
    tested = {
        name: exact(subject, items.batch()).mean() for name, items in of.tests.items() if len(items)
    }
    noisy = of.noisy
    if not len(noisy):
        return tested
    said = {"memorized": noisy.batch(), "corrected": noisy.batch(noisy.truth)}
    return tested | {name: exact(subject, batch).mean() for name, batch in said.items()}


def exact(
    subject: interp.Subject, batch: interp.Batch, size: int = 512
) -> Bool[np.ndarray, " items"]:
    """Whether each target is the likeliest token given the true ones before it: the same as saying
    all of them greedily."""
    with evaluating(subject):
        hits = [
            (subject.target_logits(part).argmax(-1).cpu() == part.targets).all(1)
            for part in batch.split(size)
        ]
    return torch.cat(hits).numpy()
