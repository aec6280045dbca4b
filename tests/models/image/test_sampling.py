"""Laws of generation and sampling of images: on the KV cache as by whole forwards, drawn from the
softmax, guided as by hand."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

import interp
from interp.memorization.teacher_forcing import teacher_force
from interp.models.image.sampling import cosine_guidance, linear_guidance, sample, truncate
from interp.subject.decoding import Decoder

LABEL = torch.tensor([0, 3, 1, 3, 4, 2, 0])
PROMPTS = [("var", 0), ("var", 1), ("var", 5), ("rar", 0), ("rar", 1), ("rar", 7), ("rar", 14)]
PLANS = ("nothing", "all", "decode")


@pytest.fixture(params=tiny.IMAGE)
def subject(request: pytest.FixtureRequest) -> interp.Subject:
    return tiny.subject(request.param, torch.float64)


def zeroed(subject: interp.Subject) -> list[interp.Units]:
    return [
        tiny.units(subject, site, list(range(0, 48, 2)))
        for site in subject.anatomy.expand("neurons")
    ]


def plan(subject: interp.Subject, when: str) -> list[interp.Zero]:
    return [] if when == "nothing" else [interp.Zero(units, when=when) for units in zeroed(subject)]  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def greedy_by_hand(subject: interp.Subject, batch: interp.Batch, when: str) -> Tensor:
    """Whole forwards of the bare module, plain hooks, no cache: group after group, what stands
    highest."""
    module, tokens = subject.module, batch.tokens[:, : batch.prompt]
    lead = 0 if type(module).__name__ == "VAR" else 2

    def change(value: Tensor) -> Tensor:
        value = value.clone()
        value[:, (lead + batch.prompt if when == "decode" else 0) :, ::2] = 0
        return value

    with ExitStack() as stack:
        for units in [] if when == "nothing" else zeroed(subject):
            stack.enter_context(tiny.by_hand(module, subject.anatomy.place(units.sites[0]), change))
        for start, stop in module.all_groups:
            if start >= batch.prompt:
                logits = module(tokens, batch.conditioning["label"])
                assert logits.shape[1] == stop
                tokens = torch.cat([tokens, logits[:, start:].argmax(-1)], dim=1)
    return tokens[:, batch.prompt :]


@pytest.mark.parametrize("when", PLANS)
@pytest.mark.parametrize(("name", "prompt"), PROMPTS)
def test_generated_tokens_are_those_of_whole_forwards(name, prompt, when):
    subject, batch = (
        tiny.subject(name, torch.float64),
        tiny.image_batch(name, rows=5, seed=prompt, prompt=prompt),
    )
    with tiny.untouched(subject.module), subject.intervened(*plan(subject, when)):
        said = subject.generate(batch)
    assert said.tolist() == greedy_by_hand(subject, batch, when).tolist()


def test_interventions_change_what_is_said(subject):
    """Else the law above would hold of plans that do nothing."""
    batch = tiny.image_batch(subject.name.lower(), rows=5, prompt=1)
    nothing, everywhere, decoding = (
        greedy_by_hand(subject, batch, when).tolist() for when in PLANS
    )
    assert nothing != everywhere != decoding != nothing


def corrupted(truth: Tensor, seed: int) -> Tensor:
    """Every second row with one to three of its tokens replaced by others."""
    truth, rng = truth.clone(), np.random.default_rng(seed)
    for row in range(1, len(truth), 2):
        for at in rng.choice(
            truth.shape[1], min(int(rng.integers(1, 4)), truth.shape[1]), replace=False
        ):
            truth[row, at] = (
                truth[row, at] + int(rng.integers(1, tiny.VOCABULARY))
            ) % tiny.VOCABULARY
    return truth


@pytest.mark.parametrize("when", PLANS)
@pytest.mark.parametrize(("name", "prompt"), PROMPTS)
def test_verdicts_are_those_of_generate(name, prompt, when):
    subject, batch = (
        tiny.subject(name, torch.float64),
        tiny.image_batch(name, rows=8, seed=prompt, prompt=prompt),
    )
    with subject.intervened(*plan(subject, when)):
        said = subject.generate(batch)
        truth = corrupted(said, prompt)
        tokens = torch.cat([batch.tokens[:, :prompt], truth], dim=1)
        told = interp.Batch(tokens, prompt, groups=batch.groups, conditioning=batch.conditioning)
        forced, losses = teacher_force(subject, told), subject.losses(told)
        teacher_forced = subject.target_logits(told).argmax(-1)
    assert forced.decoded.all()
    assert forced.continuation.tolist() == said.tolist()
    assert (
        forced.hits.all(1).tolist()
        == (said == truth).all(1).tolist()
        == [row % 2 == 0 for row in range(8)]
    )
    assert forced.hits.tolist() == (teacher_forced == truth).tolist()
    np.testing.assert_allclose(forced.log_p, -losses.sum(1).detach().double(), rtol=1e-6)


@pytest.mark.parametrize("name", tiny.IMAGE)
def test_a_model_goes_on_with_what_it_said(name):
    """From any whole groups of its own image it says the rest of it."""
    subject, batch = tiny.subject(name, torch.float64), tiny.image_batch(name, rows=5)
    said = subject.generate(batch)
    for start, _ in subject.module.all_groups[1:]:
        rest = subject.generate(interp.Batch(said, start, conditioning=batch.conditioning))
        assert torch.equal(rest, said[:, start:])
    assert (
        subject.generate(batch.until(subject.module.all_groups[1][1])).tolist()
        == said[:, : subject.module.all_groups[1][1]].tolist()
    )


@pytest.mark.parametrize("name", tiny.IMAGE)
@torch.no_grad()
def test_crop_and_select_forget_as_if_never_read(name):
    subject, batch, keep = (
        tiny.subject(name, torch.float64),
        tiny.image_batch(name, rows=3),
        torch.tensor([2, 0]),
    )
    draft, label = tiny.image_batch(name, rows=3, seed=9).tokens, batch.conditioning["label"]
    groups = subject.module.all_groups
    wavering, straight = (
        Decoder(subject, 3, {"label": label}),
        Decoder(subject, 2, {"label": label[keep]}),
    )
    wavering.feed(batch.tokens[:, : groups[0][1]])
    wavering.feed(draft[:, groups[0][1] : groups[1][1]])
    wavering.crop(groups[0][1])
    wavering.select(keep)
    straight.feed(batch.tokens[keep, : groups[0][1]])
    following = batch.tokens[keep, groups[1][0] : groups[1][1]]
    torch.testing.assert_close(
        wavering.feed(following), straight.feed(following), rtol=0, atol=1e-12
    )
    assert torch.equal(wavering.read, straight.read)


# -- sampling
# --------------------------------------------------------------------------------------------------------------------------


def test_no_temperature_is_greedy_and_so_is_the_first_of_one(subject):
    batch = interp.Batch(
        torch.zeros(7, subject.module.length, dtype=torch.long), 0, conditioning={"label": LABEL}
    )
    greedy = subject.generate(batch)
    with tiny.untouched(subject.module):
        assert torch.equal(sample(subject, LABEL, temperature=0), greedy)
    assert torch.equal(sample(subject, LABEL, top_k=1), greedy)
    assert torch.equal(sample(subject, LABEL, top_p=1e-6), greedy)
    assert not torch.equal(sample(subject, LABEL), greedy)


@pytest.mark.parametrize("size", [1, 3, 7, 64])
def test_the_size_of_a_forward_changes_no_draw(subject, size):
    state = torch.get_rng_state()
    settings_ = {"guidance": linear_guidance(1.5), "top_k": 9, "top_p": 0.9, "seed": 4}
    assert torch.equal(
        sample(subject, LABEL, **settings_, batch_size=size), sample(subject, LABEL, **settings_)
    )
    assert not torch.equal(
        sample(subject, LABEL, **settings_), sample(subject, LABEL, **{**settings_, "seed": 5})
    )
    assert torch.equal(state, torch.get_rng_state())


def test_guidance_of_no_weight_is_none(subject):
    assert torch.equal(sample(subject, LABEL, guidance=lambda _: 0.0), sample(subject, LABEL))
    assert not torch.equal(sample(subject, LABEL, guidance=lambda _: 3.0), sample(subject, LABEL))


@torch.no_grad()
def test_guided_images_are_those_by_hand(subject):
    """Greedy, group after group by whole forwards: logits with the class, moved away from those
    without."""
    module, seen = subject.module, []

    def guidance(progress: float) -> float:
        seen.append(progress)
        return 0.5 + 4 * progress

    found = sample(subject, LABEL, guidance=guidance, temperature=0)
    tokens = torch.empty(7, 0, dtype=torch.long)
    for group, (start, _) in enumerate(module.all_groups):
        progress = group / 2 if len(module.all_groups) == 3 else group / 16
        with_class, without = (
            module(tokens, label)[:, start:]
            for label in (LABEL, torch.full_like(LABEL, tiny.CLASSES))
        )
        weight = 0.5 + 4 * progress
        tokens = torch.cat(
            [tokens, ((1 + weight) * with_class - weight * without).argmax(-1)], dim=1
        )
        assert seen[group] == pytest.approx(progress)
    assert len(seen) == len(module.all_groups)
    assert torch.equal(found, tokens)


def test_schedules_by_hand():
    """VAR: t = cfg * s / 9; RAR: s = 1 + (g - 1) * (1 - cos(pi * (step / 256)^pow)) / 2, the weight
    without the 1."""
    assert [linear_guidance(1.5)(s / 9) for s in (0, 3, 9)] == pytest.approx([0, 0.5, 1.5])
    assert [cosine_guidance(8.0, 1.2)(p) for p in (0.0, 1.0)] == pytest.approx([0, 7])
    assert cosine_guidance(5.0, 2.0)(0.5**0.5) == pytest.approx(2)
    assert cosine_guidance(5.0, 1.0)(1 / 3) == pytest.approx(1)


@pytest.mark.parametrize(("name", "progress"), [("var", [0, 0.5, 1]), ("rar", [0, 0.5, 15 / 16])])
def test_progress_is_that_of_the_papers(name, progress):
    module = tiny.subject(name).module
    groups = (0, len(module.all_groups) // 2, len(module.all_groups) - 1)
    assert [module.progress(group) for group in groups] == pytest.approx(progress)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (1.3, 20, 1.0), (1.0, 0, 0.7), (2.0, 30, 0.8)],
)
@torch.no_grad()
def test_draws_follow_the_softmax(subject, temperature, top_k, top_p):
    """The first token of many images of one class, against its distribution worked out in numpy."""
    draws = 3000
    logits = (
        subject.module(torch.empty(1, 0, dtype=torch.long), LABEL[1:2])[0, 0].numpy() / temperature
    )
    p = np.exp(logits - logits.max())
    order = np.argsort(-p)
    p[order[top_k or len(p) :]] = 0
    p /= p.sum()
    kept = order[: int((np.cumsum(p[order]) - p[order] < top_p).sum())]
    p = np.where(np.isin(np.arange(len(p)), kept), p, 0) / p[kept].sum()
    found = sample(
        first_step(subject),
        LABEL[1:2].expand(draws),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        batch_size=draws,
    )
    counts = np.bincount(found[:, 0], minlength=len(p))
    assert counts[p == 0].sum() == 0
    assert stats.chisquare(counts[p > 0], draws * p[p > 0]).pvalue > 1e-3


def first_step(subject: interp.Subject) -> interp.Subject:
    """The same model, as if an image ended with its first group."""
    import copy

    module = copy.copy(subject.module)
    module.all_groups = module.all_groups[:1]
    return interp.Subject(module, subject.anatomy, subject.forward)


def test_draws_of_neighbours_are_independent(subject):
    """The noise of an image and of a token is its own: equal classes give other images, and groups
    are not alike."""
    found = sample(subject, torch.zeros(40, dtype=torch.long), temperature=50.0)
    assert len(set(map(tuple, found.tolist()))) == 40
    pairs = np.array([[np.mean(a == b) for a in found.T.numpy()] for b in found.T.numpy()])
    assert np.delete(pairs.ravel(), np.arange(0, pairs.size, len(pairs) + 1)).max() < 0.3


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-60, 60), min_size=2, max_size=9, unique=True),
    st.integers(0, 12),
    st.floats(0.05, 1),
)
def test_truncation_keeps_the_fewest_that_are_likely_enough(
    tenths: Sequence[int], top_k: int, top_p: float
):
    logits = torch.tensor(tenths, dtype=torch.float64) / 10
    kept = truncate(logits, top_k, top_p).isfinite()
    order = logits.argsort(descending=True)[: top_k or None]
    share = logits[order].softmax(0).cumsum(0)
    needed = int((share < top_p - 1e-12).sum()) + 1
    assert set(kept.nonzero()[:, 0].tolist()) == set(order[:needed].tolist())
    assert torch.equal(truncate(logits, top_k, top_p)[kept], logits[kept])


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"label": torch.zeros(1, 1)},
        {"label": torch.zeros(0)},
    ],
)
def test_settings_out_of_range_are_refused(subject, wrong):
    with pytest.raises(
        ValueError,
        match=r"expected temperature >= 0, top_k >= 0, 0 < top_p <= 1 and labels \[images\]; got",
    ):
        sample(subject, **{"label": LABEL, **wrong})


def test_unknown_classes_and_text_models_are_refused(subject):
    for label in (-1, tiny.CLASSES + 1):
        with pytest.raises(
            ValueError,
            match=rf"labels must be classes 0 to 4 \(5 for none\); got {min(label, 0)} to {max(label, 0)}",
        ):
            sample(subject, torch.tensor([0, label]))
    with pytest.raises(ValueError, match="is not an image model: expected a VAR or a RAR"):
        sample(tiny.subject("llama"), LABEL)


def test_samples_run_under_interventions(subject):
    clean = sample(subject, LABEL, temperature=0)
    with subject.intervened(*plan(subject, "all")):
        assert not torch.equal(sample(subject, LABEL, temperature=0), clean)
    assert torch.equal(sample(subject, LABEL, temperature=0), clean)
    assert subject.module.decode(clean).shape == (
        7,
        1,
        subject.module.tokenizer.side,
        subject.module.tokenizer.side,
    )
