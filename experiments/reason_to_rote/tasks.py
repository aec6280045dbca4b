"""The two tasks and the models that learn them from scratch: four-digit addition (FDA) and two-hop
relations (THR), each with a fraction of wrong labels among its training items."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool

import interp
from interp.data import arithmetic
from interp.data.arithmetic import Order, Rule, addition, sums
from interp.data.noisy import Items
from interp.data.relations import Facts, graph_facts, relations, tails, typed_facts
from interp.loading.devices import choose_device
from interp.subject.subject import evaluating
from interp.training.fit import Checkpoints, Evaluation, Metrics, epochs
from interp.training.state import load_weights

PASSED = 0.9  # test accuracy from which a model counts as having passed the test


@dataclass(frozen=True, kw_only=True)
class Addition:
    """The data of FDA, by the arguments of `interp.data.arithmetic.addition`."""

    train: int
    test: int
    digits: int = 4
    # The units first: every digit then follows from the operands and a carry that is already
    # settled.
    order: Order = "reversed"
    noise: float = 0.05
    rule: Rule = "random_sum"


@dataclass(frozen=True, kw_only=True)
class TypedFacts:
    """Facts of THR, by the arguments of `interp.data.relations.typed_facts`."""

    heads: int = 50
    first: int = 10
    bridges: int = 20
    second: int = 20
    tails: int = 60


@dataclass(frozen=True, kw_only=True)
class GraphFacts:
    """Facts of THR, by the arguments of `interp.data.relations.graph_facts`."""

    entities: int = 2000
    relations: int = 200
    degree: int = 20


@dataclass(frozen=True, kw_only=True)
class TwoHop:
    """The data of THR: its facts, and the questions over them by the arguments of
    `interp.data.relations.relations`."""

    facts: TypedFacts | GraphFacts
    train: int
    test: int
    noise: float = 0.05
    ood: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """The size of a GPT-2, and the standard deviation of its initial weights (`spread`)."""

    blocks: int
    width: int
    heads: int
    spread: float


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is trained.

    Attributes:
        batch_size: rows per optimizer step.
        steps, lr, warmup, decay, floor, weight_decay: as for `interp.fit`.
        evaluate_every: number of optimizer steps between two measurements of accuracy.
        until_memorized: training ends early at the measurement that finds this fraction of the
            noisy items memorized; None to take all steps.
    """

    batch_size: int
    steps: int
    lr: float
    warmup: int
    decay: int = 0
    floor: float = 0.0
    # Networks with much weight decay or dropout give up wrong labels again (Doshi et al., arXiv
    # 2310.13061), and leave nothing to study.
    weight_decay: float = 0.0
    evaluate_every: int
    until_memorized: float | None = None


@dataclass(frozen=True, eq=False)
class Task:
    """The items of a task.

    Attributes:
        name: FDA or THR.
        train: items to train on, some of them with a wrong label.
        beside: further items to train on, all of them with the right label; None for FDA.
        tests: items that are only tested, by the name of the test.
        vocabulary: number of tokens.
        answer: for each token of the answer, the name of the variable that it shows.
        solve: maps questions [items, question] to their true answers [items, answer].
        data: the settings that the items were made with.
    """

    name: str
    train: Items
    beside: Items | None
    tests: Mapping[str, Items]
    vocabulary: int
    answer: tuple[str, ...]
    solve: Callable[[np.ndarray], np.ndarray]
    data: Addition | TwoHop

    @property
    def noisy(self) -> Items:
        """The training items with a wrong label."""
        return self.train.rows(self.train.noisy)

    @property
    def clean(self) -> Items:
        """The items of `train` with the right label."""
        return self.train.rows(~self.train.noisy)

    def batch(self, *, clean: bool) -> interp.Batch:
        """All training items in one batch; with `clean`, every label is the right one."""
        answers = self.train.truth if clean else self.train.label
        batches = [self.train.batch(answers)]
        if self.beside is not None:
            batches.append(self.beside.batch())
        return interp.Batch.join(batches)


def task(data: Addition | TwoHop, seed: int) -> Task:
    """The task that these data settings describe: FDA for `Addition`, THR for `TwoHop`."""
    if isinstance(data, Addition):
        return _four_digit_addition(data, seed)
    return _two_hop_relations(data, seed)


def _four_digit_addition(data: Addition, seed: int) -> Task:
    train, test = addition(**asdict(data), seed=seed)
    answer = [f"digit{k}" for k in range(train.truth.shape[1])]
    # The variables number the digits from the units.
    if data.order == "plain":
        answer.reverse()
    return Task(
        name="FDA",
        train=train,
        beside=None,
        tests={"test": test},
        vocabulary=arithmetic.VOCABULARY,
        answer=tuple(answer),
        solve=lambda question: sums(question, data.order),
        data=data,
    )


def _two_hop_relations(data: TwoHop, seed: int) -> Task:
    made = relations(
        _facts(data.facts, seed),
        train=data.train,
        test=data.test,
        noise=data.noise,
        ood=data.ood,
        seed=seed,
    )
    return Task(
        name="THR",
        train=made.train,
        beside=made.facts,
        # The single facts are trained on, unlike the other two: whether each hop is known by
        # itself.
        tests={"test": made.test, "one_hop": made.facts, "ood": made.ood},
        vocabulary=made.vocabulary,
        answer=("tail",),
        solve=lambda question: tails(made.facts, question),
        data=data,
    )


def _facts(settings: TypedFacts | GraphFacts, seed: int) -> Facts:
    if isinstance(settings, TypedFacts):
        return typed_facts(**asdict(settings), seed=seed)
    return graph_facts(**asdict(settings), seed=seed)


@dataclass(frozen=True, eq=False)
class Learned:
    """A task and the model that learned it.

    Attributes:
        task: the task.
        subject: the trained model.
        generalized: the same model when its test accuracy first reached `PASSED`, before it had
            memorized; None if it never did.
        history: accuracies during training, one row per measurement.
    """

    task: Task
    subject: interp.Subject
    generalized: interp.Subject | None
    history: pd.DataFrame


def dynamics(known: Learned, stage: str) -> pd.DataFrame:
    """The table `dynamics` of a model: its accuracies during training, and for each the number of
    items that it is measured on, in columns that begin with `n_`.

    Args:
        known: the model.
        stage: the name of the model, as in `study.Study`.
    """
    noisy = len(known.task.noisy)
    counts = {"memorized": noisy, "corrected": noisy}
    for name, items in known.task.tests.items():
        if len(items):
            counts[name] = len(items)
    table = known.history.assign(task=known.task.name, stage=stage)
    return table.assign(**{f"n_{name}": count for name, count in counts.items()})


def train_or_load(
    of: Task,
    model: Transformer,
    training: Training,
    seed: int,
    folder: Path,
    *,
    clean: bool = False,
) -> Learned:
    """Trains a model on a task, or continues the training that `folder` holds.

    Args:
        of: the task.
        model: size and initialization of the model.
        training: how it is trained.
        seed: seed of the initial weights and of the order of the items.
        folder: where checkpoints are kept; a finished training is only loaded.
        clean: whether every item is trained with its right label, as the control.

    Raises:
        ValueError: `folder` holds a training with other settings.
    """
    subject = network(of, model, seed)
    goal = training.until_memorized

    def reached_goal(found: Metrics) -> bool:
        return goal is not None and found.get("memorized", 0.0) >= goal

    def passed_test(found: Metrics) -> bool:
        return found["test"] >= PASSED

    evaluation = Evaluation(
        lambda trained: metrics(trained, of), training.evaluate_every, reached_goal
    )
    about = {
        "data": asdict(of.data),
        "model": asdict(model),
        "batch_size": training.batch_size,
        "evaluate_every": training.evaluate_every,
        "seed": seed,
        "clean": clean,
    }
    # More seldom than measurements, because each writes all weights and all moments of Adam.
    checkpoints = Checkpoints(
        folder, 10 * training.evaluate_every, {"generalized": passed_test}, about
    )
    history = interp.fit(
        subject,
        epochs(of.batch(clean=clean), training.batch_size, seed),
        training.steps,
        training.lr,
        betas=(0.9, 0.98),
        weight_decay=training.weight_decay,
        warmup=training.warmup,
        decay=training.decay,
        floor=training.floor,
        evaluation=evaluation,
        checkpoints=checkpoints,
    )

    generalized = None
    weights = folder / "generalized.safetensors"
    if weights.exists():
        generalized = network(of, model, seed, like=subject)
        load_weights(weights, generalized.module)
    # Accuracies are NaN at the steps between two measurements.
    return Learned(of, subject, generalized, history.dropna())


def network(
    of: Task, model: Transformer, seed: int, *, like: interp.Subject | None = None
) -> interp.Subject:
    """An untrained GPT-2 without dropout and special tokens.

    Args:
        of: the task whose vocabulary it has.
        model: its size and initialization.
        seed: seed of the initial weights; torch's own generator is left as it was.
        like: a subject on whose device the new one is put, by default on the best one.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=of.vocabulary,
        # A four-digit question and its answer have 15 tokens.
        n_positions=16,
        n_layer=model.blocks,
        n_embd=model.width,
        n_head=model.heads,
        activation_function="gelu",
        initializer_range=model.spread,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        # Dropout, like weight decay, can make the model give up wrong labels again.
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = GPT2LMHeadModel(config)
    place = choose_device() if like is None else like.device
    return interp.load(module.to(place))


def metrics(subject: interp.Subject, of: Task) -> Metrics:
    """Accuracy on whole answers: on each test by its name, and on the noisy items both against
    their training label (`memorized`) and against their true answer (`corrected`)."""
    found = {}
    for name, items in of.tests.items():
        if len(items):
            found[name] = exact(subject, items.batch()).mean()
    noisy = of.noisy
    if len(noisy):
        found["memorized"] = exact(subject, noisy.batch()).mean()
        found["corrected"] = exact(subject, noisy.batch(noisy.truth)).mean()
    return found


def exact(
    subject: interp.Subject, batch: interp.Batch, batch_size: int = 512
) -> Bool[np.ndarray, " items"]:
    """Whether greedy decoding gives every target of an item.

    This holds exactly if each target is the most probable token after the targets before it, which
    one forward pass shows.

    Args:
        subject: the model.
        batch: the items, with the answers to compare with as targets.
        batch_size: batch size.
    """
    hits = []
    with evaluating(subject):
        for part in batch.split(batch_size):
            predicted = subject.target_logits(part).argmax(-1).cpu()
            hits.append((predicted == part.targets).all(1))
    return torch.cat(hits).numpy()
