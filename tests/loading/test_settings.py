"""Models as people bring them: in bfloat16, with eager attention, compiled, under gradient
checkpointing, with weights on disk. Numbers are those of the plain model, or refused."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import interp

NAMES = ["llama", "gpt2", "neox"]


def zero(subject: interp.Subject) -> interp.Zero:
    return interp.Zero(subject.units("blocks.1.neurons", range(0, 48, 2)))


def numbers(subject: interp.Subject, name: str) -> list[Any]:
    """What the toolkit answers: losses clean and ablated, a recording, scores, a generation."""
    batch = tiny.batch(name, rows=2, prompt=4)
    with torch.no_grad():
        clean = subject.losses(batch)
        with subject.intervened(zero(subject)):
            ablated = subject.losses(batch)
    means = interp.record(subject, batch, "blocks.1.neurons", reduce="mean")
    scores = interp.localize(subject, batch, method="gradient_x_activation")
    generated = subject.generate(batch.tokens[:, :4], 4)
    values = [*means.values(), *scores.values.values()]
    return [clean, ablated, *(torch.as_tensor(value) for value in values), generated]


def assert_equal(got: list[Any], wanted: list[Any]) -> None:
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_keeps_every_site_and_zeroing_is_zeroing_by_hand(name: str):
    subject = tiny.wrapped(tiny.model(name, torch.bfloat16))
    assert subject.sites == tiny.subject(name).sites
    batch, plan = tiny.batch(name), zero(subject)
    with torch.no_grad(), subject.intervened(plan):
        ours = subject.logits(batch)
    rows = subject.anatomy.out_weight(subject.module, plan.units.sites[0])
    with torch.no_grad():
        rows[plan.units["blocks.1.neurons"]] = 0
        assert torch.equal(subject.logits(batch), ours)


@pytest.mark.parametrize("name", NAMES)
def test_eager_attention_stays_eager_and_gives_the_same_numbers(name: str):
    module = tiny.model(name)
    module.set_attn_implementation("eager")
    subject = tiny.wrapped(module)
    assert subject.sites == tiny.subject(name).sites
    assert_equal(numbers(subject, name), numbers(tiny.subject(name), name))
    assert module.config._attn_implementation == "eager"


class Plain(nn.Module):
    """A small model that compiles fast."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(tiny.VOCABULARY, 16)
        self.blocks = nn.ModuleList(tiny.Block(16, 2, causal=True) for _ in range(2))
        self.head = nn.Linear(16, tiny.VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def compiled_around(module: Plain) -> Any:
    return torch.compile(module, backend="eager")


def compiled_in_place(module: Plain) -> Any:
    module.compile(backend="eager")
    return module


def compiled_blocks(module: Plain) -> Any:
    for block in module.blocks:
        block.compile(backend="eager")
    return module


@pytest.mark.parametrize("first", ["a clean run", "loading", "an intervention"])
@pytest.mark.parametrize("compile_model", [compiled_around, compiled_in_place, compiled_blocks])
def test_a_compiled_model_gives_the_numbers_of_the_plain_one(
    compile_model: Callable[[Plain], Any], first: str
):
    """Whatever comes first: a graph made without hooks does not ignore them later, and none is made
    that keeps them."""
    torch._dynamo.reset()
    plain, module = tiny.seeded(Plain, torch.float32, 0), tiny.seeded(Plain, torch.float32, 0)
    tokens, reference = tiny.batch("llama").tokens, interp.load(plain)
    with torch.no_grad():
        clean = plain(tokens)
        with reference.intervened(zero_first(reference)):
            ablated = plain(tokens)
        early = interp.load(module) if first == "loading" else None
        compiled = compile_model(module)
        if first == "a clean run":
            compiled(tokens)
        subject = early or interp.load(compiled)
        for wanted, plans in ((ablated, [zero_first(subject)]), (clean, [])) * 2:
            with contextlib.ExitStack() as stack:
                for plan in plans:
                    stack.enter_context(subject.intervened(plan))
                assert torch.equal(compiled(tokens), wanted)  # the caller's own object
                assert torch.equal(subject.module(tokens), wanted)
    sites = subject.anatomy.expand("neurons")
    with interp.captured(subject, sites) as values:
        compiled(tokens).sum().backward()
    assert set(values) == set(sites)


class OwnCheckpointing(Plain):
    """A model that is not transformers' and checkpoints its blocks itself."""

    def __init__(self, *, use_reentrant: bool) -> None:
        super().__init__()
        self.use_reentrant = use_reentrant

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.use_reentrant)
        return self.head(x)


def checkpointing(kind: str, *, use_reentrant: bool) -> nn.Module:
    if kind == "own":
        return tiny.seeded(
            lambda: OwnCheckpointing(use_reentrant=use_reentrant), torch.float32, 0
        ).train()
    module = tiny.model(kind)
    module.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    return module.train()


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "own"])
def test_gradients_through_hooks_are_refused_under_checkpointing(kind: str, *, use_reentrant: bool):
    module = checkpointing(kind, use_reentrant=use_reentrant)
    subject, batch = interp.load(module), tiny.batch("llama")
    with tiny.untouched(module):
        with (
            pytest.raises(interp.HookError, match="gradient checkpointing runs"),
            subject.intervened(zero_first(subject)),
        ):
            subject.losses(batch)
        with (
            pytest.raises(interp.HookError, match="gradient checkpointing runs"),
            interp.captured(subject, subject.anatomy.expand("blocks.0.neurons")),
        ):
            subject.losses(batch)
        loss = subject.losses(batch).sum()  # a forward before the block, its backward inside
        with (
            pytest.raises(interp.HookError, match="gradient checkpointing runs"),
            subject.intervened(zero_first(subject)),
        ):
            loss.backward()
        with torch.no_grad(), subject.intervened(zero_first(subject)):
            without_gradients = subject.losses(batch)
    module.eval()
    if kind == "own":  # it checkpoints in every mode
        return
    with subject.intervened(zero_first(subject)):
        losses = subject.losses(batch)
    losses.sum().backward()
    torch.testing.assert_close(losses.isfinite(), without_gradients.isfinite())


def zero_first(subject: interp.Subject) -> interp.Zero:
    return interp.Zero(subject.units("blocks.0.neurons", [0, 1, 2]))


def offloaded(name: str, folder: Path, place: str) -> Any:
    from accelerate import cpu_offload, disk_offload
    from transformers import AutoModelForCausalLM

    if place == "memory":
        return cpu_offload(tiny.model(name))
    if place == "disk":
        return disk_offload(tiny.model(name), str(folder / "weights"), offload_buffers=True)
    module = tiny.model(name)
    module.save_pretrained(folder / "saved")
    device_map = {child: "cpu" for child, _ in module.named_children() if child != "model"}
    device_map |= {f"model.{child}": "cpu" for child, _ in module.model.named_children()}
    del device_map["model.layers"]
    device_map |= {"model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    return AutoModelForCausalLM.from_pretrained(
        folder / "saved", device_map=device_map, offload_folder=str(folder / "weights")
    )


@pytest.mark.parametrize(
    ("name", "place"),
    [("llama", "layers on disk"), ("gpt2", "disk"), ("neox", "memory"), ("qwen2", "disk")],
)
def test_offloaded_weights_give_the_numbers_of_the_plain_model(
    name: str, place: str, tmp_path: Path
):
    subject, plain = interp.load(offloaded(name, tmp_path, place)), tiny.subject(name)
    assert any(parameter.is_meta for parameter in subject.module.parameters())
    assert subject.sites == plain.sites
    assert subject.device == torch.device("cpu")
    assert subject.fingerprint == plain.fingerprint
    assert_equal(numbers(subject, name), numbers(plain, name))
    batch = tiny.batch(name)
    for got, wanted in zip(
        interp.sweep(subject, batch, [zero(subject), zero_first(subject)]),
        interp.sweep(plain, batch, [zero(plain), zero_first(plain)]),
        strict=True,
    ):
        assert got == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(interp.SiteError, match="is offloaded, and is in place only while"):
        subject.anatomy.out_weight(subject.module, "blocks.1.neurons")
    with pytest.raises(ValueError, match="is offloaded: the optimizer would change a copy"):
        interp.fit(subject, [batch], steps=1, lr=1e-3)


def test_offloaded_weights_that_are_not_finite_are_refused(tmp_path: Path):
    module = offloaded("llama", tmp_path, "memory")
    layer = module.model.layers[1].mlp.down_proj
    layer._hf_hook.weights_map["weight"][3, 4] = float("nan")
    with pytest.raises(interp.LoadError, match=r"NaN or infinity: model\.layers\.1\.mlp\.down"):
        interp.load(module)


def on_all_layers(*, use_dora: bool) -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4, target_modules="all-linear", use_dora=use_dora, init_lora_weights=False
    )
    return peft.get_peft_model(tiny.model("llama"), config)


def switched_off() -> Any:
    module = on_all_layers(use_dora=False)
    module.base_model.disable_adapter_layers()
    return module


def rescaled() -> Any:
    """(IA)^3: a learned factor on each neuron, inside the projection that the neurons enter."""
    peft = pytest.importorskip("peft")
    config = peft.IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
        init_ia3_weights=False,
    )
    return peft.get_peft_model(tiny.model("llama"), config)


def soft_prompt(kind: str) -> Any:
    peft = pytest.importorskip("peft")
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    return peft.get_peft_model(tiny.model("llama"), config)


ADAPTED: dict[str, Callable[[], Any]] = {
    "lora": lambda: on_all_layers(use_dora=False),
    "dora": lambda: on_all_layers(use_dora=True),
    "switched off": switched_off,
    "ia3": rescaled,
    "soft prompt": lambda: soft_prompt("PromptTuningConfig"),
    "prefix": lambda: soft_prompt("PrefixTuningConfig"),
}


@pytest.mark.filterwarnings("ignore:.*decoded by whole forwards")
@pytest.mark.parametrize("kind", ADAPTED)
def test_a_model_under_peft_is_measured_with_its_adapter(kind: str):
    module = tiny.seeded(ADAPTED[kind], torch.float32, 0)
    subject, batch = interp.load(module), tiny.batch("llama", rows=2, prompt=4)
    virtual = 3 if kind == "soft prompt" else 0

    def by_hand(tokens: torch.Tensor) -> torch.Tensor:
        return module(tokens).logits[:, virtual:]

    with torch.no_grad():
        assert torch.equal(subject.logits(batch)[:, 1:], by_hand(batch.tokens)[:, :-1])
        tokens = batch.tokens[:, :4]
        for _ in range(4):
            tokens = torch.cat([tokens, by_hand(tokens)[:, -1:].argmax(-1)], dim=1)
        assert torch.equal(subject.generate(batch.tokens[:, :4], 4), tokens[:, 4:])

    # Units are at the module whose input they are, the adapter's branches included.
    site = "blocks.1.neurons"
    wrapper = subject.module.get_submodule(subject.anatomy.place(site).path)
    assert (
        type(wrapper).__module__.startswith("peft" if not virtual else "torch") or kind == "prefix"
    )
    with torch.no_grad(), subject.intervened(interp.Zero(subject.units(site))):
        ours = subject.logits(batch)[:, 1:]
    handle = wrapper.register_forward_pre_hook(lambda _, args: (torch.zeros_like(args[0]),))
    with torch.no_grad():
        assert torch.equal(ours, by_hand(batch.tokens)[:, :-1])
    handle.remove()


def test_an_adapter_that_is_off_is_the_plain_model_but_no_resumed_scan_takes_it_for_on():
    module = tiny.seeded(ADAPTED["lora"], torch.float32, 0)
    subject = interp.load(module)
    with_adapter, batch = subject.fingerprint, tiny.batch("llama", rows=2, prompt=4)
    with torch.no_grad():
        adapted = subject.losses(batch)
    module.base_model.disable_adapter_layers()
    assert subject.fingerprint != with_adapter
    plain = interp.load(copy.deepcopy(module).unload())
    assert_equal(numbers(subject, "llama"), numbers(plain, "llama"))
    with torch.no_grad():
        assert not torch.allclose(subject.losses(batch), adapted)
