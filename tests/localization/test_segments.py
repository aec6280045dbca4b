"""Laws of parts and views: a recording of a part is a slice of the raw one, views are averaged,
UnitMem collapses as by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import interp
from interp.engine.recording import record_parts, segments
from interp.engine.reducers import REDUCERS, TopK
from interp.localization import localize, localize_each
from interp.localization.methods.unitmem import unitmem, unitmem_by_segment

SITES = ["blocks.0.heads", "blocks.1.neurons", "blocks.2.resid_mid"]
ROWS = 6
DEGENERATE = ("scale 1", "cls", "class")


@pytest.fixture(params=tiny.IMAGE)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def subject(name: str) -> interp.Subject:
    return tiny.subject(name, torch.float64)


@pytest.fixture
def raw(name: str, subject: interp.Subject, tmp_path: Path) -> dict[interp.Site, np.ndarray]:
    """Every activation of six images, [image, position, column], by plain hooks."""
    batch = tiny.image_batch(name, ROWS)
    return {
        site: tiny.values_by_hand(subject, batch, site).numpy()
        for site in subject.anatomy.expand(SITES)
    }


def selectivity(mu: np.ndarray) -> np.ndarray:
    """[examples, columns] to [columns], one column after the other."""
    scores = []
    for column in mu.T:
        top = column.argmax()
        largest, rest = column[top], np.delete(column, top).mean()
        scores.append((largest - rest) / (largest + rest))
    return np.array(scores)


def reduced(raw: np.ndarray, reduce: str, views: int) -> dict[str, np.ndarray]:
    """What each reducer should keep of [rows, position, column], `views` rows an example."""
    flat = raw.reshape(-1, raw.shape[-1])
    means, size = (a.mean(1).reshape(-1, views, raw.shape[-1]).mean(1) for a in (raw, np.abs(raw)))
    order, count = (
        np.argsort(-means, axis=0, kind="stable")[: TopK.k],
        np.full(raw.shape[-1], len(flat)),
    )
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
            "count": np.full_like(count, len(size)),
        },
        "rows": {"rows": means},
        "rows_abs": {"rows_abs": size},
    }[reduce]


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("reduce", REDUCERS)
def test_a_part_is_a_slice_and_views_are_averaged(name, subject, raw, reduce, views):
    parts = segments(subject, degenerate=True) | {
        "": None,
        "every second": lambda value: value[:, ::2],
    }
    with tiny.untouched(subject.module):
        found = record_parts(
            subject, tiny.image_batch(name, ROWS), SITES, parts, reduce, batch_size=3, views=views
        )
    slices = {s.name: slice(s.start, s.stop) for s in subject.module.segments} | {
        "": slice(None),
        "every second": slice(None, None, 2),
    }
    assert found.keys() == slices.keys()
    for part, at in slices.items():
        for site, values in raw.items():
            for key, wanted in reduced(values[:, at], reduce, views).items():
                if key in ("example", "argmax") and part in DEGENERATE:
                    continue  # images of one class are equal there, up to the last bit
                np.testing.assert_allclose(
                    found[part].parts[site][key].reshape(wanted.shape), wanted, rtol=1e-5, atol=1e-9
                )


def test_the_parts_of_a_model(name, subject):
    named = [s.name for s in subject.segments]
    assert named == (
        ["scale 1", "scale 2", "scale 3"]
        if name == "var"
        else ["cls", "class", "row 1", "row 2", "row 3", "row 4"]
    )
    assert list(segments(subject, degenerate=True)) == named
    assert list(segments(subject)) == (named[1:] if name == "var" else named[2:])
    assert segments(tiny.subject("llama")) == {"": None}
    assert tiny.subject("llama").segments == ()


def test_raw_parts_are_slices_too(tmp_path):
    subject, batch = tiny.subject("llama"), tiny.batch("llama", rows=4)
    whole = interp.record(subject, batch, SITES, "raw", folder=tmp_path, batch_size=3)
    parts = {"first": lambda value: value[:, :2], "rest": lambda value: value[:, 2:], "": None}
    found = record_parts(
        subject, batch, SITES, parts, "raw", folder=tmp_path / "parts", batch_size=3
    )
    for site, values in whole.items():
        np.testing.assert_array_equal(found["first"][site], values[:, :2])
        np.testing.assert_array_equal(found["rest"][site], values[:, 2:])
        np.testing.assert_array_equal(found[""][site], values)


def test_parts_of_padded_text_are_refused():
    subject, batch = tiny.subject("llama"), tiny.batch("llama", padded=True)
    with (
        tiny.untouched(subject.module),
        pytest.raises(ValueError, match="parts of padded batches cannot be recorded"),
    ):
        record_parts(subject, batch, SITES, {"first": lambda value: value[:, :1]})


@pytest.mark.parametrize(("rows", "views"), [(4, 3), (6, 4), (1, 2)])
def test_views_of_an_example_stand_together(rows, views):
    with pytest.raises(
        ValueError,
        match=rf"{rows % views or rows} rows are not a whole number of examples of {views} views",
    ):
        interp.record(
            tiny.subject("llama"),
            tiny.batch("llama", rows=rows),
            SITES[:1],
            "rows",
            batch_size=1,
            views=views,
        )


@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_the_size_of_a_forward_cuts_no_views(size):
    subject, batch = tiny.subject("llama", torch.float64), tiny.batch("llama", rows=12)
    one, other = (
        interp.record(subject, batch, SITES, "selectivity", batch_size=n, views=3)
        for n in (12, size)
    )
    for site in one:
        for key, value in one.parts[site].items():
            np.testing.assert_allclose(other.parts[site][key], value, rtol=1e-9)


def parts_of(subject: interp.Subject, values: np.ndarray, views: int) -> list[np.ndarray]:
    """mu of each example in each segment that is not degenerate."""
    cut = [
        np.abs(values[:, s.start : s.stop]).mean(1) for s in subject.segments if not s.degenerate
    ]
    return [mu.reshape(-1, views, mu.shape[-1]).mean(1) for mu in cut]


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("collapse", ["segments", "max", "macro", "tokens"])
def test_segments_collapse_as_by_hand(name, subject, raw, collapse, views):
    site = interp.Site("neurons", 1)
    mus = parts_of(subject, raw[site], views)
    alone = np.stack([selectivity(mu) for mu in mus])
    lengths = [s.stop - s.start for s in subject.segments if not s.degenerate]
    tokens, macro = (
        sum(n * mu for n, mu in zip(lengths, mus, strict=True)) / sum(lengths),
        np.mean(mus, axis=0),
    )
    scores = {
        "segments": alone.mean(0),
        "max": alone.max(0),
        "macro": selectivity(macro),
        "tokens": selectivity(tokens),
    }[collapse]
    best = alone.argmax(0)
    apart = np.stack([mu.argmax(0) for mu in mus])[best, np.arange(len(best))]
    examples = {"macro": macro.argmax(0), "tokens": tokens.argmax(0)}.get(collapse, apart)
    found, example = unitmem(
        subject, tiny.image_batch(name, ROWS), (site,), batch_size=2, views=views, collapse=collapse
    )[site]
    np.testing.assert_allclose(found, scores, rtol=1e-9)
    assert example.tolist() == examples.tolist()


def test_the_four_rules_differ_and_for_text_they_are_one(name, subject):
    site, rules = (interp.Site("neurons", 1),), ("segments", "max", "macro", "tokens")
    found = [
        unitmem(subject, tiny.image_batch(name, ROWS), site, collapse=rule)[site[0]][0]
        for rule in rules
    ]
    assert len({tuple(np.round(scores, 9)) for scores in found}) == 4
    llama = tiny.subject("llama", torch.float64)
    text = [
        unitmem(llama, tiny.batch("llama", rows=4, padded=True), site, collapse=rule)[site[0]][
            0
        ].tolist()
        for rule in rules
    ]
    assert text[1:] == text[:-1]
    with pytest.raises(
        ValueError,
        match="collapse='token': expected one of segments, max, macro, tokens; nearest: tokens",
    ):
        unitmem(subject, tiny.image_batch(name), site, collapse="token")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("degenerate", [True, False])
@pytest.mark.parametrize("views", [1, 3])
def test_the_map_of_segments_and_blocks(name, subject, raw, degenerate, views):
    batch, sites = tiny.image_batch(name, ROWS), subject.anatomy.expand("neurons")
    frame = unitmem_by_segment(subject, batch, sites, views=views, degenerate=degenerate)
    shown = [s for s in subject.segments if degenerate or not s.degenerate]
    assert list(frame.columns) == ["segment", "site", "block", "unit", "score", "example"]
    assert len(frame) == len(shown) * tiny.BLOCKS * 48
    assert list(dict.fromkeys(frame["segment"])) == [s.name for s in shown]
    values = np.abs(raw[interp.Site("neurons", 1)])
    for segment in shown:
        mu = values[:, segment.start : segment.stop].mean(1).reshape(-1, views, 48).mean(1)
        rows = frame[(frame["segment"] == segment.name) & (frame["block"] == 1)]
        assert rows["unit"].tolist() == list(range(48))
        np.testing.assert_allclose(rows["score"], selectivity(mu), rtol=1e-6, atol=1e-9)
        if not segment.degenerate:
            assert rows["example"].tolist() == mu.argmax(0).tolist()
    if views == 1:
        mean = (
            frame[~frame["segment"].isin([s.name for s in subject.segments if s.degenerate])]
            .groupby(["block", "unit"])["score"]
            .mean()
        )
        for site, (score, _) in unitmem(subject, batch, sites).items():
            np.testing.assert_allclose(mean.loc[site.block].to_numpy(), score, rtol=1e-9)


def test_degenerate_segments_tell_the_class(name, subject):
    """Of images of one class no unit is selective there; elsewhere units are."""
    batch = tiny.image_batch(name, ROWS)
    one = interp.Batch(batch.tokens, 0, conditioning={"label": torch.full((ROWS,), 2)})
    frame = unitmem_by_segment(subject, one, subject.anatomy.expand("neurons"))
    assert frame.equals(unitmem_by_segment(subject, one, "neurons"))
    expanded = unitmem(subject, one, subject.anatomy.expand("neurons"))
    by_name = unitmem(subject, one, "neurons")
    assert list(by_name) == list(expanded)
    for site, (score, example) in by_name.items():
        np.testing.assert_array_equal(score, expanded[site][0])
        np.testing.assert_array_equal(example, expanded[site][1])
    same = frame["segment"].isin([s.name for s in subject.segments if s.degenerate])
    assert frame["score"][same].max() < 1e-9
    assert frame["score"][~same].median() > 1e-2
    assert (
        unitmem_by_segment(subject, batch, subject.anatomy.expand("neurons"))["score"][same].max()
        > 1e-2
    )


def test_text_is_one_segment():
    subject, batch = tiny.subject("llama", torch.float64), tiny.batch("llama", rows=4)
    frame = unitmem_by_segment(subject, batch, (interp.Site("neurons", 1),))
    score, example = unitmem(subject, batch, (interp.Site("neurons", 1),))[
        interp.Site("neurons", 1)
    ]
    assert set(frame["segment"]) == {""}
    assert (frame["score"].tolist(), frame["example"].tolist()) == (
        score.tolist(),
        example.tolist(),
    )


@pytest.mark.parametrize("views", [1, 2])
def test_localize_takes_images_and_their_views(name, subject, views):
    batch = tiny.image_batch(name, ROWS)
    memorized, control = batch.rows(slice(0, 4)), batch.rows(slice(4, None))
    options = {"method": "unitmem", "views": views, "collapse": "max"}
    scores = localize(subject, memorized, control, **options)
    each = localize_each(subject, memorized, control, **options)
    sites = subject.anatomy.expand("neurons")
    both = unitmem(subject, batch, sites, views=views, collapse="max")
    assert len(each) == 4 // views
    for site, (value, example) in both.items():
        np.testing.assert_allclose(
            scores[site], np.where(example < 4 // views, value, 0), rtol=1e-9
        )
        rows = np.stack([one[site] for one in each])
        np.testing.assert_allclose(rows.max(0), scores[site], rtol=1e-9)
        assert ((rows > 0).sum(0) <= 1).all()
