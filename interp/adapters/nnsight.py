"""Runs a plan under nnsight: on a local model, as a dry run of a remote job, or on NDIF.

nnsight sends the body of one `with` block and the data that it names. So that body is plain torch
over lists, tuples and tensors, without classes or functions of ours, which a server does not have.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.adapters.ndif import check_hosted
from interp.adapters.plan_steps import PlanStep, align, plan_steps
from interp.interventions.plan import Plan
from interp.loading.load import load
from interp.sites.anatomy import Anatomy
from interp.subject.batch import Batch
from interp.subject.subject import Subject

Remote = Literal["local"] | bool | None


def logits(
    model: Any, plan: Plan, batch: Batch, remote: Remote = None, *, anatomy: Anatomy | None = None
) -> Float[Tensor, "batch position vocabulary"]:
    """Returns aligned logits under a plan, equal to `subject.logits(batch)` inside
    `subject.intervened(plan)`.

    Args:
        model: a Subject (wrapped for the call and left as it was), or your own nnsight model.
        plan: what is changed.
        batch: what the model reads.
        remote: None runs here; "local" sends the job through nnsight's serialization and runs it
            here; True runs it on NDIF, for a model made from a hub id:
            `nnsight.TransformersModel("owner/name")`.
        anatomy: only for an nnsight model whose weights are elsewhere: the anatomy of a loaded
            model of the same shape. For other models the sites are found automatically.

    Raises:
        HookError: none of the positions of an edit is in the batch.
        ValueError: the units were chosen on another model, or the model cannot be sent; the message
            gives the reason.

    Example:
        >>> from interp.adapters import nnsight
        >>> plan = interp.Zero(subject.units("blocks.0.neurons", [3, 5]))
        >>> theirs = nnsight.logits(subject, plan, batch)
        >>> with subject.intervened(plan):
        ...     ours = subject.logits(batch)
        >>> torch.allclose(theirs, ours, atol=1e-5)
        True
    """
    peer = _nnsight()
    if remote is True:
        check_hosted(model, peer)
    if not isinstance(model, Subject):
        plain = plan_steps(anatomy or load(model).anatomy, plan, batch)
        return align(_run(peer, model, plain, batch, _forward_options(remote)))

    with _wrapped(model, peer, remote) as envoy:
        plain = plan_steps(anatomy or model.anatomy, plan, batch)
        if remote:
            return align(_run(peer, envoy, plain, batch, _forward_options(remote)))

        def forward(_: Tensor) -> Tensor:
            return model.logits(batch)

        return _run(peer, envoy, plain, batch, {"fn": forward})


def _forward_options(remote: Remote) -> dict[str, Any]:
    options: dict[str, Any] = {"use_cache": False}
    if remote:
        options["remote"] = remote
    return options


def _run(
    peer: Any, model: Any, plain: list[PlanStep], batch: Batch, options: dict[str, Any]
) -> Tensor:
    """Runs the steps of a plan in one trace."""
    # The body of the trace is sent as source: it may name plain data, torch and nnsight only, and
    # has to ask for values in the order in which the model computes them.
    length = batch.length
    kept = {}
    saved = []
    with torch.no_grad(), model.trace(batch.tokens, **options) as tracer:
        for path, side, base, sign, changes in plain:
            envoy = model.get(path)
            whole = envoy.inputs if side == "in" else envoy.output
            if side == "in":
                items = [*whole[0], *whole[1].values()]
            elif torch.is_tensor(whole):
                items = [whole]
            else:
                items = [*whole]

            # the first tensor of floats among the arguments or results is the activation
            at = 0
            while not (torch.is_tensor(items[at]) and items[at].is_floating_point()):
                at += 1
            # OPT's MLP sees rows and positions flattened into one axis
            activation = items[at]
            width = activation.shape[-1]
            here = activation.shape[1] if activation.ndim == 3 else length
            # some sites are a sum or a difference of what two modules give: the other one was read
            # by an earlier step
            other = sign * kept[base] if base else 0
            value = activation.reshape(-1, here, width) + other
            for positions, columns, multiply, add, basis in changes:
                if positions is not None and here != length:
                    raise ValueError(
                        f"{path} sees {here} positions and the batch has {length}: "
                        "only edits at all positions can run here"
                    )
                rows = torch.arange(here)[:, None] if positions is None else positions
                chosen = value[:, rows, columns]
                # zeros and not a product, which would keep NaN and infinity
                new = chosen * multiply if multiply else torch.zeros_like(chosen)
                if basis is not None:
                    directions = basis.to(new)
                    new = new - (new @ directions.T) @ directions
                if add is not None:
                    new = new + add.to(new)
                value = value.clone()
                value[:, rows, columns] = new
            kept[path] = value
            if changes:
                items[at] = (value - other).reshape(activation.shape)
                if side == "in":
                    count = len(whole[0])
                    arguments = tuple(items[:count])
                    keywords = dict(zip(whole[1], items[count:], strict=True))
                    envoy.inputs = (arguments, keywords)
                else:
                    envoy.output = items[0] if torch.is_tensor(whole) else type(whole)(items)
        result = tracer.result
        saved = peer.save(result if torch.is_tensor(result) else result.logits)
    return saved  # noqa: RET504 - bound inside the trace, read outside it


@contextmanager
def _wrapped(subject: Subject, peer: Any, remote: Remote) -> Generator[Any]:
    """The subject's module as an nnsight model. What nnsight writes into the modules is removed on
    exit."""
    if remote and subject.tokenizer is None:
        raise ValueError(
            f"{subject.name} has no tokenizer, and nnsight's serializable models need one: "
            "pass interp.load(..., tokenizer=)"
        )
    before = [(child, dict(vars(child))) for child in subject.module.modules()]
    try:
        if remote:
            yield peer.TransformersModel(subject.module, tokenizer=subject.tokenizer)
        else:
            yield peer.NNsight(subject.module)
    finally:
        for child, attributes in before:
            vars(child).clear()
            vars(child).update(attributes)


def _nnsight() -> Any:
    # At its first import nnsight reads the command line, and takes a `-v` that is meant for another
    # program as its own debug switch. So it is imported with an empty one.
    arguments = sys.argv
    sys.argv = arguments[:1]
    try:
        import nnsight
    finally:
        sys.argv = arguments
    return nnsight
