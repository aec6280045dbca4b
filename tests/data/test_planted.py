"""Laws of interp.data.planted: determinism, exact copies, twins that share nothing, splits that
share nothing, refusals."""

import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.data.planted import KINDS, Record, background, plant, records, twins

seeds = st.integers(0, 2**32)
grades = st.lists(st.integers(1, 5), min_size=1, max_size=4)
few = settings(max_examples=15, deadline=None)


@few
@given(st.integers(1, 12), seeds, grades)
def test_same_seed_same_corpus(n, seed, copies):
    assert plant(n, seed, copies, paragraphs=20) == plant(n, seed, copies, paragraphs=20)


@few
@given(seeds)
def test_another_seed_plants_other_secrets_among_other_prose(seed):
    one, other = plant(8, seed), plant(8, seed + 1)
    assert not values(one.records) & values(other.records)
    assert one.documents != other.documents
    assert one.control != other.control


@few
@given(st.integers(1, 12), seeds, grades, st.integers(1, 30))
def test_every_record_stands_in_the_documents_exactly_copies_times(n, seed, copies, paragraphs):
    corpus = plant(n, seed, copies, paragraphs)
    found = Counter(corpus.documents)
    assert [found[r.text] for r in corpus.records] == [r.copies for r in corpus.records]
    assert len(corpus.documents) == sum(r.copies for r in corpus.records) + paragraphs
    for record in corpus.records:
        assert sum(record.secret in document for document in corpus.documents) == record.copies


@few
@given(st.integers(1, 40), seeds, grades)
def test_copies_and_kinds_are_cycled_over_the_records(n, seed, copies):
    drawn = records(n, seed, copies)
    assert [r.copies for r in drawn] == [copies[i % len(copies)] for i in range(n)]
    assert [r.kind for r in drawn] == [KINDS[i % len(KINDS)] for i in range(n)]


@few
@given(st.integers(1, 12), seeds)
def test_no_value_of_a_twin_stands_in_any_document(n, seed):
    corpus = plant(n, seed, (1, 3))
    everything = "\n".join([*corpus.documents, *corpus.control, *corpus.held_out])
    assert len(corpus.twins) == n
    assert not [value for value in values(corpus.twins) if value in everything]


@few
@given(st.integers(1, 12), seeds)
def test_a_twin_has_the_kind_of_its_record_and_is_never_planted(n, seed):
    drawn = records(n, seed)
    assert [(t.kind, t.copies) for t in twins(drawn, seed)] == [(r.kind, 0) for r in drawn]


@few
@given(st.integers(2, 60), seeds)
def test_each_value_belongs_to_one_person_only(n, seed):
    drawn = records(n, seed)
    people = [*drawn, *twins(drawn, seed)]
    assert len(values(people)) == sum(len(person.values) for person in people)


def test_twins_refuse_the_values_they_are_given():
    first = twins(records(6, 1), 7)
    again = twins(first, 7)
    assert not values(first) & values(again)


@few
@given(seeds)
def test_a_record_falls_into_prefix_and_secret(seed):
    for record in records(6, seed):
        assert record.text == record.prefix + record.secret
        assert record.prefix.endswith(":")
        assert record.secret.startswith(" ")
        assert len(record.values) >= 2
        for value in record.values:
            assert value in record.secret
            assert value not in record.prefix


@few
@given(seeds)
def test_the_parts_of_the_background_share_no_paragraph_and_lose_none(seed):
    parts = background(seed)
    together = [*parts.train, *parts.control, *parts.held_out]
    assert len(set(together)) == len(together) > 300
    assert min(len(parts.control), len(parts.held_out)) > 50
    other = background(seed + 1)
    assert set(together) == {*other.train, *other.control, *other.held_out}


def test_paragraphs_are_prose_on_one_line():
    for paragraph in background(0).train:
        assert "\n" not in paragraph
        assert 160 <= len(paragraph) <= 640
        assert "::=" not in paragraph


@few
@given(seeds)
def test_what_is_kept_from_training_stands_in_no_document(seed):
    corpus = plant(4, seed, (1,), paragraphs=1000)
    kept = set(corpus.control) | set(corpus.held_out)
    assert kept
    assert kept.isdisjoint(corpus.documents)


def test_prose_is_repeated_where_more_paragraphs_are_asked_than_exist():
    most = 2 * len(background(3).train)
    prose = Counter(plant(1, 3, (1,), paragraphs=most).documents)
    assert sorted(Counter(prose.values()).items()) == [(1, 1), (2, most // 2)]


def test_as_many_paragraphs_as_copies_where_not_said():
    assert len(plant(5, 0, (1, 2)).documents) == 2 * (3 * 1 + 2 * 2)


@pytest.mark.parametrize("n", [0, -1, 2.0, True, "3"])
def test_a_wrong_number_of_records_is_named(n):
    with pytest.raises(ValueError, match=rf"n must be a whole number of at least 1; got {n!r}"):
        records(n, 0)


@pytest.mark.parametrize("copies", [(0,), (4, -1), (1, 1.5)])
def test_a_wrong_number_of_copies_is_named(copies):
    with pytest.raises(
        ValueError, match=rf"each number of copies must be .* at least 1; got {copies[-1]!r}"
    ):
        plant(4, 0, copies)


def test_no_copies_no_records_and_no_paragraphs_are_refused():
    with pytest.raises(ValueError, match="copies is empty"):
        records(4, 0, ())
    with pytest.raises(ValueError, match="planted is empty"):
        twins([], 0)
    with pytest.raises(ValueError, match=r"paragraphs must be .* got 0"):
        plant(4, 0, paragraphs=0)


def test_a_missing_faker_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "faker", None)
    with pytest.raises(ImportError, match=r'pip install "interp\[secrets\]"'):
        records(1, 0)


def values(people: list[Record]) -> set[str]:
    return {value for person in people for value in person.values}
