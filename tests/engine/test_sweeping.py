"""Laws of interp.engine.sweeping: every shortcut gives what the naive loop gives, and raises where it raises."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

import interp
from interp.engine.sweeping import grown, naive, resumed, sweep

BATCHES = {"one row": {"rows": 1}, "padded": {"rows": 3, "padded": True, "prompt": 4}, "square": {"rows": 4, "length": 4}}
METHODS = [sweep, resumed, grown]


def logits_of(logits: Tensor, batch: interp.Batch) -> Tensor:
    return logits.clone()


def scale(subject: interp.Subject, *sites: str, factor: float = 0.3, **narrow: Any) -> interp.Scale:
    chosen = [subject.anatomy.resolve(s) for s in sites]
    widths = {s: subject.anatomy.place(s).units for s in chosen}
    return interp.Scale(interp.Units({s: range(0, w, 2) for s, w in widths.items()}, widths), factor=factor, **narrow)


def plans(subject: interp.Subject) -> list[Any]:
    """At every site; several in one block; in several blocks; two interventions in one plan; at raw places; at some positions."""
    stack = f"{list(subject.anatomy.stacks)[-1]}." if len(subject.anatomy.stacks) > 1 else ""
    raw = str(subject.anatomy.place(f"{stack}blocks.1.resid_post")).replace(":out", ":in")
    inner = next(str(s) for s in subject.anatomy.modules if "1." in str(s) and str(s).endswith(":out") and s.point != raw)
    return [
        *(scale(subject, str(site)) for site in subject.sites),
        scale(subject, f"{stack}blocks.1.mlp_out", factor=0.0),
        scale(subject, f"{stack}blocks.0.attn_out", f"{stack}blocks.2.mlp_out"),
        [scale(subject, f"{stack}blocks.2.attn_out"), scale(subject, f"{stack}blocks.1.mlp_out")],
        [scale(subject, f"{stack}final"), scale(subject, f"{stack}blocks.1.mlp_out")],
        scale(subject, raw),
        scale(subject, inner),
        scale(subject, f"{stack}blocks.1.attn_out", positions=(1, 2)),
    ]


@pytest.mark.parametrize("shape", ["one row", "padded"])
def test_resuming_is_exact_in_float64(name: str, shape: str):
    subject = tiny.subject(name, torch.float64)
    batch, todo = tiny.batch(name, dtype=torch.float64, **BATCHES[shape]), plans(tiny.subject(name))
    reference = naive(subject, batch, todo, logits_of)
    for method in (sweep, resumed):
        assert all(torch.equal(a, b) for a, b in zip(reference, method(subject, batch, todo, logits_of), strict=True))
    if name not in ("mixtral", "llama", "gemma3", "qwen2", "phi3"):  # these normalize in float32, whatever the weights are
        for a, b in zip(reference, grown(subject, batch, todo, logits_of), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", BATCHES)
def test_every_method_equals_the_naive_loop(name: str, subject: interp.Subject, shape: str):
    batch, todo = tiny.batch(name, **BATCHES[shape]), plans(subject)
    reference = naive(subject, batch, todo, logits_of)
    for method in METHODS:
        for a, b in zip(reference, method(subject, batch, todo, logits_of), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert sweep(subject, batch, todo) == pytest.approx(naive(subject, batch, todo), abs=1e-5)


def test_naive_is_one_forward_under_each_plan(name: str, subject: interp.Subject):
    batch = tiny.batch(name, padded=True, prompt=2)
    for plan, loss in zip(plans(subject), naive(subject, batch, plans(subject)), strict=True):
        with torch.no_grad(), subject.intervened(plan):
            wanted = subject.losses(batch).sum() / batch.counted.sum()
        assert loss == pytest.approx(float(wanted), abs=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
@pytest.mark.parametrize("outer", ["blocks.0.mlp_out", "blocks.1.attn_out", "blocks.2.resid_pre", "embed", "final"])
def test_a_sweep_inside_an_intervention_runs_under_it(llama: interp.Subject, method: Callable[..., Any], outer: str):
    batch, todo = tiny.batch("llama", rows=2), plans(llama)
    with llama.intervened(scale(llama, outer, factor=-1.0)):
        got = method(llama, batch, todo, logits_of)
    for plan, logits in zip(todo, got, strict=True):
        with torch.no_grad(), llama.intervened(scale(llama, outer, factor=-1.0)), llama.intervened(plan):
            torch.testing.assert_close(logits, llama.target_logits(batch), rtol=0, atol=1e-5)


class _BoomError(Exception):
    pass


@pytest.mark.parametrize(("method", "fails_at"), [*product([naive, *METHODS], [0, 2])], ids=lambda x: getattr(x, "__name__", x))
def test_an_exception_in_the_measure_leaves_no_trace(llama: interp.Subject, method: Callable[..., Any], fails_at: int):
    calls: list[int] = []

    def boom(*_: object) -> None:
        calls.append(1)
        if len(calls) > fails_at:
            raise _BoomError

    with tiny.untouched(llama.module), pytest.raises(_BoomError):
        method(llama, tiny.batch("llama"), plans(llama), boom)


@pytest.mark.parametrize("method", [naive, *METHODS], ids=lambda m: m.__name__)
def test_a_position_never_reached_is_an_error(llama: interp.Subject, method: Callable[..., Any]):
    todo = [scale(llama, "blocks.1.mlp_out"), scale(llama, "blocks.1.attn_out", positions=(40,))]
    with tiny.untouched(llama.module), pytest.raises(interp.HookError, match="never applied"):
        method(llama, tiny.batch("llama"), todo)


@pytest.mark.parametrize("method", [naive, *METHODS], ids=lambda m: m.__name__)
def test_no_plan_is_refused(llama: interp.Subject, method: Callable[..., Any]):
    with pytest.raises(ValueError, match="at least one intervention"):
        method(llama, tiny.batch("llama"), [])


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom"])
def test_forks_beyond_one_pass_are_split(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("interp.engine.sweeping._GROWN_TOKENS", 100)
    subject, batch = tiny.subject(name), tiny.batch(name, rows=3)
    for a, b in zip(naive(subject, batch, plans(subject), logits_of), grown(subject, batch, plans(subject), logits_of), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_resuming_runs_each_block_only_where_it_must(llama: interp.Subject):
    """The clean pass runs all blocks; a plan that starts at block L runs blocks L and above, and skips the attention below an MLP edit."""
    blocks, calls = [llama.module.get_submodule(p) for p in llama.anatomy.blocks()], []
    handles = [b.self_attn.q_proj.register_forward_hook(lambda *_, n=n: calls.append(n)) for n, b in enumerate(blocks)]
    resumed(llama, tiny.batch("llama"), [scale(llama, "blocks.1.attn_out"), scale(llama, "blocks.1.neurons")])
    for handle in handles:
        handle.remove()
    assert calls == [*range(3), 1, 2, 2]


def test_a_block_that_changes_its_output_in_place_cannot_be_resumed():
    class Rewriting(tiny.Language):
        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed(tokens)
            for block in self.trunk:
                x = block(x)
            return self.head(x.mul_(2.0))

    module = tiny.seeded(lambda: Rewriting(*(tiny.Block(32, tiny.HEADS, causal=True) for _ in range(2))))
    subject = interp.load(module)
    with tiny.untouched(module), pytest.raises(interp.HookError, match=r"in place.*use naive"):
        resumed(subject, tiny.batch("gpt2"), [scale(subject, "blocks.1.mlp_out")])


def test_measured_choice_is_one_of_the_two(llama: interp.Subject, monkeypatch: pytest.MonkeyPatch):
    for cheaper in (0.0, 1e9):
        monkeypatch.setattr("interp.engine.sweeping._CHEAPER_ROWS", cheaper)
        taken: list[str] = []
        for method in ("grown", "resumed"):
            monkeypatch.setattr(f"interp.engine.sweeping.{method}", lambda *_, m=method, into=taken: into.append(m))
        sweep(llama, tiny.batch("llama", rows=1), plans(llama))
        monkeypatch.undo()
        assert taken == ["resumed" if cheaper == 0.0 else "grown"]
