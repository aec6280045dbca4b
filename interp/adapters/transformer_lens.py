"""Runs a plan on a TransformerBridge: as `fwd_hooks`, which its `hooks`, `run_with_hooks` and
`generate` take, or as aligned logits.

A bridge rewrites the model that it wraps, so it gets a copy; its logits differ from the model's own
by the rounding of its own attention.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import HookError
from interp.hooks.hooks import Hooked, lowered
from interp.interventions.edit import Edit, apply
from interp.interventions.plan import Plan
from interp.sites.anatomy import Anatomy
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.subject import Subject

Hook = Callable[..., Tensor]


def bridge(subject: Subject) -> Any:
    """A TransformerBridge over a deep copy of the subject's module, which costs its memory once
    more; the module itself is never touched.

    Nothing is downloaded: the bridge gets the subject's own weights and tokenizer (none if it has
    none). Raises ValueError for architectures that TransformerLens does not know.
    """
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    module = copy.deepcopy(subject.module)
    config = getattr(module, "config", None)
    name = (getattr(config, "architectures", None) or [type(module).__name__])[0]
    try:
        return build_bridge_from_module(
            module, name, hf_config=config, tokenizer=copy.deepcopy(subject.tokenizer)
        )
    except ValueError as error:
        raise ValueError(
            f"TransformerLens cannot wrap {name} ({error}): use subject.intervened(plan) or the nnsight adapter"
        ) from error


def logits(
    bridge: Any, anatomy: Anatomy, plan: Plan, batch: Batch
) -> Float[Tensor, "batch position vocabulary"]:
    """Aligned logits of the bridge under a plan, equal up to rounding to `subject.logits(batch)`
    inside `subject.intervened(plan)`.

    Raises SiteError for sites TransformerLens cannot name, HookError for an edit none of whose
    positions lies in the batch.
    """
    for edit in lowered(anatomy, plan):
        if not len(edit.active(0, batch.length, batch.prompt or batch.length)):
            raise HookError(
                f"{edit.site}: none of positions {edit.positions}, when={edit.when!r}, lies in {batch.length} tokens"
            )
    with torch.no_grad():
        following = bridge.run_with_hooks(
            batch.tokens, fwd_hooks=fwd_hooks(anatomy, plan, prompt=batch.prompt or None)
        )
    return torch.cat([torch.zeros_like(following[:, :1]), following[:, :-1]], dim=1)


def fwd_hooks(
    model: Hooked | Anatomy, plan: Plan, prompt: int | None = None
) -> list[tuple[str, Hook]]:
    """A plan as (name, hook) pairs, good for one run: `with
    bridge.hooks(fwd_hooks=fwd_hooks(subject, plan)): bridge.generate(...)`.

    Positions are absolute, also under generation with a KV cache: a value one position long follows
    the one before it. `prompt` is how many positions count as prompt for `when`; all that come at
    once when None. Raises SiteError for sites TransformerLens cannot name (several stacks, module
    paths).
    """
    anatomy = model if isinstance(model, Anatomy) else model.anatomy
    by_site: dict[Site, list[Edit]] = {}
    for edit in lowered(anatomy, plan):
        by_site.setdefault(anatomy.resolve(edit.site), []).append(edit)
    return [pair for site, edits in by_site.items() for pair in _hooks(site, edits, prompt)]


_MADE_OF = {
    "resid_mid": ("attn_out", 1),
    "block_out": ("resid_post", -1),
}  # with resid_pre, which enters with this sign


def _hooks(site: Site, edits: list[Edit], prompt: int | None) -> list[tuple[str, Hook]]:
    edit = _hook(edits, prompt)
    if site.point not in _MADE_OF:
        return [(site.transformer_lens, edit)]
    base: list[
        Tensor
    ] = []  # hook_resid_mid feeds the MLP only: the residual is changed by what the attention adds to it
    point, sign = _MADE_OF[site.point]

    def keep(value: Tensor, hook: Any) -> Tensor:  # noqa: ARG001 - TransformerLens passes it by name
        base[:] = [sign * value]
        return value

    def change(value: Tensor, hook: Any) -> Tensor:
        return edit(base[0] + value, hook) - base[0]

    return [
        (Site("resid_pre", site.block).transformer_lens, keep),
        (Site(point, site.block).transformer_lens, change),
    ]


def _hook(edits: list[Edit], prompt: int | None) -> Hook:
    seen, given = 0, prompt

    def change(value: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        nonlocal seen, given
        length = value.shape[1]
        offset = seen if length == 1 else 0
        seen, given = offset + length, given or length
        new = value.flatten(2)  # hook_z has an axis of heads
        for edit in edits:
            positions = edit.active(offset, length, given)
            new = apply(edit, new, offset, positions) if len(positions) else new
        return new.view(value.shape)

    return change
