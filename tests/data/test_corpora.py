"""Laws of interp.data.corpora: no document in two parts, no duplicate twice, passages planted as
often as the table says."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.data import corpora
from interp.data.corpora import Document, deduplicate, load, plant, split

HALVES = {"train": 0.5, "held_out": 0.5}
texts = st.lists(st.text("ab \n", max_size=6), min_size=4, max_size=20)


def named(*texts: str) -> list[Document]:
    return [Document(str(number), text) for number, text in enumerate(texts)]


def words(first: int, last: int) -> str:
    return " ".join(map(str, range(first, last)))


def test_the_standard_library_is_source_without_tests():
    files = load("stdlib")
    names = [file.name for file in files]
    assert names == sorted(names, key=lambda name: name.split("/"))
    assert {"argparse.py", "json/decoder.py"} < set(names)
    assert not [name for name in names if "/test" in f"/{name}" or "site-packages" in name]
    assert min(len(file.text) for file in files) > 0
    assert load("stdlib", files=50, head=100) == tuple(
        Document(files[number].name, files[number].text[:100])
        for number in (place * len(files) // 50 for place in range(50))
    )


def test_the_topics_are_those_of_help():
    from pydoc_data.topics import topics

    assert {topic.name: topic.text for topic in load("python-docs")} == topics


def test_folders_of_debian_are_read_and_their_links_left_out(tmp_path, monkeypatch):
    (tmp_path / "GPL-3").write_text("the third")
    (tmp_path / "GPL").symlink_to(tmp_path / "GPL-3")
    monkeypatch.setattr(corpora, "_LICENCES", tmp_path)
    assert load("licences") == (Document("GPL-3", "the third"),)
    fortunes = tmp_path / "fortunes"
    fortunes.mkdir()
    (fortunes / "art").write_text("one\ntwo\n%\n100% of three\n%\n")
    (fortunes / "art.dat").write_bytes(b"\0\xff")
    monkeypatch.setattr(corpora, "_FORTUNES", fortunes)
    assert [entry.text for entry in load("fortunes")] == ["one\ntwo", "100% of three"]
    assert [entry.name for entry in load("fortunes")] == ["art 0", "art 1"]


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"'stdlb' is no corpus: .* nearest: stdlib"):
        load("stdlb")
    monkeypatch.setattr(corpora, "_FORTUNES", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"none does not exist: .*apt-get install fortunes"):
        load("fortunes")
    for number in (0, -1):
        with pytest.raises(ValueError, match=f"head={number}: expected numbers of at least 1"):
            load("python-docs", head=number)
    with pytest.raises(ValueError, match=r"python-docs has \d+ documents here"):
        load("python-docs", files=10_000)


def test_golden_near_duplicates():
    original = words(0, 40)  # 28 runs of 13 words
    same_half = f"{words(0, 26)} {words(100, 126)}"  # 14 of its runs are those of the original
    less = f"{words(0, 25)} {words(200, 227)}"  # 13 of them
    end = words(25, 40)  # all 3 of its runs
    spaced = original.replace(" ", "\n\n  ")
    given_documents = named(original, same_half, less, end, spaced, "short", "short one")
    kept = [document.name for document in deduplicate(given_documents)]
    assert kept == ["0", "2", "5", "6"]


def test_a_chain_of_near_duplicates_is_one_group():
    chain = named(words(0, 30), words(9, 39), words(18, 48))
    assert not corpora._runs(chain[0].text) & corpora._runs(chain[2].text)
    assert deduplicate(chain) == (chain[0],)
    # also where the document that joins the two comes last
    assert deduplicate([chain[0], chain[2], chain[1]]) == (chain[0],)


@given(texts)
def test_deduplicating_keeps_the_first_of_each_text_and_is_done_in_one_go(texts):
    kept = deduplicate(named(*texts))
    first: dict[str, str] = {}
    for number, text in enumerate(texts):
        first.setdefault(" ".join(text.split()), str(number))
    assert [document.name for document in kept] == list(first.values())
    assert deduplicate(kept) == kept


@given(texts, st.integers(0, 5))
def test_parts_share_nothing_and_lose_nothing(texts, seed):
    documents = named(*texts)
    if len(deduplicate(documents)) < 2:
        with pytest.raises(ValueError, match="no document is left for held_out: "):
            split(documents, HALVES, seed)
        return
    parts = split(documents, HALVES, seed)
    assert parts == split(documents, HALVES, seed)
    together = [document for part in parts.values() for document in part]
    assert sorted(document.name for document in together) == sorted(map(str, range(len(texts))))
    wordings = [{" ".join(document.text.split()) for document in parts[name]} for name in HALVES]
    assert not wordings[0] & wordings[1]
    for part in parts.values():
        assert list(part) == sorted(part, key=lambda document: int(document.name))


def test_parts_have_their_shares_and_another_seed_another_deal():
    documents = named(*map(str, range(100)))
    shares = {"train": 0.7, "control": 0.2, "held_out": 0.1}
    parts = split(documents, shares, seed=0)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 70,
        "control": 20,
        "held_out": 10,
    }
    assert parts != split(documents, shares, seed=1)


@pytest.mark.parametrize(
    "shares", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": 1.0, "b": 0.0}, {"a": float("nan")}]
)
def test_shares_that_are_none_are_named(shares):
    with pytest.raises(ValueError, match="in all: expected positive numbers that are 1 in all"):
        split(named("a", "b"), shares, 0)


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 99), max_size=6),
    st.lists(st.integers(100, 199), min_size=1, max_size=5, unique=True),
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.integers(0, 5),
)
def test_every_passage_is_planted_as_often_as_the_table_says(numbers, planted, copies, seed):
    documents = named(*map(str, numbers))
    passages = list(map(str, planted))
    corpus = plant(documents, passages, copies, seed=seed)
    found = Counter(document.text for document in corpus.documents)
    assert list(corpus.table["text"]) == passages
    wanted = [copies[number % len(copies)] for number in range(len(passages))]
    assert list(corpus.table["copies"]) == wanted
    assert [found[text] for text in passages] == wanted
    rest = [document for document in corpus.documents if document.text not in passages]
    assert rest == documents
    assert len({document.name for document in corpus.documents}) == len(corpus.documents)
    again = plant(documents, passages, copies, seed=seed)
    assert again.documents == corpus.documents


def test_copies_stand_everywhere_in_the_corpus():
    corpus = plant(named(*"abcdefgh"), ["x", "y"], (64,), seed=0)
    places = [n for n, document in enumerate(corpus.documents) if document.text == "x"]
    assert places[0] < 20
    assert places[-1] > len(corpus.documents) - 20


def test_what_stands_in_the_corpus_anyway_is_said():
    corpus = plant(named("one two", "two", "three"), ["two", "four"], (1,), seed=0)
    assert list(corpus.table["already"]) == [2, 0]


@pytest.mark.parametrize("passages", [[], ["a", ""], ["a", "a"]])
def test_passages_that_cannot_be_planted_are_named(passages):
    with pytest.raises(ValueError, match=f"^{len(passages)} passages, .* and each once"):
        plant(named("a"), passages, seed=0)


@pytest.mark.parametrize("copies", [(), (1, 0)])
def test_copies_below_one_are_named(copies):
    with pytest.raises(ValueError, match="expected whole numbers of at least 1"):
        plant(named("a"), ["b"], copies, seed=0)


def test_copies_of_a_longer_passage_are_among_those_that_stand_there_anyway():
    corpus = plant(named("a two"), ["two", "one two", "two one two"], (1, 4, 16), seed=0)
    assert list(corpus.table["already"]) == [1 + 4 + 16, 16, 0]
