"""Runs a plan, or records, under nnsight: on a local model, as a dry run of a remote job, or on
NDIF.

nnsight sends the body of one `with` block and the data that it names. So that body is plain torch
over lists, tuples and tensors, without classes or functions of ours, which a server does not have.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.adapters.ndif import check_hosted
from interp.adapters.plan_steps import PlanStep, align, plan_steps, reading_steps
from interp.engine.recording import Recording, reduce_values
from interp.interventions.plan import Plan
from interp.loading.load import load
from interp.sites.anatomy import Anatomy, Sites
from interp.sites.site import Site
from interp.subject.batch import Batch, Batches, batches
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
    plain = plan_steps(anatomy or _anatomy(model), plan, batch)
    with _traceable(model, peer, remote) as envoy:
        options = _options(model, batch, remote)
        found = _run(peer, envoy, plain, batch, options)
    # A forward of ours gives aligned logits already.
    return found if "fn" in options else align(found)


def record(
    model: Any,
    source: Batches,
    sites: Sites,
    reduce: str = "mean_abs",
    remote: Remote = None,
    *,
    plan: Plan | None = None,
    anatomy: Anatomy | None = None,
    folder: str | Path | None = None,
    batch_size: int = 8,
    views: int = 1,
) -> Recording:
    """Records activations, as `interp.record` does, under a plan or without one.

    Every batch is a job of its own. What comes back are the activations at the sites, which are
    reduced here: choose few sites, or a small `batch_size`, where they travel.

    Args:
        model, remote, anatomy: see `logits`.
        source, sites, reduce, folder, batch_size, views: see `interp.record`.
        plan: what is changed; activations are recorded as it leaves them.

    Raises:
        SiteError: a site is unknown.
        HookError: see `logits`; or a site that is made of more than two tensors of the model.
        ValueError: see `logits` and `interp.record`.

    Example:
        >>> from interp.adapters import nnsight
        >>> theirs = nnsight.record(subject, batch, "neurons")
        >>> ours = interp.record(subject, batch, "neurons")
        >>> np.allclose(theirs["blocks.1.neurons"], ours["blocks.1.neurons"], atol=1e-5)
        True
    """
    peer = _nnsight()
    if remote is True:
        check_hosted(model, peer)
    known = anatomy or _anatomy(model)
    chosen = known.expand(sites)
    # All views of an example stay in one batch.
    examples_per_batch = max(batch_size // views, 1)

    with _traceable(model, peer, remote) as envoy:

        def values() -> Iterator[tuple[Batch, dict[Site, Tensor]]]:
            for batch in batches(source, examples_per_batch * views):
                plain, numbers = reading_steps(known, plan, batch, chosen)
                wanted = sorted(numbers.values())
                found = _run(peer, envoy, plain, batch, _options(model, batch, remote), wanted)
                by_number = dict(zip(wanted, found, strict=True))
                yield batch, {site: by_number[numbers[site]] for site in chosen}

        return reduce_values(known, values(), chosen, reduce, folder=folder, views=views)


def _anatomy(model: Any) -> Anatomy:
    return model.anatomy if isinstance(model, Subject) else load(model).anatomy


def _options(model: Any, batch: Batch, remote: Remote) -> dict[str, Any]:
    """How a trace of a batch calls a model."""
    if isinstance(model, Subject) and not remote:

        def forward(_: Tensor) -> Tensor:
            return model.logits(batch)

        return {"fn": forward}
    # A mask need not be sent: padding is on the right, where no other token looks at it.
    if batch.conditioning:
        names = ", ".join(batch.conditioning)
        raise ValueError(
            f"only tokens are handed to an nnsight model, and the batch has {names}: give a "
            "Subject, without remote="
        )
    return _forward_options(remote)


def _forward_options(remote: Remote) -> dict[str, Any]:
    options: dict[str, Any] = {"use_cache": False}
    if remote:
        options["remote"] = remote
    return options


def _run(
    peer: Any,
    model: Any,
    plain: list[PlanStep],
    batch: Batch,
    options: dict[str, Any],
    wanted: list[int] | None = None,
) -> Any:
    """Runs the steps of a plan in one trace, and returns the logits, or the values of the wanted
    steps as a list."""
    # The body of the trace is sent as source: it may name plain data, torch and nnsight only, and
    # has to ask for values in the order in which the model computes them.
    length = batch.length
    kept = {}
    saved = []
    number = 0
    with torch.no_grad(), model.trace(batch.tokens, **options) as tracer:
        values = []
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
            # what later steps add is always what enters a module, never what leaves the same one
            if side == "in":
                kept[path] = value
            if wanted is not None and number in wanted:
                values.append(value.cpu())
            number += 1
            if changes:
                items[at] = (value - other).reshape(activation.shape)
                if side == "in":
                    count = len(whole[0])
                    arguments = tuple(items[:count])
                    keywords = dict(zip(whole[1], items[count:], strict=True))
                    envoy.inputs = (arguments, keywords)
                else:
                    envoy.output = items[0] if torch.is_tensor(whole) else type(whole)(items)
        if wanted is None:
            result = tracer.result
            saved = peer.save(result if torch.is_tensor(result) else result.logits)
        else:
            saved = peer.save(values)
    return saved


@contextmanager
def _traceable(model: Any, peer: Any, remote: Remote) -> Generator[Any]:
    """The model as an nnsight model. What nnsight writes into the modules of a subject is removed
    on exit."""
    if not isinstance(model, Subject):
        yield model
        return
    subject = model
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
