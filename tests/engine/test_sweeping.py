"""Laws of interp.engine.sweeping: every shortcut gives what the naive loop gives, and raises where
it raises."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

import interp
from interp.engine.sweeping import mean_loss, sweep, sweep_growing, sweep_naively, sweep_resuming

BATCHES = {
    "one row": {"rows": 1},
    "padded": {"rows": 3, "padded": True, "prompt": 4},
    "square": {"rows": 4, "length": 4},
}
METHODS = [sweep, sweep_resuming, sweep_growing]
# Every architecture takes the hardest shape. The others take one of each kind: parallel blocks,
# experts, attention whose heads are rows of the batch, two stacks.
KINDS = ("gpt2", "neox", "mixtral", "bloom", "policy")


def logits_of(logits: Tensor, batch: interp.Batch) -> Tensor:
    return logits.clone()


def scale(subject: interp.Subject, *sites: str, factor: float = 0.3, **narrow: Any) -> interp.Scale:
    chosen = [subject.anatomy.resolve(s) for s in sites]
    widths = {s: subject.anatomy.place(s).units for s in chosen}
    return interp.Scale(
        interp.Units({s: range(0, w, 2) for s, w in widths.items()}, widths),
        factor=factor,
        **narrow,
    )


def plans(subject: interp.Subject) -> list[Any]:
    """At every site; several in one block; in several blocks; two interventions in one plan; at raw
    places; at some positions."""
    stack = f"{list(subject.anatomy.stacks)[-1]}." if len(subject.anatomy.stacks) > 1 else ""
    raw = str(subject.anatomy.place(f"{stack}blocks.1.resid_post")).replace(":out", ":in")
    inner = next(
        str(s)
        for s in subject.anatomy.modules
        if "1." in str(s) and str(s).endswith(":out") and s.point != raw
    )
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


@pytest.mark.parametrize(
    ("name", "shape"),
    [*product(tiny.ALL, ["padded"]), *product(KINDS, ["one row"])],
)
def test_resuming_is_exact_in_float64(name: str, shape: str):
    method = sweep_resuming if shape == "padded" else sweep
    subject = tiny.subject(name, torch.float64)
    batch, todo = tiny.batch(name, dtype=torch.float64, **BATCHES[shape]), plans(tiny.subject(name))
    reference = sweep_naively(subject, batch, todo, logits_of)
    assert all(
        torch.equal(a, b)
        for a, b in zip(reference, method(subject, batch, todo, logits_of), strict=True)
    )
    if name not in (
        "mixtral",
        "llama",
        "gemma3",
        "qwen2",
        "phi3",
    ):  # these normalize in float32, whatever the weights are
        for a, b in zip(reference, sweep_growing(subject, batch, todo, logits_of), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "shape"),
    [*product(tiny.ALL, ["padded"]), *product(KINDS, ["one row", "square"])],
)
def test_every_method_equals_the_naive_loop(name: str, subject: interp.Subject, shape: str):
    batch, todo = tiny.batch(name, **BATCHES[shape]), plans(subject)
    if shape != "padded":  # the hardest shape takes all plans, the other two share them
        todo = todo[list(BATCHES).index(shape) // 2 :: 2]
    reference = sweep_naively(subject, batch, todo, logits_of)
    for method in METHODS:
        for a, b in zip(reference, method(subject, batch, todo, logits_of), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert sweep(subject, batch, todo) == pytest.approx(
        [mean_loss(logits, batch) for logits in reference], abs=1e-5
    )


def test_naive_is_one_forward_under_each_plan(name: str, subject: interp.Subject):
    batch, todo = tiny.batch(name, padded=True, prompt=2), plans(subject)[::3]
    for plan, loss in zip(todo, sweep_naively(subject, batch, todo), strict=True):
        with torch.no_grad(), subject.intervened(plan):
            wanted = subject.losses(batch).sum() / batch.counted.sum()
        assert loss == pytest.approx(float(wanted), abs=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
@pytest.mark.parametrize(
    "outer", ["blocks.0.mlp_out", "blocks.1.attn_out", "blocks.2.resid_pre", "embed", "final"]
)
def test_a_sweep_inside_an_intervention_runs_under_it(
    llama: interp.Subject, method: Callable[..., Any], outer: str
):
    batch, todo = tiny.batch("llama", rows=2), plans(llama)[::2]
    with llama.intervened(scale(llama, outer, factor=-1.0)):
        got = method(llama, batch, todo, logits_of)
    for plan, logits in zip(todo, got, strict=True):
        with (
            torch.no_grad(),
            llama.intervened(scale(llama, outer, factor=-1.0)),
            llama.intervened(plan),
        ):
            torch.testing.assert_close(logits, llama.target_logits(batch), rtol=0, atol=1e-5)


class _BoomError(Exception):
    pass


@pytest.mark.parametrize(
    ("method", "fails_at"),
    [*product([sweep_naively, *METHODS], [0, 2])],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_an_exception_in_the_measure_leaves_no_trace(
    llama: interp.Subject, method: Callable[..., Any], fails_at: int
):
    calls: list[int] = []

    def boom(*_: object) -> None:
        calls.append(1)
        if len(calls) > fails_at:
            raise _BoomError

    with tiny.untouched(llama.module), pytest.raises(_BoomError):
        method(llama, tiny.batch("llama"), plans(llama), boom)


@pytest.mark.parametrize("method", [sweep_naively, *METHODS], ids=lambda m: m.__name__)
def test_a_position_never_reached_is_an_error(llama: interp.Subject, method: Callable[..., Any]):
    todo = [scale(llama, "blocks.1.mlp_out"), scale(llama, "blocks.1.attn_out", positions=(40,))]
    with tiny.untouched(llama.module), pytest.raises(interp.HookError, match="never applied"):
        method(llama, tiny.batch("llama"), todo)


@pytest.mark.parametrize("method", [sweep_naively, *METHODS], ids=lambda m: m.__name__)
def test_no_plan_is_refused(llama: interp.Subject, method: Callable[..., Any]):
    with pytest.raises(ValueError, match="at least one intervention"):
        method(llama, tiny.batch("llama"), [])


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom"])
def test_forks_beyond_one_pass_are_split(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("interp.engine.sweeping._GROWN_TOKENS", 100)
    subject, batch = tiny.subject(name), tiny.batch(name, rows=3)
    for a, b in zip(
        sweep_naively(subject, batch, plans(subject), logits_of),
        sweep_growing(subject, batch, plans(subject), logits_of),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_resuming_runs_each_block_only_where_it_must(llama: interp.Subject):
    """The clean pass runs all blocks; a plan that starts at block L runs blocks L and above, and
    skips the attention below an MLP edit."""
    blocks, calls = [llama.module.get_submodule(p) for p in llama.anatomy.blocks()], []
    handles = [
        b.self_attn.q_proj.register_forward_hook(lambda *_, n=n: calls.append(n))
        for n, b in enumerate(blocks)
    ]
    sweep_resuming(
        llama,
        tiny.batch("llama"),
        [scale(llama, "blocks.1.attn_out"), scale(llama, "blocks.1.neurons")],
    )
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

    module = tiny.seeded(
        lambda: Rewriting(*(tiny.Block(32, tiny.HEADS, causal=True) for _ in range(2)))
    )
    subject = interp.load(module)
    with (
        tiny.untouched(module),
        pytest.raises(
            interp.HookError, match=r"in place.*use interp\.engine\.sweeping\.sweep_naively"
        ),
    ):
        sweep_resuming(subject, tiny.batch("gpt2"), [scale(subject, "blocks.1.mlp_out")])


SMALL, LARGE = {"rows": 1, "length": 9}, {"rows": 8, "length": 9}


def chosen(subject: interp.Subject, batch: interp.Batch, plans: list[Any]) -> str:
    """The name of the method that `sweep` calls."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("sweep_growing", "sweep_resuming"):
            patch.setattr(f"interp.engine.sweeping.{name}", lambda *_, name=name: name)
        return str(sweep(subject, batch, plans))


def test_small_batches_grow_and_large_ones_resume(llama: interp.Subject):
    assert chosen(llama, tiny.batch("llama", **SMALL), plans(llama)) == "sweep_growing"
    assert chosen(llama, tiny.batch("llama", **LARGE), plans(llama)) == "sweep_resuming"


def test_what_cannot_share_a_batch_or_is_exact_resumes(llama: interp.Subject):
    small = tiny.batch("llama", **SMALL)
    assert chosen(llama, small, [scale(llama, "blocks.1.mlp_out")]) == "sweep_resuming"
    assert chosen(llama, small, [scale(llama, "final"), scale(llama, "embed")]) == "sweep_resuming"
    exact = tiny.subject("llama", torch.float64)
    assert chosen(exact, small, plans(exact)) == "sweep_resuming"


def test_a_sweep_of_a_large_batch_equals_the_naive_loop_too(name: str, subject: interp.Subject):
    batch, todo = tiny.batch(name, **LARGE), plans(subject)[::3]
    for a, b in zip(
        sweep_naively(subject, batch, todo, logits_of),
        sweep(subject, batch, todo, logits_of),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("shape", "method"), [(SMALL, sweep_growing), (LARGE, sweep_resuming)])
def test_the_choice_depends_on_the_shape_alone(
    llama: interp.Subject,
    monkeypatch: pytest.MonkeyPatch,
    shape: dict[str, int],
    method: Callable[..., Any],
):
    """Whatever the tokens are, and without a look at any clock; so the result has the same bits
    each time."""
    for seed in range(3):
        assert (
            chosen(llama, tiny.batch("llama", seed=seed, **shape), plans(llama)) == method.__name__
        )
    batch = tiny.batch("llama", **shape)
    expected = method(llama, batch, plans(llama), logits_of)
    for clock in (
        "perf_counter",
        "perf_counter_ns",
        "process_time",
        "process_time_ns",
        "monotonic",
        "thread_time",
        "time",
    ):
        monkeypatch.setattr(
            f"time.{clock}", lambda clock=clock: pytest.fail(f"read the clock time.{clock}")
        )
    got = sweep(llama, batch, plans(llama), logits_of)
    monkeypatch.undo()
    assert all(map(torch.equal, expected, got))


def test_blocks_that_run_only_on_the_rows_of_the_model_resume():
    class Fixed(tiny.Block):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 1 and not self.any_rows:
                raise RuntimeError("shape mismatch")
            return super().forward(x)

        any_rows = True

    module = tiny.seeded(
        lambda: tiny.Language(*(Fixed(32, tiny.HEADS, causal=True) for _ in range(2)))
    )
    subject = interp.load(module)
    todo = [scale(subject, "blocks.0.mlp_out"), scale(subject, "blocks.1.mlp_out")]
    assert chosen(subject, tiny.batch("gpt2", **SMALL), todo) == "sweep_growing"
    module.trunk[0].any_rows = False
    assert chosen(subject, tiny.batch("gpt2", **SMALL), todo) == "sweep_resuming"


class Decoder(tiny.Language):
    """A decoder of three blocks that does something else around them."""

    def __init__(self) -> None:
        super().__init__(*(tiny.Block(32, 2, causal=True) for _ in range(3)))

    def run(self, x: Tensor) -> Tensor:
        for block in self.trunk:
            x = block(x)
        return x


class Reshaping(Decoder):
    """Goes back to the shape of its input after the blocks, as GPT-BigCode does."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.run(self.embed(tokens)).view(*tokens.shape, -1))


class Merging(Decoder):
    """The same, but additional rows are read as additional positions: no shape is wrong."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.run(self.embed(tokens)).reshape(len(tokens), -1, 32))


class Shifting(Decoder):
    """Its later blocks read something per row beside the stream."""

    class Shifted(tiny.Block):
        def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
            return super().forward(x if shift is None else x + shift)

    def __init__(self) -> None:
        tiny.Language.__init__(self, *(self.Shifted(32, 2, causal=True) for _ in range(3)))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        shift = x[:, :1]
        for number, block in enumerate(self.trunk):
            x = block(x, shift=shift) if number else block(x)
        return self.head(x)


class Returning(Decoder):
    """Adds the embeddings of its input to the stream after the blocks."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(self.run(x) + x)


def windowed() -> Any:
    """Sliding and full attention in turns: the blocks get different masks."""
    from transformers import CwmConfig, CwmForCausalLM

    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = CwmConfig(**tiny.GATED, layer_types=kinds, sliding_window=5, pad_token_id=0)
    config.bos_token_id, config.eos_token_id = 1, None
    return CwmForCausalLM(config)


def with_multiple_queries() -> Any:
    from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

    shape = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 48}
    return GPTBigCodeForCausalLM(GPTBigCodeConfig(vocab_size=tiny.VOCABULARY, **shape))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "make", [Reshaping, Merging, Shifting, Returning, windowed, with_multiple_queries]
)
def test_what_models_do_around_their_blocks_changes_no_result(make: Callable[[], Any], rows: int):
    subject = interp.load(tiny.seeded(make))
    batch = tiny.batch("llama", rows=rows)
    sites = [site for site in subject.sites if site.point in ("neurons", "resid_post")]
    todo = [interp.Scale(subject.units(site, range(8)), factor=-1.0) for site in sites]
    assert len(todo) >= 3
    reference = sweep_naively(subject, batch, todo, logits_of)
    for method in METHODS:
        for a, b in zip(reference, method(subject, batch, todo, logits_of), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_an_output_changed_in_place_is_noticed_before_the_first_result():
    class Scaling(Decoder):
        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed(tokens)
            for block in self.trunk:
                x = block(x).mul_(0.5)
            return self.head(x)

    subject = interp.load(tiny.seeded(Scaling))
    site = next(site for site in subject.sites if site.point == "resid_pre")
    todo = [interp.Scale(subject.units(site, [0]), factor=0.5)] * 3
    measured: list[int] = []
    with pytest.raises(interp.HookError, match="changed in place"):
        sweep_resuming(subject, tiny.batch("llama"), todo, lambda *_: measured.append(1))
    assert not measured
