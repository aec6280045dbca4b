"""Runs a plan under nnsight: on a local model, as a dry run of a remote job, or on NDIF.

What travels is the body of one `with` block and the data it names, so that body is plain torch over lists, tuples and tensors: no class or
function of ours, which a server would not have.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.anatomy import Anatomy
from interp.batch import Batch
from interp.hooks import HookError, lowered
from interp.interventions import Edit, Plan
from interp.sites import BLOCK_POINTS, Site
from interp.subject import Subject, load

Remote = Literal["local"] | bool | None
Change = tuple[Tensor, Tensor, float, Tensor | None, Tensor | None]  # positions, columns, multiply, add, basis
Step = tuple[str, str, str, list[Change]]  # module path, "in" or "out", path of what the value is added onto, changes


def logits(
    model: Any, plan: Plan, batch: Batch, remote: Remote = None, *, anatomy: Anatomy | None = None
) -> Float[Tensor, "batch position vocabulary"]:
    """Aligned logits under a plan, equal to `subject.logits(batch)` inside `subject.intervened(plan)`.

    Args:
        model: a Subject (wrapped for the call and left as it was), or your own nnsight model.
        remote: None runs here; "local" sends the job through nnsight's serialization and runs it here; True runs it on NDIF, for a model made
            from a hub id: `nnsight.TransformersModel("owner/name")`.
        anatomy: of an nnsight model whose weights are elsewhere: `interp.load(...).anatomy` of a model of the same shape. Found otherwise.

    Raises:
        HookError: an edit whose positions lie outside the batch.
        ValueError: units of another model, or `remote` for a model that cannot travel, with the reason.
    """
    peer = _nnsight()
    if remote is True:
        _check_remote(model, peer)
    with _wrapped(model, peer, remote) if isinstance(model, Subject) else nullcontext(model) as envoy:
        if isinstance(model, Subject) and not remote:
            return _run(peer, envoy, _steps(model.anatomy, plan, batch), batch, {"fn": lambda _: model.logits(batch)})
        anatomy = anatomy or (model if isinstance(model, Subject) else load(model)).anatomy
        following = _run(peer, envoy, _steps(anatomy, plan, batch), batch, {"use_cache": False} | ({"remote": remote} if remote else {}))
    return torch.cat([torch.zeros_like(following[:, :1]), following[:, :-1]], dim=1)


def _run(peer: Any, model: Any, steps: list[Step], batch: Batch, options: dict[str, Any]) -> Tensor:
    """One trace. Its body is shipped as source: it may name plain data, torch and nnsight only, and asks for values in execution order."""
    length, kept, saved = batch.length, {}, None
    with torch.no_grad(), model.trace(batch.tokens, **options) as tracer:
        for path, side, base, changes in steps:
            envoy = model.get(path)
            whole = envoy.inputs if side == "in" else envoy.output
            items = [*whole[0], *whole[1].values()] if side == "in" else [whole] if torch.is_tensor(whole) else [*whole]
            at = 0
            while not (torch.is_tensor(items[at]) and items[at].is_floating_point()):
                at += 1
            value = items[at].reshape(-1, length, items[at].shape[-1]) + (kept[base] if base else 0)
            for rows, columns, multiply, add, basis in changes:
                chosen = value[:, rows, columns]
                new = chosen * multiply if multiply else torch.zeros_like(chosen)
                new = new if basis is None else new - (new @ basis.to(new).T) @ basis.to(new)
                value = value.clone()
                value[:, rows, columns] = new if add is None else new + add.to(new)
            kept[path] = value
            if changes:
                items[at] = (value - (kept[base] if base else 0)).reshape(items[at].shape)
                if side == "in":
                    envoy.inputs = (tuple(items[: len(whole[0])]), dict(zip(whole[1], items[len(whole[0]) :], strict=True)))
                else:
                    envoy.output = items[0] if torch.is_tensor(whole) else type(whole)(items)
        result = tracer.result
        saved = peer.save(result if torch.is_tensor(result) else result.logits)
    return saved


def _steps(anatomy: Anatomy, plan: Plan, batch: Batch) -> list[Step]:
    """A plan as plain data, in the order in which the model meets it."""
    by_site: dict[Site, list[Change]] = {}
    for edit in lowered(anatomy, plan):
        by_site.setdefault(anatomy.resolve(edit.site), []).append(_change(edit, batch))
    return [step for _, step in sorted(_timed(anatomy, by_site), key=lambda timed: timed[0])]


def _timed(anatomy: Anatomy, by_site: dict[Site, list[Change]]) -> Iterator[tuple[tuple[float, ...], Step]]:
    stacks = list(anatomy.stacks)
    for site, changes in by_site.items():
        place, stack = anatomy.place(site), stacks.index(site.stack)
        if site.block is None:
            yield (stack, -1.0 if site.point == "embed" else float("inf"), 0.0), (place.path, place.side, "", changes)
            continue
        if place.onto is not None:  # kept once the edits there are done
            yield (stack, site.block, 0.5), (place.onto.path, place.onto.side, "", [])
        point = "attn_out" if site.point == "resid_mid" else site.point
        base = place.onto.path if place.onto else ""
        yield (stack, site.block, float(BLOCK_POINTS.index(point))), (place.path, place.side, base, changes)


def _change(edit: Edit, batch: Batch) -> Change:
    positions = edit.active(0, batch.length, batch.prompt or batch.length)
    if not len(positions):
        raise HookError(f"{edit.site}: positions {edit.positions}, when={edit.when!r}: none lies in {batch.length} tokens")
    add = None if edit.add is None else edit.add[positions % len(edit.add)]
    return positions[:, None], edit.columns[None, :], edit.multiply, add, edit.basis


@contextmanager
def _wrapped(subject: Subject, peer: Any, remote: Remote) -> Generator[Any]:
    """The subject's module as an nnsight model; what nnsight writes into the modules goes away with it."""
    if remote and subject.tokenizer is None:
        raise ValueError(f"{subject.name} has no tokenizer, and nnsight's serializable models need one: pass interp.load(..., tokenizer=)")
    before = [(child, dict(vars(child))) for child in subject.module.modules()]
    try:
        yield peer.TransformersModel(subject.module, tokenizer=subject.tokenizer) if remote else peer.NNsight(subject.module)
    finally:
        for child, attributes in before:
            vars(child).clear()
            vars(child).update(attributes)


def _check_remote(model: Any, peer: Any) -> None:
    """What a server would refuse minutes later, refused now."""
    name = getattr(model, "repo_id", None)
    if isinstance(model, (Subject, nn.Module)) or not hasattr(model, "to_model_key") or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        raise ValueError(
            f'remote=True needs nnsight.TransformersModel("owner/name"): NDIF hosts hub models; got {name or type(model).__name__}'
        )
    there = peer.ndif.get_remote_env()["packages"].get("nnsight")
    if there != peer.__version__:
        raise ValueError(f"NDIF runs nnsight {there} and here is {peer.__version__}: install the server's version")


def _nnsight() -> Any:
    """nnsight, without the command line: at its first import it takes a `-v` meant for another program as its own debug switch."""
    arguments = sys.argv
    sys.argv = arguments[:1]
    try:
        import nnsight
        import nnsight.ndif
    finally:
        sys.argv = arguments
    return nnsight
