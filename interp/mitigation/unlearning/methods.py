"""The methods of unlearning by their names: what each minimizes in the optimizer steps of an epoch.

A method is a frozen dataclass of its options under the decorator `method`. Its `losses` gets the
model before it is trained, computes there what it has to remember of it, and returns one loss
function per optimizer step of an epoch: "forget" and "retain" where the two sets are trained on in
turns, "both" where they are summed in one step.

Of the original model only what a loss compares with is kept, and not a second model: its
log-probabilities at the positions that count. They take positions x vocabulary x 4 bytes.

In all formulas f is the original model, f' the trained one, and CE the cross-entropy in nats per
token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import closest
from interp.hooks.clock import Clock
from interp.hooks.hooks import tapped
from interp.hooks.modes import dropout_off
from interp.mitigation.unlearning.losses import (
    divergence,
    log_probabilities,
    masked_mean,
    preference,
    simple_preference,
    squared_distance,
)
from interp.mitigation.unlearning.sets import Sets, losses_and_logits, losses_of, real
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.subject import Subject

Loss = Callable[[Subject], Float[Tensor, ""]]
Where = Bool[Tensor, "batch predicted"]


class Method(Protocol):
    """What `unlearn` needs of a method.

    Attributes:
        needs_retain: whether it is refused without a retained set.
    """

    needs_retain: ClassVar[bool]

    def losses(self, subject: Subject, sets: Sets) -> Mapping[str, Loss]:
        """Returns the loss of each optimizer step of an epoch, in their order.

        Args:
            subject: the model before it is trained.
            sets: what to forget and what to retain.
        """
        ...


M = TypeVar("M", bound=type[Any])
_METHODS: dict[str, type[Any]] = {}


def method(name: str) -> Callable[[M], M]:
    """Registers a method of unlearning: decorates a dataclass that is a `Method`.

    Args:
        name: its name in `unlearn`.

    Example:
        >>> from dataclasses import dataclass
        >>> from typing import ClassVar
        >>> from interp.mitigation.unlearning import methods
        >>> @methods.method("uniform")
        ... @dataclass(frozen=True)
        ... class Uniform:
        ...     needs_retain: ClassVar[bool] = False
        ...     def losses(self, subject, sets):
        ...         def forget(trained):
        ...             log_p = trained.target_logits(sets.forget).log_softmax(-1)
        ...             return -log_p.mean()
        ...         return {"forget": forget}
        >>> "uniform" in methods.methods()
        True
        >>> del methods._METHODS["uniform"]  # examples leave no trace
    """

    def register(kind: M) -> M:
        _METHODS[name] = kind
        return kind

    return register


def methods() -> list[str]:
    """Returns the names of all methods of unlearning.

    Example:
        >>> from interp.mitigation.unlearning.methods import methods
        >>> methods()
        ['codeeraser', 'cu', 'ga', 'graddiff', 'npo', 'rmu', 'simnpo', 'ssga']
    """
    return sorted(_METHODS)


def find(name: str, options: Mapping[str, Any]) -> Method:
    """Returns the method of a name, with its options.

    Args:
        name: one of `methods()`.
        options: its options by name; the others have their defaults.

    Raises:
        ValueError: with the nearest valid name, for an unknown method or option; for an option of
            the wrong type.

    Example:
        >>> from interp.mitigation.unlearning.methods import find
        >>> find("npo", {"beta": 0.5})
        NegativePreference(beta=0.5, retain_weight=1.0)
    """
    if name not in _METHODS:
        known = methods()
        raise ValueError(
            f"method={name!r}: expected one of {', '.join(known)}; nearest: {closest(name, known)}"
        )
    kind = _METHODS[name]
    defaults = {field.name: field.default for field in fields(kind)}
    for option, value in options.items():
        _check_option(name, option, value, defaults)
    return kind(**options)


def _check_option(name: str, option: str, value: object, defaults: Mapping[str, Any]) -> None:
    if option not in defaults:
        known = ", ".join(sorted(defaults))
        takes = (
            f"it takes {known}; nearest: {closest(option, defaults)}" if known else "it has none"
        )
        raise ValueError(f"{name} has no option {option!r}: {takes}")
    default = defaults[option]
    expected: dict[type, Any] = {bool: bool, int: int, float: Real, str: str}
    # In Python True is a number, which would pass as a weight or a seed.
    is_stray_bool = isinstance(value, bool) and not isinstance(default, bool)
    if not isinstance(value, expected[type(default)]) or is_stray_bool:
        raise ValueError(
            f"{name}: {option}={value!r} is a {type(value).__name__}; expected a value of type "
            f"{type(default).__name__}, such as {default!r}"
        )


@method("ga")
@dataclass(frozen=True)
class GradientAscent:
    """-CE of every token of the forget set, whichever are scored (equation 8 of arXiv
    2509.13755)."""

    needs_retain: ClassVar[bool] = False

    def losses(self, subject: Subject, sets: Sets) -> Mapping[str, Loss]:  # noqa: ARG002
        return {"forget": lambda trained: -_mean_loss(trained, sets.forget, real(sets.forget))}


@method("cu")
@dataclass(frozen=True)
class ConstrainedUnlearning:
    """Gradient ascent with KL on both sides (equation 10 of arXiv 2509.13755), in two steps.

    Forget: -CE - lam KL(f || f'). Retain: lam alpha KL(f || f'). The KL rewards divergence on the
    forget set, and both are summed over positions and divided by the number of sequences alone,
    which is the scale that `lam` was tuned for.

    Attributes:
        lam: lambda, the weight of both KL terms.
        alpha: weight of the retained one.
        padding: whether padding enters the KL, as in the authors' code.
    """

    needs_retain: ClassVar[bool] = True
    lam: float = 0.1
    alpha: float = 1.0
    padding: bool = False

    def losses(self, subject: Subject, sets: Sets) -> Mapping[str, Loss]:
        forget = sets.forget
        everything = real(forget)
        original = _remembered(subject, forget, _every(forget, padding=self.padding))

        def forget_loss(trained: Subject) -> Tensor:
            losses, logits = losses_and_logits(trained, forget)
            per_sequence = original.divergences(logits).sum() / len(forget)
            return -masked_mean(losses, everything) - self.lam * per_sequence

        retained = _retained(subject, sets.kept, self.lam * self.alpha, padding=self.padding)
        return {"forget": forget_loss} | retained


@method("ssga")
@dataclass(frozen=True)
class SelectiveAscent:
    """-CE of the secrets + gamma CE of the tokens around them: CodeEraser without KL.

    Attributes:
        gamma: weight of the context.
        padding: whether padding counts as context with a loss of 0, as in the authors' code.
    """

    needs_retain: ClassVar[bool] = False
    gamma: float = 0.5
    padding: bool = False

    def losses(self, subject: Subject, sets: Sets) -> Mapping[str, Loss]:
        whole = CodeEraser(gamma=self.gamma, lam=0.0, padding=self.padding)
        return whole.losses(subject, sets)


@method("codeeraser")
@dataclass(frozen=True)
class CodeEraser:
    """Ascent on secrets, descent on the code around them (equation 11 of arXiv 2509.13755), in two
    steps.

    Forget: -CE(secrets) + gamma CE(context) - lam KL(f || f'), the KL a mean per secret token.
    Retain: lam alpha KL(f || f'), summed over positions and divided by the number of sequences
    alone. The two scales are those of the authors' code, for which `lam` was tuned.

    Without `scored` every token is a secret. With gamma = lam = 0 it is then gradient ascent.

    Attributes:
        gamma: weight of the context: 0.5 in the paper, 0.1 in the code.
        lam: lambda, the weight of both KL terms; with 0 there is no retained step.
        alpha: weight of the retained one.
        padding: whether padding counts as context with a loss of 0, as in the authors' code, which
            weakens gamma for short files.
    """

    needs_retain: ClassVar[bool] = True
    gamma: float = 0.5
    lam: float = 0.1
    alpha: float = 1.0
    padding: bool = False

    def losses(self, subject: Subject, sets: Sets) -> Mapping[str, Loss]:
        forget = sets.forget
        secret = forget.counted
        context = _every(forget, padding=self.padding) & ~secret
        original = _remembered(subject, forget, secret) if self.lam else None

        def forget_loss(trained: Subject) -> Tensor:
            losses, logits = losses_and_logits(trained, forget)
            loss = -masked_mean(losses, secret) + self.gamma * masked_mean(losses, context)
            if original is None:
                return loss
            return loss - self.lam * original.divergences(logits).mean()

        if not self.lam:
            return {"forget": forget_loss}
        return {"forget": forget_loss} | _retained(subject, sets.kept, self.lam * self.alpha)


@method("graddiff")
@dataclass(frozen=True)
class GradientDifference:
    """-CE of the forget set + retain_weight CE of the retained set, in one step (Liu et al. 2022,
    arXiv 2203.12817).

    Attributes:
        retain_weight: weight of the retained set.
    """

    needs_retain: ClassVar[bool] = True
    retain_weight: float = 1.0

    def losses(self, subject: Subject, sets: Sets) -> Mapping[str, Loss]:  # noqa: ARG002
        def both(trained: Subject) -> Tensor:
            ascent = -_mean_loss(trained, sets.forget, sets.forget.counted)
            return ascent + self.retain_weight * _mean_loss(trained, sets.kept, sets.kept.counted)

        return {"both": both}


@method("npo")
@dataclass(frozen=True)
class NegativePreference:
    """Negative preference optimization of the forget set + retain_weight CE of the retained set, in
    one step; see `losses.preference`.

    Attributes:
        beta: how soon the ascent of a sequence that is already unlikely fades.
        retain_weight: weight of the retained set.
    """

    needs_retain: ClassVar[bool] = True
    beta: float = 0.1
    retain_weight: float = 1.0

    def losses(self, subject: Subject, sets: Sets) -> Mapping[str, Loss]:
        # Without dropout, as training runs too: before the first step the ratio is 1.
        with torch.no_grad(), dropout_off(subject.module):
            original = _sequence_log_p(subject, sets.forget)

        def both(trained: Subject) -> Tensor:
            log_p = _sequence_log_p(trained, sets.forget)
            loss = preference(log_p, original, self.beta)
            return loss + self.retain_weight * _mean_loss(trained, sets.kept, sets.kept.counted)

        return {"both": both}


@method("simnpo")
@dataclass(frozen=True)
class SimpleNegativePreference:
    """SimNPO of the forget set + retain_weight CE of the retained set, in one step; see
    `losses.simple_preference`.

    Attributes:
        beta: how sharply the loss sets in.
        delta: the loss per token around which it does, in nats.
        retain_weight: weight of the retained set.
    """

    needs_retain: ClassVar[bool] = True
    beta: float = 3.5
    delta: float = 1.0
    retain_weight: float = 1.0

    def losses(self, subject: Subject, sets: Sets) -> Mapping[str, Loss]:  # noqa: ARG002
        lengths = sets.forget.counted.sum(1)

        def both(trained: Subject) -> Tensor:
            log_p = _sequence_log_p(trained, sets.forget)
            per_token = -log_p / lengths.to(log_p.device)
            loss = simple_preference(per_token, self.beta, self.delta)
            return loss + self.retain_weight * _mean_loss(trained, sets.kept, sets.kept.counted)

        return {"both": both}


@method("rmu")
@dataclass(frozen=True)
class Misdirection:
    """Representation misdirection (RMU): one site's activations on the forget set are pushed to a
    random direction, and kept on the retained set, in one step.

    E |h'(x_f) - coefficient u|^2 + alpha E |h'(x_r) - h(x_r)|^2, over all tokens that are no
    padding; u is a unit vector of random entries from [0, 1).

    Source: Li et al. 2024 (arXiv 2403.03218), section 4. They train three MLPs below the site; give
    `units=` to confine the training.

    Attributes:
        site: where; by default `resid_post` of block n // 4 of n, counted from 0: the residual
            stream after n // 4 + 1 blocks. The paper, too, takes one of the earlier blocks.
        coefficient: length of the vector that activations are pushed to. 6.5 is the paper's for a
            model of 7B; it must be well above the usual length of the activations to do harm.
        alpha: weight of the retained set.
        seed: seed of the direction.
    """

    needs_retain: ClassVar[bool] = True
    site: str = ""
    coefficient: float = 6.5
    alpha: float = 1200.0
    seed: int = 0

    def losses(self, subject: Subject, sets: Sets) -> Mapping[str, Loss]:
        site = self._site(subject)
        with torch.no_grad(), dropout_off(subject.module):
            original = _activations(subject, sets.kept, site).detach()
        generator = torch.Generator().manual_seed(self.seed)
        direction = torch.rand(original.shape[-1], generator=generator)
        target = self.coefficient * direction / direction.norm()
        target = target.to(original.device, original.dtype)

        def both(trained: Subject) -> Tensor:
            pushed = squared_distance(_activations(trained, sets.forget, site), target)
            kept = squared_distance(_activations(trained, sets.kept, site), original)
            return pushed + self.alpha * kept

        return {"both": both}

    def _site(self, subject: Subject) -> Site:
        if self.site:
            return subject.anatomy.resolve(self.site)
        stack, blocks = next(iter(subject.anatomy.stacks.items()))
        return subject.anatomy.resolve(Site("resid_post", len(blocks) // 4, stack))


@dataclass(frozen=True, eq=False)
class _Remembered:
    """What the original model predicts in some places.

    Attributes:
        where: the places.
        log_p: [places, vocabulary].
    """

    where: Where
    log_p: Float[Tensor, "places vocabulary"]

    def divergences(self, logits: Float[Tensor, "batch predicted vocabulary"]) -> Tensor:
        """KL(f || f') in each place, [places], from the logits of the trained model."""
        # Row by row, as when `log_p` was kept: the places come in the same order.
        chosen = logits[self.where.to(logits.device)]
        return divergence(self.log_p, log_probabilities(chosen))


def _remembered(subject: Subject, batch: Batch, where: Where) -> _Remembered:
    # Not in inference mode, whose tensors no gradient can be computed with.
    with torch.no_grad(), dropout_off(subject.module):
        logits = subject.target_logits(batch)
        chosen = logits[where.to(logits.device)]
        return _Remembered(where, log_probabilities(chosen))


def _retained(
    subject: Subject, retain: Batch, weight: float, *, padding: bool = False
) -> dict[str, Loss]:
    """The retained step of CU and CodeEraser; none for a weight of 0.

    A step with a loss of 0 would still be a step: Adam goes on in the direction of those before.
    """
    if not weight:
        return {}
    original = _remembered(subject, retain, _every(retain, padding=padding))

    def loss(trained: Subject) -> Tensor:
        logits = trained.run(retain, keep=retain.length - retain.prompt)
        return weight * original.divergences(logits).sum() / len(retain)

    return {"retain": loss}


def _every(batch: Batch, *, padding: bool) -> Where:
    """Every target, with or without padding."""
    return torch.ones_like(batch.targets, dtype=torch.bool) if padding else real(batch)


def _mean_loss(subject: Subject, batch: Batch, where: Where) -> Float[Tensor, ""]:
    return masked_mean(losses_of(subject, batch), where)


def _sequence_log_p(subject: Subject, batch: Batch) -> Float[Tensor, " batch"]:
    """The log-probability of the tokens that count in each row, together."""
    # Of every target that is no padding; those that do not count are taken out of the sum.
    losses = losses_of(subject, batch)
    return -losses.masked_fill(~batch.counted.to(losses.device), 0).sum(1)


def _activations(subject: Subject, batch: Batch, site: Site) -> Float[Tensor, "tokens width"]:
    """The activations at a site for every token that is no padding."""
    values: list[Tensor] = []

    def keep(value: Tensor, _: Clock) -> None:
        values.append(value)

    # Not `captured`, which begins a graph where there is none: a loss that none of the trained
    # weights can change would then look as if it could be minimized.
    with tapped(subject, {site: keep}):
        # One logit per row is the fewest that a forward gives; it is not used.
        subject.run(batch, keep=1)
    (found,) = values
    if found.shape[:2] != batch.tokens.shape:
        raise ValueError(
            f"{site} has {found.shape[1]} positions for {batch.length} tokens: rmu is for models "
            "with one position per token; choose another site or method"
        )
    return found if batch.mask is None else found[batch.mask.to(found.device)]
