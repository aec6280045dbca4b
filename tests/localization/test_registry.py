"""Laws of localize: methods by name, one clear error for what cannot be scored, no hook left
behind."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import memory
import numpy as np
import pytest
import tiny
import torch
from quick import NAMES, NEEDY, QUICK, RUNNING, UNIT_BY_UNIT

import interp
from interp.localization import localize, localize_each, method, methods, registry, window_method
from interp.subject.batch import Batches

MEMORIZED, REFERENCE = (
    memory.frame(memory.random_tokens(3, 1)),
    memory.frame(memory.random_tokens(2, 2)),
)
CALLS = pytest.mark.parametrize("call", [localize, localize_each])


@pytest.fixture
def table(monkeypatch):
    """A table of methods of a test's own."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


def test_these_are_the_methods():
    assert set(NAMES) <= set(methods())
    assert methods() == sorted(methods())


def test_a_decorated_function_is_a_method(llama, table):
    seen: dict[str, object] = {}

    @method("mine")
    def _(subject, memorized, reference, sites, **options):
        seen.update(options, reference=reference)
        return {site: np.arange(width) for site, width in subject.anatomy.widths(sites).items()}

    scores = localize(llama, MEMORIZED, method="mine", site="heads", scale=3)
    assert "mine" in methods()
    assert seen == {"scale": 3, "reference": None}
    assert (scores.method, scores.about) == ("mine", {"model": llama.fingerprint, "scale": 3})
    assert scores.widths == llama.anatomy.widths("heads")
    with pytest.raises(ValueError, match="mine scores a set of windows as a whole: use localize"):
        localize_each(llama, MEMORIZED, method="mine")


@pytest.mark.parametrize(("size", "parts"), [(None, [2, 1]), (1, [1, 1, 1]), (3, [3])])
def test_a_function_of_one_batch_is_a_method_for_windows_and_sets(llama, table, size, parts):
    seen: list[int] = []

    @window_method("mine", batch_size=2)
    def _(subject, batch, sites, *, scale=1):
        seen.append(len(batch))
        first = scale * batch.tokens[:, :1].double()
        return {
            site: first * torch.arange(1, width + 1)
            for site, width in subject.anatomy.widths(sites).items()
        }

    options = {"scale": 3} if size is None else {"scale": 3, "batch_size": size}
    ours, theirs = (
        np.array([tokens[0] for tokens in frame["tokens"]]) for frame in (MEMORIZED, REFERENCE)
    )
    (site,) = llama.anatomy.expand("blocks.1.heads")
    units = np.arange(1, 5)
    each = localize_each(llama, MEMORIZED, method="mine", site=site, **options)
    assert seen == parts
    np.testing.assert_allclose([scores[site] for scores in each], 3 * ours[:, None] * units)
    against = localize_each(llama, MEMORIZED, REFERENCE, "mine", site, **options)
    np.testing.assert_allclose(
        [scores[site] for scores in against], 3 * (ours[:, None] - theirs.mean()) * units
    )
    np.testing.assert_allclose(
        localize(llama, MEMORIZED, None, "mine", site, **options)[site], 3 * ours.mean() * units
    )
    np.testing.assert_allclose(
        localize(llama, MEMORIZED, REFERENCE, "mine", site, **options)[site],
        3 * (ours.mean() - theirs.mean()) * units,
    )
    assert [scores.about["window"] for scores in each] == [0, 1, 2]
    assert each[0].about["scale"] == 3
    with pytest.raises(
        ValueError, match="mine has no option 'scales': it takes batch_size, scale; nearest: scale"
    ):
        localize(llama, MEMORIZED, method="mine", scales=3)


def windows(name: str, rows: int = 2, seed: int = 1) -> interp.Batch:
    return tiny.batch(name, rows, prompt=4, seed=seed, padded=True)


def sets(name: str, method: str) -> tuple[interp.Batch, interp.Batch]:
    """Memorized and reference windows, one each for a method that pays for every unit of each."""
    rows = 1 if method in UNIT_BY_UNIT else 2
    return windows(name, rows), windows(name, rows, seed=2)


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "neox", "policy"])
def test_every_method_scores_every_unit_of_every_kind_of_model(name, method):
    subject = tiny.subject(name)
    neurons = subject.anatomy.expand("neurons")
    some = neurons[1:2] if method in UNIT_BY_UNIT else neurons
    check_scores(subject, *sets(name, method), method, [*some, "heads", "block_out"])


def test_blocks_are_what_each_block_adds(llama):
    for scores in (
        localize(llama, MEMORIZED, site="blocks"),
        *localize_each(llama, MEMORIZED, site="blocks"),
    ):
        assert scores.widths == llama.anatomy.widths("block_out")


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("site", ["blocks.1.neurons", ["heads", "blocks.2.mlp_out"]])
def test_one_site_or_a_list_of_them_is_scored_too(llama, method, site):
    check_scores(llama, MEMORIZED, REFERENCE, method, site)


def check_scores(
    subject: interp.Subject,
    memorized: Batches,
    reference: Batches,
    method: str,
    site: interp.sites.anatomy.Sites,
) -> None:
    options = QUICK.get(method, {})
    with tiny.untouched(subject.module):
        group = localize(subject, memorized, reference, method, site, **options)
        each = localize_each(
            subject, memorized, reference if method in NEEDY else None, method, site, **options
        )
    assert len(each) == len(memorized)
    widths = subject.anatomy.widths(site)
    assert all(scores.widths == widths and scores.method == method for scores in (group, *each))
    for point in {where.point for where in widths}:
        assert any(group[where].any() for where in widths if where.point == point)
    assert all(p.grad is None for p in subject.module.parameters())


@CALLS
def test_an_unknown_method_offers_the_nearest(llama, call):
    with pytest.raises(
        ValueError,
        match=r"expected one of .*gradient_x_activation, .*unitmem, .*; nearest: gradient_x_activation",
    ):
        call(llama, MEMORIZED, REFERENCE, method="gradient_x_activations")


@CALLS
@pytest.mark.parametrize("method", NAMES)
def test_an_unknown_site_offers_the_nearest(llama, call, method):
    with pytest.raises(interp.SiteError, match="nearest: "):
        call(llama, MEMORIZED, REFERENCE, method, "blocks.*.neuron")


@CALLS
@pytest.mark.parametrize("method", NAMES)
def test_an_unknown_option_offers_the_nearest(llama, call, method):
    close = {
        "neuron_flipping": "copie",
        "random": "seeds",
        "lowest": "batch_sizes",
        "smallest": "batch_sizes",
    }.get(method, "batch_sizes")
    with (
        tiny.untouched(llama.module),
        pytest.raises(
            ValueError, match=f"has no option '{close}': it takes .*nearest: {close[:-1]}"
        ),
    ):
        call(llama, MEMORIZED, REFERENCE, method, **{close: 1})


@CALLS
@pytest.mark.parametrize("method", NAMES)
def test_no_site_gets_one_clear_error(llama, call, method):
    with pytest.raises(ValueError, match="no site to score"):
        call(llama, MEMORIZED, REFERENCE, method=method, site=[])


@CALLS
@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("which", ["memorized", "reference"])
def test_an_empty_set_is_named(llama, call, method, which):
    sets = {"memorized": MEMORIZED, "reference": REFERENCE} | {which: MEMORIZED[:0]}
    with pytest.raises(ValueError, match=f"the {which} set is empty: expected at least one window"):
        call(llama, method=method, **sets)


@CALLS
@pytest.mark.parametrize("method", RUNNING)
def test_an_empty_stream_gets_a_clear_error_too(llama, call, method):
    with tiny.untouched(llama.module), pytest.raises(ValueError, match=r"empty|no batches|nothing"):
        call(llama, iter(()), REFERENCE, method=method, **QUICK.get(method, {}))


@CALLS
@pytest.mark.parametrize("method", NEEDY)
def test_methods_that_compare_ask_for_a_reference(llama, call, method):
    with (
        tiny.untouched(llama.module),
        pytest.raises(
            ValueError, match=f"{method} compares with other text: expected reference windows"
        ),
    ):
        call(llama, MEMORIZED, method=method)


@contextmanager
def hooked(module: torch.nn.Module, hook: Any):
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@CALLS
@pytest.mark.parametrize("method", RUNNING)
def test_activations_that_are_not_finite_are_refused_and_leave_no_hook(llama, call, method):
    with (
        hooked(
            llama.module.model.layers[1], lambda _, __, output: torch.tensor(float("nan")) * output
        ),
        tiny.untouched(llama.module),
        pytest.raises(ValueError, match=r"logits that predict .* are nan"),
    ):
        call(llama, MEMORIZED, REFERENCE, method, "heads", **QUICK.get(method, {}))


@pytest.mark.parametrize("method", RUNNING)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_model_that_fails_is_left_as_it_was(llama, method, after):
    """In the first forward, or in a later one."""
    calls: list[int] = []

    def fail(*_: object) -> None:
        calls.append(1)
        if len(calls) > after:
            raise RuntimeError("out of order")

    failing = pytest.raises(RuntimeError, match="out of order")
    with hooked(llama.module.model.layers[2].mlp, fail), tiny.untouched(llama.module), failing:
        for _ in range(4):
            localize(llama, MEMORIZED, REFERENCE, method, "heads", **QUICK.get(method, {}))
    assert all(p.grad is None for p in llama.module.parameters())


class Skipping(tiny.Language):
    """A decoder whose last block can be left out."""

    skip = False

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.trunk[: len(self.trunk) - self.skip]:
            x = block(x)
        return self.head(self.norm(x))


@pytest.mark.parametrize("method", RUNNING)
@pytest.mark.parametrize(
    "site", ["blocks.2.neurons", ["heads", "blocks.1.neurons"], "trunk.2.between:in"]
)
def test_a_site_that_no_forward_reaches_is_named(method, site):
    module = tiny.seeded(
        lambda: Skipping(*(tiny.Block(32, tiny.HEADS, causal=True) for _ in range(3)))
    )
    subject = interp.load(module)
    module.skip = True
    with (
        tiny.untouched(module),
        pytest.raises(interp.HookError, match=r"never (fired|applied): (blocks\.2|trunk\.2)"),
    ):
        localize(
            subject,
            windows("language"),
            windows("language", seed=2),
            method,
            site,
            **QUICK.get(method, {}),
        )


RAW = {
    "attribution_patching": {"points": 2},
    "integrated_gradients": {"positions": "predicting"},
    "lowest": {"of": "activation"},
    "smallest": {"of": "activation"},
}


@pytest.mark.parametrize("method", NAMES)
def test_a_raw_module_path_of_a_model_of_several_stacks_is_scored_too(method):
    subject = tiny.subject("policy")
    for path, width in (("decoder.1.between:in", 32), ("vision.1.between:in", 16)):
        scores = localize(
            subject,
            *sets("policy", method),
            method,
            path,
            **(QUICK.get(method, {}) | RAW.get(method, {})),
        )
        assert len(scores) == width


def test_more_units_than_there_are_cannot_be_taken(llama):
    scores = localize(llama, MEMORIZED, REFERENCE)
    for take in (scores.top, scores.lowest, scores.smallest):
        assert len(take(len(scores))) == len(take(1.0)) == len(scores)
        for amount in (len(scores) + 1, 1.5, 0, -3):
            with pytest.raises(
                ValueError,
                match=f"cannot take {amount} of {len(scores)} units: give a count from 1 to {len(scores)}",
            ):
                take(amount)
    with pytest.raises(ValueError, match=r"cannot take 1\.5 of 48 units"):
        scores.top_per_site(1.5)
    with pytest.raises(ValueError, match="cannot take 49 of 48 units"):
        scores.top_per_site(49)
