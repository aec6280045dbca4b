"""Runs a plan on a TransformerBridge of TransformerLens: as hooks for its methods `hooks` and
`run_with_hooks`, or as aligned logits.

A bridge rewrites the model that it wraps, so it is given a copy. Its logits differ from the model's
own by the rounding of the bridge's own attention.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.adapters.plan_steps import align
from interp.errors import HookError, SiteError
from interp.hooks.hooks import Hooked, lower_plans
from interp.interventions.edit import Edit, apply
from interp.interventions.plan import Plan
from interp.sites.anatomy import Anatomy
from interp.sites.site import Site
from interp.subject.batch import Batch
from interp.subject.offloading import refuse_not_whole
from interp.subject.subject import Subject

Hook = Callable[..., Tensor]


def bridge(subject: Subject) -> Any:
    """Returns a TransformerBridge over a deep copy of the subject's module, which needs the same
    amount of memory again. The module itself is not touched.

    Nothing is downloaded: the bridge gets the subject's own weights and tokenizer, if it has one.
    Where its decoding on a cache gives other tokens than its decoding without (TransformerLens 4.3
    with transformers 5.24), its `generate` is set to decode without, with a warning.

    Raises:
        ValueError: an architecture that TransformerLens does not know, or weights are offloaded.
    """
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    refuse_not_whole(
        subject.module,
        "a bridge takes modules apart, without what puts their weights in place; "
        "load the model whole on one device",
    )
    module = copy.deepcopy(subject.module)
    config = getattr(module, "config", None)
    named = getattr(config, "architectures", None)
    name, *_ = named or [type(module).__name__]
    try:
        made: Any = build_bridge_from_module(
            module, name, hf_config=config, tokenizer=copy.deepcopy(subject.tokenizer)
        )
    except ValueError as error:
        raise ValueError(
            f"TransformerLens cannot wrap {name} ({error}): "
            "use subject.intervened(plan) or the nnsight adapter"
        ) from error
    if not _cache_is_right(made):
        versions = [f"{package} {version(package)}" for package in _PACKAGES]
        warnings.warn(
            f"{' with '.join(versions)} decodes other tokens of {name} on its cache than without: "
            "this bridge's generate decodes without",
            stacklevel=2,
        )
        made.generate = partial(made.generate, use_past_kv_cache=False)
    return made


_PACKAGES = ("transformer-lens", "transformers")


def _cache_is_right(bridge: Any) -> bool:
    """Whether a bridge decodes the same tokens on its cache as without it."""
    device = next(bridge.parameters()).device
    prompt = torch.arange(1, 5, device=device)[None]
    settings = {"max_new_tokens": 4, "do_sample": False, "stop_at_eos": False, "verbose": False}
    found = [
        bridge.generate(prompt, use_past_kv_cache=uses_cache, **settings)
        for uses_cache in (True, False)
    ]
    return torch.equal(*found)


def logits(
    bridge: Any, anatomy: Anatomy, plan: Plan, batch: Batch
) -> Float[Tensor, "batch position vocabulary"]:
    """Returns aligned logits of a bridge under a plan, equal up to rounding to
    `subject.logits(batch)` inside `subject.intervened(plan)`.

    Args:
        bridge: what `bridge(subject)` returns.
        anatomy: `subject.anatomy`.
        plan: what is changed.
        batch: what the model reads.

    Raises:
        SiteError: a site that TransformerLens cannot name.
        HookError: none of the positions of an edit is in the batch.
    """
    for edit in lower_plans(anatomy, plan):
        if not len(edit.active(0, batch.length, batch.prompt or batch.length)):
            raise HookError(
                f"{edit.site}: positions={edit.positions} with when={edit.when!r} "
                f"selects none of the {batch.length} tokens"
            )
    hooks = fwd_hooks(anatomy, plan, prompt=batch.prompt or None)
    with torch.no_grad():
        following = bridge.run_with_hooks(batch.tokens, fwd_hooks=hooks)
    return align(following)


def fwd_hooks(
    model: Hooked | Anatomy, plan: Plan, prompt: int | None = None
) -> list[tuple[str, Hook]]:
    """Returns a plan as (name, hook) pairs for one run of a bridge: `with
    bridge.hooks(fwd_hooks=fwd_hooks(subject, plan)): bridge.generate(...)`.

    Positions are absolute, also when generating with a KV cache: a value that is one position long
    is taken to follow the value before it.

    Args:
        model: the subject or its anatomy.
        plan: what is changed.
        prompt: how many positions count as prompt for `when`; by default all that come in the first
            call.

    Raises:
        SiteError: a site that TransformerLens cannot name (several stacks, module paths), or that
            is another value there (what a model scales, or normalizes after the addition); or a
            plan that adds to a weight.

    Example:
        >>> from interp.adapters import transformer_lens
        >>> units = interp.Units({"blocks.0.neurons": [3, 5]}, {"blocks.0.neurons": 48})
        >>> [name for name, hook in transformer_lens.fwd_hooks(subject, interp.Zero(units))]
        ['blocks.0.mlp.hook_post']
    """
    anatomy = model if isinstance(model, Anatomy) else model.anatomy
    by_site: dict[Site, list[Edit]] = {}
    for edit in lower_plans(anatomy, plan):
        if edit.weight is not None:
            raise SiteError(
                f"{edit.site}: this plan adds to a weight, and TransformerLens's hooks change "
                "activations alone: run it by hooks on the model itself (subject.intervened)"
            )
        by_site.setdefault(anatomy.resolve(edit.site), []).append(edit)
    pairs: list[tuple[str, Hook]] = []
    for site, edits in by_site.items():
        place = anatomy.place(site)
        if not place.is_plain or (site.point == "resid_mid" and place.base is None):
            raise SiteError(
                f"{site} is {place}, which is not what TransformerLens's hooks are given: run this "
                "plan by hooks on the model itself (subject.intervened)"
            )
        pairs += _hooks(site, edits, prompt)
    return pairs


# Points that a bridge has no hook for: each is another point plus or minus resid_pre.
# TransformerLens's hook_resid_mid will not do, because it feeds the MLP only, whereas an edit of
# the residual also has to reach what follows the MLP. So the residual is edited through what the
# attention adds to it.
_SUM_WITH_RESID_PRE = {
    "resid_mid": ("attn_out", 1),
    "block_out": ("resid_post", -1),
}


def _hooks(site: Site, edits: list[Edit], prompt: int | None) -> list[tuple[str, Hook]]:
    edit = _hook(edits, prompt)
    if site.point not in _SUM_WITH_RESID_PRE:
        return [(site.transformer_lens, edit)]
    point, sign = _SUM_WITH_RESID_PRE[site.point]
    base: list[Tensor] = []

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
    seen = 0
    given = prompt

    def change(value: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        nonlocal seen, given
        length = value.shape[1]
        # One position goes on where the last value ended; more of them begin anew.
        offset = seen if length == 1 else 0
        seen = offset + length
        # What comes in the first call is the prompt, where nothing else was said.
        given = given or length

        # hook_z has an axis of heads, which an edit's columns do not know
        new = value.flatten(2)
        for edit in edits:
            positions = edit.active(offset, length, given)
            if len(positions):
                new = apply(edit, new, offset, positions)
        return new.view(value.shape)

    return change
