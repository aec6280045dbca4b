"""Laws of interp.engine.recording and its reducers: numpy on the raw activations, whatever the
batches, with padding left out."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp.engine.recording import reduce_values
from interp.engine.reducers import REDUCERS, TopK

SITES = ["blocks.0.heads", "blocks.1.neurons", "blocks.1.resid_mid", "embed"]


def test_raw_recordings_equal_plain_hooks(name: str, subject: interp.Subject, tmp_path: Path):
    batch = tiny.batch(name, rows=3, seed=6)
    recording = interp.record(
        subject, batch, subject.sites, reduce="raw", folder=tmp_path, batch_size=2
    )
    for site in subject.sites:
        assert isinstance(recording[site], np.memmap)
        by_hand = torch.cat([tiny.values_by_hand(subject, part, site) for part in batch.split(2)])
        assert np.array_equal(recording[site].reshape(by_hand.shape), by_hand.numpy())


def lengths_mask(lengths: list[int], width: int) -> torch.Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def expected(raw: np.ndarray, mask: np.ndarray, reduce: str) -> dict[str, np.ndarray]:
    """What each reducer should keep, from all activations at once: `raw` is [examples, position,
    width]."""
    flat = raw[mask].astype(np.float64)
    means = np.stack([r[m].astype(np.float64).mean(0) for r, m in zip(raw, mask, strict=True)])
    size = np.stack(
        [np.abs(r[m].astype(np.float64)).mean(0) for r, m in zip(raw, mask, strict=True)]
    )
    order = np.argsort(-means, axis=0, kind="stable")[: TopK.k]
    count = np.full(raw.shape[-1], len(flat))
    return {
        "mean": {"mean": flat.mean(0)},
        "mean_abs": {"mean_abs": np.abs(flat).mean(0)},
        "moments": {"mean": flat.mean(0), "variance": flat.var(0), "count": count},
        "max": {"max": flat.max(0)},
        "top": {"top": np.take_along_axis(means, order, 0), "example": order},
        "selectivity": {
            "sum": size.sum(0),
            "max": size.max(0),
            "argmax": size.argmax(0),
            "count": np.full_like(count, len(raw)),
        },
        "rows": {"rows": means},
        "rows_abs": {"rows_abs": size},
    }[reduce]


@pytest.mark.parametrize("reduce", REDUCERS)
@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=7),
    size=st.integers(1, 4),
    seed=st.integers(0, 999),
)
def test_reducers_equal_numpy_on_raw_activations(
    tmp_path_factory: pytest.TempPathFactory, reduce: str, lengths: list[int], size: int, seed: int
):
    subject = tiny.subject("llama", torch.float64)
    tokens = tiny.batch("llama", rows=len(lengths), length=8, seed=seed).tokens
    mask = lengths_mask(lengths, 8)
    batch = interp.Batch(tokens, mask=mask)
    got = interp.record(subject, batch, SITES, reduce=reduce, batch_size=size)
    raw = interp.record(subject, batch, SITES, reduce="raw", folder=tmp_path_factory.mktemp("raw"))
    for site in got:
        wanted = expected(raw[site].reshape(*raw[site].shape[:2], -1), mask.numpy(), reduce)
        assert list(got.parts[site]) == list(wanted)
        for key, array in wanted.items():
            flat = got.parts[site][key].reshape(array.shape)
            np.testing.assert_allclose(flat, array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduce", REDUCERS)
def test_what_stands_on_padding_does_not_matter(llama: interp.Subject, reduce: str):
    batch = tiny.batch("llama", rows=3, padded=True)
    assert batch.mask is not None
    other = interp.Batch(torch.where(batch.mask, batch.tokens, 1), mask=batch.mask)
    for one, two in zip(
        *(interp.record(llama, b, SITES, reduce=reduce).parts.values() for b in (batch, other)),
        strict=True,
    ):
        assert all(np.array_equal(one[key], two[key]) for key in one)


def test_activations_made_elsewhere_do_not_count_on_padding(llama: interp.Subject):
    batch, embed = tiny.batch("llama", rows=3, padded=True), interp.Site("embed")
    value = torch.where(batch.mask, 1.0, 5.0)[..., None].expand(-1, -1, 32)
    recording = reduce_values(llama.anatomy, [(batch, {embed: value})], "embed")
    assert np.array_equal(recording[embed], np.ones(32))


def test_a_row_without_tokens_has_no_mean_and_is_refused(llama: interp.Subject):
    """A mean of nothing would be 0, as if every unit had been silent."""
    batch = tiny.batch("llama", rows=3)
    mask = torch.ones_like(batch.tokens, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(ValueError, match="1 of 3 rows are padding alone: expected at least one"):
        interp.record(llama, interp.Batch(batch.tokens, mask=mask), SITES, reduce="mean")


def test_a_stream_of_batches_of_any_length_is_one_source(llama: interp.Subject):
    parts = [tiny.batch("llama", rows=1, length=n, seed=n) for n in (3, 9, 5)]
    whole = interp.Batch.pad([p.tokens[0].tolist() for p in parts])
    streamed, padded = (
        interp.record(llama, source, "blocks.2.neurons", reduce="mean")
        for source in (iter(parts), whole)
    )
    np.testing.assert_allclose(
        streamed["blocks.2.neurons"], padded["blocks.2.neurons"], rtol=0, atol=1e-6
    )


def test_heads_have_their_own_axis(llama: interp.Subject):
    batch = tiny.batch("llama")
    assert interp.record(llama, batch, "blocks.0.heads", reduce="mean")["blocks.0.heads"].shape == (
        tiny.HEADS,
        8,
    )
    assert interp.record(llama, batch, "blocks.0.heads", reduce="rows")["blocks.0.heads"].shape == (
        2,
        tiny.HEADS,
        8,
    )


@pytest.mark.parametrize("reduce", ["mean", "moments", "max", "selectivity"])
def test_frames_have_a_row_for_every_unit(llama: interp.Subject, reduce: str):
    recording = interp.record(llama, tiny.batch("llama"), ["neurons", "heads"], reduce=reduce)
    frame = recording.to_frame()
    assert frame.groupby("site")["unit"].nunique().to_dict() == {
        str(s): w for s, w in llama.anatomy.widths(["neurons", "heads"]).items()
    }
    assert set(frame.columns) == {"site", "block", "unit", *next(iter(recording.parts.values()))}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduce": "meen"}, "nearest: mean"),
        ({"reduce": "raw"}, "give folder="),
    ],
)
def test_unknown_reductions_are_refused(
    llama: interp.Subject, options: dict[str, str], message: str
):
    with pytest.raises(ValueError, match=message):
        interp.record(llama, tiny.batch("llama"), "neurons", **options)


def test_nothing_to_record_is_refused(llama: interp.Subject):
    with pytest.raises(ValueError, match="no batches"):
        interp.record(llama, [], "neurons")


def test_raw_recordings_need_one_length(llama: interp.Subject, tmp_path: Path):
    with pytest.raises(ValueError, match="one length; got 5 after 9"):
        interp.record(
            llama,
            [tiny.batch("llama"), tiny.batch("llama", length=5)],
            "embed",
            reduce="raw",
            folder=tmp_path,
        )


@pytest.mark.parametrize("reduce", ["rows", "top"])
def test_what_has_no_one_number_a_unit_has_no_frame(llama: interp.Subject, reduce: str):
    with pytest.raises(ValueError, match="does not hold one number per unit"):
        interp.record(llama, tiny.batch("llama"), "neurons", reduce=reduce).to_frame()


def test_recording_switches_dropout_off_and_every_mode_back():
    module = tiny.model("gpt2").train()
    module.transformer.h[0].eval()
    subject = tiny.wrapped(module)
    with tiny.untouched(module):
        one, two = (
            interp.record(subject, tiny.batch("gpt2"), "neurons")["blocks.2.neurons"]
            for _ in range(2)
        )
    assert np.array_equal(one, two)


@pytest.mark.parametrize("reduce", [name for name in REDUCERS if name != "raw"])
@pytest.mark.parametrize("on_padding", [torch.inf, -torch.inf, torch.nan])
def test_what_stands_on_padding_reduces_to_nothing(reduce: str, on_padding: float):
    """Positions that only padding sees may overflow, in half precision for one."""
    value = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = lengths_mask([5, 2, 3], 5)
    found: list[dict[str, np.ndarray]] = []
    for elsewhere in (0.0, on_padding):
        reducer = REDUCERS[reduce]()
        reducer.update(value.masked_fill(~mask[..., None], elsewhere), mask)
        reducer.end_batch()
        found.append(dict(reducer.result()))
    for key, array in found[0].items():
        np.testing.assert_array_equal(found[1][key], array)
