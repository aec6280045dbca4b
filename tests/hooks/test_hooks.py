"""Laws of interp.hooks.hooks: nothing intervening changes nothing, whatever happens leaves no
trace, and what never fires is an error."""

import contextlib
import signal
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

import interp
from interp.hooks import hooks
from interp.hooks.hooks import tapped


def zero(subject: interp.Subject, **narrow: object) -> interp.Zero:
    return interp.Zero(
        tiny.units(subject, subject.anatomy.expand("mlp_out")[-1], [0, 1, 2]), **narrow
    )


def all_plans(subject: interp.Subject) -> list[interp.Intervention]:
    return [interp.Scale(tiny.units(subject, site, [0]), factor=0.5) for site in subject.sites]


def test_nothing_intervening_is_bit_identical_to_the_bare_model(name: str):
    module = tiny.model(name)
    subject = tiny.wrapped(module)
    batch = tiny.batch(name, rows=3, seed=4)

    def check() -> None:
        ours, bare = subject.logits(batch), tiny.bare(name, module, batch)
        assert (
            torch.equal(ours, bare) if name == "policy" else torch.equal(ours[:, 1:], bare[:, :-1])
        )

    with tiny.untouched(module), torch.no_grad():
        check()
        for plan in all_plans(subject):
            with subject.intervened(plan):
                subject.logits(batch)
        interp.record(subject, batch, subject.sites)
        check()


def test_hooks_that_change_nothing_change_no_bit(name: str, subject: interp.Subject):
    """`tapped` on every site, and `captured` on every site that is not a sum, leave the logits as
    they were."""
    batch = tiny.batch(name)
    whole = tuple(site for site in subject.sites if subject.anatomy.place(site).base is None)
    with torch.no_grad(), tapped(subject, {site: lambda *_: None for site in subject.sites}):
        assert torch.equal(subject.logits(batch), tiny.subject(name).logits(batch))
    with torch.no_grad():
        clean = subject.logits(batch)
    with interp.captured(subject, whole):
        assert torch.equal(subject.logits(batch), clean)


def test_hooks_never_write_into_the_models_tensors(name: str, subject: interp.Subject):
    """Every module's output, taken by a foreign hook that runs before ours, still has its first
    version and its first bits."""
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, __: object, output: object) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        if isinstance(tensor, Tensor):
            kept.append((tensor, tensor.clone()))

    handles = [m.register_forward_hook(keep) for m in subject.module.modules()]
    with torch.no_grad(), contextlib.ExitStack() as stack:
        stack.callback(lambda: [h.remove() for h in handles])
        for plan in all_plans(subject):
            stack.enter_context(subject.intervened(plan))
        subject.logits(tiny.batch(name))
    assert kept
    assert all(torch.equal(tensor, copy) for tensor, copy in kept)


def test_contexts_nest_and_reenter(llama: interp.Subject):
    batch, first, last = (
        tiny.batch("llama"),
        zero(llama),
        interp.Scale(llama.anatomy.units("final"), factor=2.0),
    )
    with tiny.untouched(llama.module), torch.no_grad():
        with llama.intervened(first, last):
            both = llama.logits(batch)
        with llama.intervened(first):
            alone = llama.logits(batch)
            with llama.intervened(last):
                assert torch.equal(llama.logits(batch), both)
                with llama.intervened(first):
                    assert torch.equal(llama.logits(batch), both)
            assert torch.equal(llama.logits(batch), alone)


def test_recording_inside_sees_what_interventions_left(llama: interp.Subject):
    site = llama.anatomy.expand("neurons")[1]
    with llama.intervened(interp.Zero(tiny.units(llama, site, [3, 5]))):
        means = interp.record(llama, tiny.batch("llama"), site, reduce="mean_abs")[site]
    assert [unit for unit, mean in enumerate(means) if mean == 0] == [3, 5]


class _BoomError(Exception):
    pass


def in_a_visit(subject: interp.Subject) -> None:
    def boom(*_: object) -> None:
        raise _BoomError

    with tapped(subject, {subject.sites[3]: boom}):
        subject.logits(tiny.batch("llama"))


def in_the_body(subject: interp.Subject) -> None:
    with subject.intervened(zero(subject)), interp.captured(subject, subject.sites[:3]):
        subject.logits(tiny.batch("llama"))
        raise _BoomError


def in_generation(subject: interp.Subject) -> None:
    calls: list[int] = []

    def boom(*_: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise _BoomError

    with subject.intervened(zero(subject)), foreign(subject, boom):
        subject.generate(tiny.batch("llama").tokens, 9)


def in_recording(subject: interp.Subject) -> None:
    def batches():
        yield tiny.batch("llama")
        raise _BoomError

    interp.record(subject, batches(), "neurons")


def in_a_measure(subject: interp.Subject) -> None:
    def boom(*_: object) -> None:
        raise _BoomError

    interp.sweep(subject, tiny.batch("llama"), [zero(subject)], boom)


def by_a_keyboard_interrupt(subject: interp.Subject) -> None:
    def boom(*_: object) -> None:
        raise KeyboardInterrupt

    with subject.intervened(zero(subject)), foreign(subject, boom):
        subject.logits(tiny.batch("llama"))


def by_a_real_signal(subject: interp.Subject) -> None:
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell starts background jobs with this signal ignored
    try:
        with (
            subject.intervened(zero(subject)),
            foreign(subject, lambda *_: signal.raise_signal(signal.SIGINT)),
        ):
            subject.generate(tiny.batch("llama").tokens, 3)
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def foreign(subject: interp.Subject, hook: Callable[..., None]):
    handle = subject.module.get_submodule("model.layers.1.mlp").register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "fails",
    [
        in_a_visit,
        in_the_body,
        in_generation,
        in_recording,
        in_a_measure,
        by_a_keyboard_interrupt,
        by_a_real_signal,
    ],
    ids=lambda f: f.__name__,
)
def test_whatever_fails_leaves_no_trace_and_foreign_hooks_alone(
    llama: interp.Subject, fails: Callable[[interp.Subject], None]
):
    fired: list[int] = []
    with tiny.untouched(llama.module), foreign(llama, lambda *_: fired.append(1)):
        with pytest.raises((_BoomError, KeyboardInterrupt)):
            fails(llama)
        fired.clear()
        llama.logits(tiny.batch("llama"))
        assert fired == [1]


@pytest.mark.parametrize(
    ("narrow", "run"),
    [
        ({}, lambda subject: None),
        ({"positions": (50,)}, lambda subject: subject.logits(tiny.batch("llama"))),
        ({"when": "decode"}, lambda subject: subject.generate(tiny.batch("llama").tokens, 1)),
        (
            {"when": "prompt", "positions": (8,)},
            lambda subject: subject.logits(tiny.batch("llama", prompt=8)),
        ),
    ],
)
def test_an_intervention_that_never_applies_is_an_error(
    llama: interp.Subject, narrow: dict[str, object], run: Callable[[interp.Subject], object]
):
    with (
        tiny.untouched(llama.module),
        pytest.raises(interp.HookError, match="never"),
        llama.intervened(zero(llama, **narrow)),
    ):
        run(llama)


def test_one_idle_edit_among_several_is_named(llama: interp.Subject):
    message = r"1 of 2 edits never applied: blocks\.2\.mlp_out, positions 50, when='all'"
    with (
        pytest.raises(interp.HookError, match=message),
        llama.intervened(zero(llama), zero(llama, positions=(50,))),
    ):
        llama.logits(tiny.batch("llama"))


def test_an_exception_is_not_hidden_by_the_hook_that_never_fired(llama: interp.Subject):
    with pytest.raises(_BoomError), llama.intervened(zero(llama)):
        raise _BoomError


def test_captured_gradients_equal_finite_differences(name: str):
    subject, batch = (
        tiny.subject(name, torch.float64),
        tiny.batch(name, rows=1, length=5, dtype=torch.float64),
    )
    sites = subject.anatomy.expand(
        [f"*blocks.1.{p}" for p in ("resid_pre", "heads", "attn_out", "mlp_out", "resid_post")]
    )
    with interp.captured(subject, sites) as values:
        loss = subject.losses(batch).mean()
    gradients = torch.autograd.grad(loss, [values[s] for s in sites])
    for site, gradient in zip(sites, gradients, strict=True):
        direction = torch.randn(
            gradient.shape[-1], generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )

        def moved(step: float, site: interp.Site = site, direction: Tensor = direction) -> float:
            place = subject.anatomy.place(site)
            with (
                torch.no_grad(),
                tiny.by_hand(subject.module, place, lambda v: v + step * direction),
            ):
                return float(subject.losses(batch).double().mean())

        change = (moved(1e-3) - moved(-1e-3)) / 2e-3
        assert float((gradient * direction).sum()) == pytest.approx(change, rel=2e-2, abs=2e-4)


def test_captured_values_are_the_models_own(name: str, subject: interp.Subject):
    batch = tiny.batch(name)
    with interp.captured(subject, subject.sites) as values:
        subject.logits(batch)
    for site in subject.sites:
        torch.testing.assert_close(
            values[site].detach().reshape(2, -1),
            tiny.values_by_hand(subject, batch, site).reshape(2, -1),
            rtol=0,
            atol=1e-5,
        )


def test_captured_needs_a_forward(llama: interp.Subject):
    with (
        pytest.raises(interp.HookError, match="never fired"),
        interp.captured(llama, llama.sites[:1]),
    ):
        pass


@pytest.mark.parametrize(
    "tree",
    [
        {0: torch.ones(2), "kept": 5},
        OrderedDict({(1, 2): torch.ones(2)}),
        defaultdict(list, {"a": torch.ones(2), 3: None}),
        UserDict({7: torch.ones(2)}),
        BaseModelOutput(last_hidden_state=torch.ones(2)),
    ],
)
def test_outputs_in_mappings_of_any_kind_are_changed_and_keep_their_type(tree: Any):
    before = dict(tree)
    changed = hooks._change_first_tensor([0, tree], lambda value: value + 1)[1]
    assert type(changed) is type(tree)
    assert changed.keys() == tree.keys()
    assert next(iter(changed.values())).tolist() == [2, 2]
    assert [changed[key] for key in list(tree)[1:]] == [tree[key] for key in list(tree)[1:]]
    assert all(tree[key] is value for key, value in before.items())


def test_a_head_that_sees_only_the_last_positions_is_refused_where_positions_matter():
    subject = tiny.subject("llama")
    batch = tiny.batch("llama", rows=2, length=9, prompt=4)
    head = subject.units("lm_head:out")
    at_one = interp.Zero(head, positions=(3,))
    with subject.intervened(at_one):
        assert (subject.logits(batch)[:, 4] == 0).all()  # position 3 predicts token 4
    for plan in (at_one, interp.Zero(head, when="prompt"), interp.Zero(head, when="decode")):
        with (
            pytest.raises(interp.HookError, match="sees 6 of the 9 positions of the blocks"),
            subject.intervened(plan),
        ):
            subject.target_logits(batch)
    with subject.intervened(interp.Zero(head)):
        assert (subject.target_logits(batch) == 0).all()
