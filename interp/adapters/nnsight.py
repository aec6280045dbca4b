"""Runs a plan under nnsight: on a local model, as a dry run of a remote job, or on NDIF.

What travels is the body of one `with` block and the data it names, so that body is plain torch over
lists, tuples and tensors: no class or function of ours, which a server would not have.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.adapters.ndif import check_hosted
from interp.adapters.steps import Step, steps
from interp.interventions.plan import Plan
from interp.loading.load import load
from interp.sites.anatomy import Anatomy
from interp.subject.batch import Batch
from interp.subject.subject import Subject

Remote = Literal["local"] | bool | None


def logits(
    model: Any, plan: Plan, batch: Batch, remote: Remote = None, *, anatomy: Anatomy | None = None
) -> Float[Tensor, "batch position vocabulary"]:
    """Aligned logits under a plan, equal to `subject.logits(batch)` inside
    `subject.intervened(plan)`.

    Args:
        model: a Subject (wrapped for the call and left as it was), or your own nnsight model.
        remote: None runs here; "local" sends the job through nnsight's serialization and runs it
            here; True runs it on NDIF, for a model made from a hub id:
            `nnsight.TransformersModel("owner/name")`.
        anatomy: for an nnsight model whose weights are elsewhere: that of a loaded model of the
        same shape. Found otherwise.

    Raises:
        HookError: an edit none of whose positions lies in the batch.
        ValueError: units of another model, or a model that cannot travel, with the reason.
    """
    peer = _nnsight()
    if remote is True:
        check_hosted(model, peer)
    with (
        _wrapped(model, peer, remote) if isinstance(model, Subject) else nullcontext(model) as envoy
    ):
        found = anatomy or (model if isinstance(model, Subject) else load(model)).anatomy
        plain = steps(found, plan, batch)
        if not isinstance(model, Subject) or remote:
            following = _run(
                peer,
                envoy,
                plain,
                batch,
                {"use_cache": False} | ({"remote": remote} if remote else {}),
            )
            return torch.cat([torch.zeros_like(following[:, :1]), following[:, :-1]], dim=1)

        def forward(_: Tensor) -> Tensor:
            return model.logits(batch)

        return _run(peer, envoy, plain, batch, {"fn": forward})


def _run(peer: Any, model: Any, plain: list[Step], batch: Batch, options: dict[str, Any]) -> Tensor:
    """One trace. Its body is shipped as source: it may name plain data, torch and nnsight only, and
    asks for values in execution order."""
    length, kept, saved = batch.length, {}, []
    with torch.no_grad(), model.trace(batch.tokens, **options) as tracer:
        for path, side, base, sign, changes in plain:
            envoy = model.get(path)
            whole = envoy.inputs if side == "in" else envoy.output
            items = (
                [*whole[0], *whole[1].values()]
                if side == "in"
                else [whole]
                if torch.is_tensor(whole)
                else [*whole]
            )
            at = 0
            while not (torch.is_tensor(items[at]) and items[at].is_floating_point()):
                at += 1
            here = (
                items[at].shape[1] if items[at].ndim == 3 else length
            )  # OPT's MLP sees positions flattened
            other = sign * kept[base] if base else 0
            value = items[at].reshape(-1, here, items[at].shape[-1]) + other
            for positions, columns, multiply, add, basis in changes:
                if positions is not None and here != length:
                    raise ValueError(
                        f"{path} sees {here} positions and the batch has {length}: only edits at all positions can run here"
                    )
                rows = torch.arange(here)[:, None] if positions is None else positions
                chosen = value[:, rows, columns]
                new = chosen * multiply if multiply else torch.zeros_like(chosen)
                new = new if basis is None else new - (new @ basis.to(new).T) @ basis.to(new)
                value = value.clone()
                value[:, rows, columns] = new if add is None else new + add.to(new)
            kept[path] = value
            if changes:
                items[at] = (value - other).reshape(items[at].shape)
                if side == "in":
                    envoy.inputs = (
                        tuple(items[: len(whole[0])]),
                        dict(zip(whole[1], items[len(whole[0]) :], strict=True)),
                    )
                else:
                    envoy.output = items[0] if torch.is_tensor(whole) else type(whole)(items)
        result = tracer.result
        saved = peer.save(result if torch.is_tensor(result) else result.logits)
    return saved  # noqa: RET504 - bound inside the trace, read outside it


@contextmanager
def _wrapped(subject: Subject, peer: Any, remote: Remote) -> Generator[Any]:
    """The subject's module as an nnsight model; what nnsight writes into the modules goes away with
    it."""
    if remote and subject.tokenizer is None:
        raise ValueError(
            f"{subject.name} has no tokenizer, and nnsight's serializable models need one: pass interp.load(..., tokenizer=)"
        )
    before = [(child, dict(vars(child))) for child in subject.module.modules()]
    try:
        yield (
            peer.TransformersModel(subject.module, tokenizer=subject.tokenizer)
            if remote
            else peer.NNsight(subject.module)
        )
    finally:
        for child, attributes in before:
            vars(child).clear()
            vars(child).update(attributes)


def _nnsight() -> Any:
    """nnsight, without the command line: at its first import it takes a `-v` meant for another
    program as its own debug switch."""
    arguments = sys.argv
    sys.argv = arguments[:1]
    try:
        import nnsight
    finally:
        sys.argv = arguments
    return nnsight
