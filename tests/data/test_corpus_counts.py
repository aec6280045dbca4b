"""Laws of interp.data.corpus_counts: what a plain loop counts, whatever counts it."""

import importlib.util
import sys

import letters
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp.data import corpus_counts
from interp.data.corpus_counts import counts

ENGINES = ["memory"]
if importlib.util.find_spec("infini_gram") is not None:
    ENGINES.append("infini-gram")


@pytest.fixture(scope="module")
def subject() -> interp.Subject:
    return letters.subject()


def counted(documents: list[list[int]], window: list[int]) -> int:
    """A plain loop."""
    found = 0
    for document in documents:
        for start in range(len(document) - len(window) + 1):
            found += document[start : start + len(window)] == window
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_golden_counts(subject, engine):
    corpus = counts(subject, [[1, 1, 1], [1, 2], [], [3]], engine=engine)
    assert (corpus.documents, corpus.tokens, corpus.engine) == (4, 6, engine)
    # Occurrences overlap; [1, 1] of the first document is not joined with [1] of the second.
    assert corpus.count([[1, 1], [1, 2], [2, 3]]).tolist() == [2, 1, 0]
    assert corpus.count([[1, 1, 1], [1, 1, 2]]).tolist() == [1, 0]
    assert corpus.count([[1], [2], [3], [4], [70_000]]).tolist() == [4, 1, 1, 0, 0]
    assert corpus.count([[1] * 7]).tolist() == [0]
    assert corpus.count([]).tolist() == []


few_tokens = st.integers(0, 2)
corpora = st.lists(st.lists(few_tokens, max_size=12), min_size=1, max_size=8)


@settings(max_examples=60)
@given(corpora, st.integers(1, 6), st.data())
def test_memory_counts_what_a_loop_counts(subject, documents, width, data):
    window = st.lists(few_tokens, min_size=width, max_size=width)
    windows = data.draw(st.lists(window, min_size=1, max_size=5))
    found = counts(subject, documents, engine="memory").count(windows)
    assert found.tolist() == [counted(documents, each) for each in windows]


@pytest.mark.skipif("infini-gram" not in ENGINES, reason="needs infini-gram")
@settings(max_examples=8)
@given(corpora, st.data())
def test_both_engines_agree(subject, documents, data):
    memory = counts(subject, documents, engine="memory")
    disk = counts(subject, documents, engine="infini-gram")
    assert memory.digest == disk.digest
    for width in (1, 2, 4):
        window = st.lists(few_tokens, min_size=width, max_size=width)
        windows = data.draw(st.lists(window, min_size=1, max_size=5))
        assert memory.count(windows).tolist() == disk.count(windows).tolist()


def test_windows_with_one_hash_are_told_apart(subject, monkeypatch):
    monkeypatch.setattr(corpus_counts, "_HASH_BASE", np.uint64(0))  # only the last token counts
    documents = [[1, 2, 3, 9, 2, 3], [2, 3]]
    corpus = counts(subject, documents, engine="memory")
    assert corpus.count([[2, 3], [9, 3], [1, 2]]).tolist() == [3, 0, 1]


def test_the_digest_is_that_of_the_documents(subject):
    def digest(documents):
        return counts(subject, documents, engine="memory").digest

    assert digest([[1, 2], [3]]) == digest([(1, 2), (3,)])
    others = [[[1, 2, 3]], [[1], [2, 3]], [[3], [1, 2]], [[1, 2], [3], []]]
    assert len({digest(documents) for documents in [[[1, 2], [3]], *others]}) == 5


def test_documents_are_read_one_at_a_time(subject):
    held: list[int] = []

    def documents():
        for number in range(3):
            held.append(number)
            yield [number]

    stream = corpus_counts._documents(subject, documents(), corpus_counts.hashlib.sha256())
    next(stream)
    assert held == [0]


def test_bad_input_is_named(subject, monkeypatch):
    with pytest.raises(ValueError, match="holds no document: expected the corpus"):
        counts(subject, [], engine="memory")
    with pytest.raises(ValueError, match="texts is one string"):
        counts(subject, "abc")
    with pytest.raises(ValueError, match="engine='disk': expected 'memory', 'infini-gram'"):
        counts(subject, ["a"], engine="disk")
    corpus = counts(subject, ["abab"], engine="memory")
    with pytest.raises(ValueError, match="have 1, 2 tokens: expected the same number in each"):
        corpus.count([[1], [1, 2]])
    with pytest.raises(ValueError, match="have 0 tokens"):
        corpus.count([[]])
    with pytest.raises(ValueError, match=r"window 1: token 0 is 1.5, a float: expected token ids"):
        corpus.count([[1, 2], [1.5, 2]])
    with pytest.raises(ValueError, match="window 0: a text is a string or a sequence of token ids"):
        corpus.count([1, 2])
    for window in ([-1, 2], [1, 2**63]):
        with pytest.raises(ValueError, match=r"window 0: its tokens are from .*: expected token"):
            corpus.count([window])
    for document in ([-1, 2], [1, 2**32]):
        with pytest.raises(ValueError, match=r"text 1: its tokens are from .*: expected token ids"):
            counts(subject, [[1], document], engine="memory")
    monkeypatch.setattr(corpus_counts.importlib.util, "find_spec", lambda _: None)
    assert counts(subject, ["abab"]).engine == "memory"
    with pytest.raises(ImportError, match=r'pip install "interp\[counts\]"'):
        counts(subject, ["abab"], engine="infini-gram")


@pytest.mark.skipif("infini-gram" not in ENGINES, reason="needs infini-gram")
def test_what_infini_gram_cannot_do_is_named(subject, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="document 1 has token 65535: infini-gram counts tokens"):
        counts(subject, [[1], [65_535]], engine="infini-gram")
    assert counts(subject, [[1], [65_535]], engine="memory").count([[65_535]]).tolist() == [1]
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(
        RuntimeError, match=r"could not index the corpus \(no message\); count with"
    ):
        counts(subject, [[1]], engine="infini-gram")
    (tmp_path / "a b").mkdir()
    monkeypatch.setattr(corpus_counts.tempfile, "tempdir", str(tmp_path / "a b"))
    with pytest.raises(ValueError, match="set TMPDIR to another folder"):
        counts(subject, [[1]], engine="infini-gram")


@pytest.mark.skipif("infini-gram" not in ENGINES, reason="needs infini-gram")
def test_the_index_is_removed_with_the_counts(subject, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_counts.tempfile, "tempdir", str(tmp_path))
    corpus = counts(subject, [[1, 2]], engine="infini-gram")
    assert list(tmp_path.iterdir())
    del corpus
    assert not list(tmp_path.iterdir())
