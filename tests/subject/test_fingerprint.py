"""Laws of interp.subject.fingerprint: whatever changes a logit changes it, in the part that says so,
and nothing else does."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn

import interp
from interp.mitigation.sinks import Sinks
from interp.subject.fingerprint import _interventions, identify

TEXTS = torch.randint(
    0, tiny.VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(0)
).tolist()


class Switched(nn.Linear):
    """An adapter's layer, switched on and off under the names of PEFT."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, bias=False)
        self.weight = base.weight
        self.low_rank = nn.Parameter(torch.full((2, base.in_features), 0.05))
        self._disable_adapters = False
        self._active_adapter = ["default"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        base = super().forward(x)
        if self._disable_adapters:
            return base
        return base + (x @ self.low_rank.T).sum(-1, keepdim=True)


def adapted(name: str = "llama") -> Any:
    module = tiny.model(name)
    mlp = module.model.layers[1].mlp
    mlp.down_proj = Switched(mlp.down_proj)
    return module


def shuffled(module: Any) -> None:
    weight = module.get_input_embeddings().weight.data
    weight.copy_(weight.flip(1))


def with_other_rotation(module: Any) -> None:
    module.model.rotary_emb.inv_freq.mul_(0.5)


def with_other_epsilon(module: Any) -> None:
    module.model.layers[0].input_layernorm.variance_epsilon = 0.1


def with_other_configuration(module: Any) -> None:
    module.config.rms_norm_eps = 0.1


def with_eager_attention(module: Any) -> None:
    module.set_attn_implementation("eager")


def without_adapter(module: Any) -> None:
    module.model.layers[1].mlp.down_proj._disable_adapters = True


def with_foreign_hook(module: Any) -> None:
    module.model.layers[0].register_forward_hook(lambda _, __, output: output * 2)


def with_foreign_forward(module: Any) -> None:
    module.model.layers[0].mlp.forward = lambda x: 0 * x


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (shuffled, "weights"),
        (with_other_rotation, "buffers"),
        (with_other_epsilon, "modules"),
        (with_other_configuration, "configuration"),
        (with_eager_attention, "configuration"),
        (without_adapter, "adapters"),
        (with_foreign_hook, "interventions"),
        (with_foreign_forward, "interventions"),
    ],
)
def test_what_computes_is_told_and_a_scan_is_not_resumed_under_it(
    change: Callable[[Any], None], part: str, tmp_path: Path
):
    subject = interp.load(adapted())
    before = identify(subject)
    interp.scan(subject, TEXTS, prefix=6, length=6, folder=tmp_path)
    changed = interp.load(copy.deepcopy(subject.module))
    change(changed.module)
    after = identify(changed)
    assert part in {name for name in before if before[name] != after[name]}
    assert changed.fingerprint != subject.fingerprint
    with pytest.raises(ValueError, match=f"another scan.*model parts: other .*{part}"):
        interp.scan(changed, TEXTS, prefix=6, length=6, folder=tmp_path)
    interp.scan(subject, TEXTS, prefix=6, length=6, folder=tmp_path)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"factor": 0.5}, {"factor": 0.25}),
        ({"factor": 0.5}, {"factor": 0.5, "positions": (3,)}),
        ({"factor": 0.5}, {"factor": 0.5, "when": "decode"}),
    ],
)
def test_active_plans_are_told_apart_and_the_same_plan_is_the_same(
    llama: interp.Subject, first: dict[str, Any], second: dict[str, Any], tmp_path: Path
):
    units = llama.units(["blocks.1.neurons", "blocks.1.resid_mid"], [0, 3])

    def plan(options: dict[str, Any]) -> AbstractContextManager[None]:
        return llama.intervened(interp.Scale(units, **options)) if options else nullcontext()

    def scan(options: dict[str, Any], texts: int = 3) -> Any:
        with plan(options):
            return interp.scan(llama, TEXTS[:texts], prefix=6, length=6, folder=tmp_path)

    begun = scan(first, texts=2)["log_p"].tolist()
    assert scan(first)["log_p"].tolist()[:2] == begun
    for other in ({}, second):
        with pytest.raises(ValueError, match="model parts: other interventions"):
            scan(other)


def granite() -> interp.Subject:
    """A model that scales what its halves give before it adds it to the residual stream."""
    from transformers import GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(**tiny.GATED, residual_multiplier=0.5)
    return interp.load(tiny.seeded(lambda: GraniteForCausalLM(config)))


@pytest.mark.parametrize("name", [*tiny.ALL, *tiny.IMAGE, "granite"])
def test_different_plans_differ_at_every_kind_of_site(name: str):
    subject = granite() if name == "granite" else tiny.subject(name)
    module = subject.module
    one_of_each_kind: dict[tuple[str, str], interp.Site] = {}
    for site in subject.anatomy.sites:
        one_of_each_kind[site.stack, site.point] = site
    assert {point for _, point in one_of_each_kind} >= {"attn_out", "mlp_out"}
    found = [_interventions(module)]
    for site in one_of_each_kind.values():
        units = subject.units(site)
        for plan in (
            interp.Zero(units),
            interp.Scale(units, factor=0.5),
            interp.Scale(units, factor=0.5, positions=(1,)),
            interp.Scale(units, factor=0.5, when="prompt"),
        ):
            with pytest.raises(interp.HookError), subject.intervened(plan):
                found.append(_interventions(module))
    described = [json.dumps(each, sort_keys=True) for each in found]
    assert len(set(described)) == len(described) == 1 + 4 * len(one_of_each_kind)


def test_a_plan_on_a_scaled_half_is_told_by_the_whole_fingerprint():
    subject = granite()
    units = subject.units("blocks.1.mlp_out")
    assert subject.anatomy.place("blocks.1.mlp_out").scale == pytest.approx(0.5)
    told: set[str] = {subject.fingerprint}
    for plan in (interp.Zero(units), interp.Scale(units, factor=0.5)):
        with subject.intervened(plan):
            told.add(subject.fingerprint)
            subject.losses(tiny.batch("llama"))
    assert len(told) == 3


def test_own_sinks_of_other_documents_are_told_apart(llama: interp.Subject):
    sinks = Sinks.of(llama, general=0.5, active=0.25)
    found: list[str] = []
    for ids in ([1, 2], [1, 3], [1, 2]):
        with sinks.own(llama, torch.tensor(ids)):
            found.append(llama.fingerprint)
            llama.losses(tiny.batch("llama"))
    first, second, again = found
    assert first == again
    assert len({first, second, llama.fingerprint}) == 3


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "policy"])
def test_use_changes_nothing(name: str):
    subject, batch = tiny.wrapped(tiny.model(name)), tiny.batch(name)
    before = identify(subject)
    with torch.no_grad(), subject.intervened(interp.Zero(subject.units("neurons"))):
        subject.losses(batch)
    if name != "policy":
        tiny.generated(subject.module, batch.tokens, 3)
    subject.module.train()
    assert identify(subject) == before
    assert identify(tiny.wrapped(copy.deepcopy(subject.module))) == before


def test_rotary_embeddings_that_stretch_with_the_text_stay_the_same():
    from transformers import LlamaConfig, LlamaForCausalLM

    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}
    config = LlamaConfig(**tiny.GATED, rope_parameters=rope, max_position_embeddings=8)
    subject = interp.load(tiny.seeded(lambda: LlamaForCausalLM(config), torch.float32, 0))
    before = identify(subject)
    running = subject.module.model.rotary_emb.inv_freq.clone()
    with torch.no_grad():
        subject.logits(tiny.batch("llama", length=20))
    assert not torch.equal(subject.module.model.rotary_emb.inv_freq, running)
    assert identify(subject) == before
