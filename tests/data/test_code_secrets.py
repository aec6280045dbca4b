"""Laws of secrets in code: which are found, which tokens are theirs, and what is planted."""

from __future__ import annotations

import ast
import functools
import ipaddress
from itertools import pairwise
from random import Random
from typing import Any

import letters
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

import interp
from interp.data import code_secrets, corpora
from interp.data.code_secrets import (
    Secret,
    SecretFile,
    draw,
    find_secrets,
    is_gibberish,
    mark,
    plant,
    token_mask,
    token_spans,
)
from interp.mitigation.unlearning.sets import Sets, check_sets

KEY = draw("key", Random(1))


def found(text: str, kind: str) -> list[str]:
    return [secret.value for secret in find_secrets(text, kinds=(kind,))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mail ann.lee@corp.co.uk now", ["ann.lee@corp.co.uk"]),
        ("('a_b-c@mail.corp.org',)", ["a_b-c@mail.corp.org"]),
        ("<bob@corp.org>, by=kim@corp.org.", ["bob@corp.org", "kim@corp.org"]),
        ("@decorator.attribute", []),
        ("a @ b.c", []),
        ("x@y", []),
        ("bob@example.com, test@corp.org, user1@corp.org, Aaaa@corp.org", []),
    ],
)
def test_emails(text, expected):
    assert found(text, "email") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host = '84.17.33.9'", ["84.17.33.9"]),
        ("84.17.33.9:8080", ["84.17.33.9"]),
        ("84.17.33.256, 84.17.33, 84.17.33.9.1, v84.17.33.9", []),
        ("127.0.0.1 10.1.22.33 192.168.7.11 169.254.7.11 172.16.7.11 172.31.7.1", []),
        ("172.32.7.11", ["172.32.7.11"]),
        ("version 1.2.3.4", []),
        ("dns = 8.8.8.8", ["8.8.8.8"]),
        ("Server: 1.2.3.4", ["1.2.3.4"]),
        ("dns " + " " * 100 + "1.2.3.4", []),
        ("'2001:db8:85a3:8d3:1319:8a2e:370:7348'", ["2001:db8:85a3:8d3:1319:8a2e:370:7348"]),
        ("2a02:26f0:b200::17", ["2a02:26f0:b200::17"]),
        ("x[1::2], 12:30:45, a::b, std::x", []),
        ("on 2011:04:05::1", []),
    ],
)
def test_ip_addresses(text, expected):
    assert found(text, "ip") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"k = '{KEY}'", [KEY]),
        (f"k = {KEY}", []),  # high entropy counts within quotes
        (f"page_id = '{KEY}'", []),
        (f"k = '{{{KEY}}}'", []),
        (f"k = '{KEY}xxxxxxx'", []),
        (f"k = 'https{KEY}'", []),
        ("k = '0123456789012345678901234567890123456789'", []),
        ("k = '7b3e9f0c-41d8-4a56-92be-d05c8f17a364'", []),
        ("k = 'The_Quick_Brown_Fox_Jumps_Over_A_Lazy_Dog'", []),
        ("'8fd1e20c94b7635a'", ["8fd1e20c94b7635a"]),
        ("md5 = '8fd1e20c94b7635a8fd1e20c94b7635a'", []),
        (f"{'x = 1' + chr(10)}" * 60 + "k = '8fd1e20c94b7635a8fd1e20c94b7635a'", ["8fd1e20c94b7635a8fd1e20c94b7635a"]),
        (f"import hashlib\nk = '{KEY}'", []),  # a file about hashes
        (f"import hashlib\n{'x = 1' + chr(10)}" * 1 + "x = 1\n" * 98 + f"k = '{KEY}'", [KEY]),
    ],
)  # fmt: skip
def test_keys(text, expected):
    assert found(text, "key") == expected


def test_gibberish_is_told_from_names():
    assert not is_gibberish("authentication_backend")
    assert not is_gibberish("AbstractEventLoopPolicy")
    assert is_gibberish("qzxvkjwpqhgxz")
    assert is_gibberish("deadbeef")  # hexadecimal digits are not judged
    assert is_gibberish("7_3")


def test_every_occurrence_is_a_secret_and_none_overlap():
    text = f"a = '{KEY}' # bob@corp.org\nb = '{KEY}'\nc = 'x{KEY}'  # jim.bob@corp.org"
    secrets = find_secrets(text)
    assert [(one.kind, one.value) for one in secrets] == [
        ("key", KEY),
        ("email", "bob@corp.org"),
        ("key", KEY),
        ("key", f"x{KEY}"),
        ("email", "jim.bob@corp.org"),
    ]
    assert all(text[one.start : one.stop] == one.value for one in secrets)
    with pytest.raises(
        ValueError, match="'emails' is no kind of secret: expected one of email, ip, key"
    ):
        find_secrets(text, ("emails",))


def test_masks_of_tokens_by_hand():
    spans = [(0, 1), (1, 3), (3, 5), (5, 7), (7, 9), (9, 10)]
    secret = [Secret("key", "AB12", 5, 9)]
    assert sum(token_mask(spans, secret)) == 2
    assert token_mask(spans, secret, inclusive=True) == [False, False, True, True, True, True]
    # a token that reaches into the secret belongs to it either way
    assert token_mask([(3, 6), (6, 10)], secret) == [True, True]


@given(st.data())
def test_a_mask_covers_each_secret_and_an_inclusive_one_at_most_two_tokens_more(data):
    cuts = sorted(data.draw(st.sets(st.integers(1, 39), max_size=12)) | {0, 40})
    spans = list(pairwise(cuts))
    start = data.draw(st.integers(0, 39))
    secret = Secret("key", "", start, data.draw(st.integers(start + 1, 40)))
    mask, wider = (token_mask(spans, [secret], inclusive=each) for each in (False, True))
    covered = {n for span, own in zip(spans, mask, strict=True) if own for n in range(*span)}
    assert set(range(secret.start, secret.stop)) <= covered
    assert all(span[0] < secret.stop and span[1] > secret.start for span, own in zip(spans, mask, strict=True) if own)  # fmt: skip
    assert sum(wider) - sum(mask) <= 2
    assert all(not own or other for own, other in zip(mask, wider, strict=True))


def files(*texts: str) -> list[SecretFile]:
    return [SecretFile(f"{n}.py", text, find_secrets(text)) for n, text in enumerate(texts)]


def test_marked_tokens_spell_the_secrets():
    subject = letters.subject()
    given = files(f"k='{KEY}'", "mail('ann@corp.org', '84.17.33.9')")
    batch = mark(subject, given)
    assert batch.mask is not None
    assert batch.scored is not None
    for row, file in enumerate(given):
        assert subject.decode(batch.tokens[row][batch.mask[row]].tolist()) == file.text
        spelled = subject.decode(batch.tokens[row][batch.scored[row]].tolist())
        assert spelled == "".join(secret.value for secret in file.secrets)
    wider = mark(subject, given, inclusive=True)
    assert wider.scored is not None
    assert wider.scored.sum(1).tolist() == [len(KEY) + 2, len("ann@corp.org84.17.33.9") + 4]
    cut = mark(subject, given, length=8)
    assert cut.tokens.shape == (2, 8)
    assert cut.scored is not None
    assert cut.scored.sum(1).tolist() == [5, 2]


def test_files_are_put_behind_start_tokens():
    subject = letters.subject()
    given = files(f"k='{KEY}'")
    plain = mark(subject, given)
    subject.__dict__["bos"] = (90, 91)
    batch = mark(subject, given)
    assert batch.prompt == 2
    assert batch.tokens[0, :2].tolist() == [90, 91]
    assert torch.equal(batch.tokens[:, 2:], plain.tokens)
    assert batch.scored is not None
    assert plain.scored is not None
    assert torch.equal(batch.scored[:, 2:], plain.scored)
    assert torch.equal(mark(subject, given, bos=False).tokens, plain.tokens)


def test_what_cannot_be_marked_is_refused():
    subject = letters.subject()
    given = files("k = 1", f"k = '{KEY}'")
    with pytest.raises(
        ValueError, match=r"file 0 \(0.py\) has no token of a secret .*0 secrets and 5"
    ):
        mark(subject, given)
    with pytest.raises(ValueError, match=r"file 1 .*among its first 4 \(it has 1 secrets"):
        mark(subject, given[1:] and [SecretFile("0.py", "'a@b.co'", (Secret("email", "a@b.co", 1, 7),)), given[1]], length=4)  # fmt: skip
    with pytest.raises(ValueError, match="files is empty"):
        mark(subject, [])

    class Slow:
        is_fast = False

        def __call__(self, *_: Any, **__: Any) -> dict[str, list[int]]:
            return {"input_ids": [1]}

    other = interp.load(tiny.model("llama"), tokenizer=Slow())
    with pytest.raises(ValueError, match=r"does not say where its tokens are.*expected a fast"):
        token_spans(other, "a")


@functools.cache
def corpus(seed: int = 0) -> code_secrets.SecretCorpus:
    return plant(forget=6, others=9, retained=4, memorized=5, seed=seed)


def test_planted_files_are_valid_python_that_holds_their_secrets():
    planted = corpus()
    values: set[str] = set()
    for file in (*planted.forget, *planted.others, *planted.twins):
        ast.parse(file.text)
        assert [secret.kind for secret in file.secrets] == ["email", "ip", "key"]
        for secret in file.secrets:
            assert file.text[secret.start : secret.stop] == secret.value
            assert file.text.count(secret.value) == 1
            values.add(secret.value)
    assert len(values) == 3 * (6 + 9 + 6)
    for piece in (*planted.retained, *planted.memorized):
        ast.parse(piece.text)
        assert 250 < len(piece.text) <= 600
        assert not find_secrets(piece.text, ("email", "ip"))


def test_nobody_owns_what_is_planted():
    for seed in range(50):
        random = Random(seed)
        assert draw("email", random).endswith(".invalid")
        assert ipaddress.ip_address(draw("ip", random)).is_reserved
        key = draw("key", random)
        assert len(set(key)) == len(key) == 24
        assert key.isalnum()


def test_what_is_planted_is_found_but_for_keys_outside_quotes():
    planted = corpus()
    quoted_keys: list[bool] = []
    for file in (*planted.forget, *planted.others, *planted.twins):
        seen = {secret.value for secret in find_secrets(file.text)}
        for secret in file.secrets:
            is_about_hashes = "hash" in file.text or "sha" in file.text
            if secret.kind != "key":
                assert secret.value in seen
            elif file.text[secret.start - 1] in "'\"" and not is_about_hashes:
                quoted_keys.append(secret.value in seen)
    # a random key may have pairs of letters like those of a language
    assert len(quoted_keys) > 12
    assert sum(quoted_keys) >= 0.8 * len(quoted_keys)


def test_surroundings_differ():
    """No two files share a line around a secret, nor the code."""
    planted = corpus()
    every = (*planted.forget, *planted.others)
    names = [file.name for file in (*every, *planted.retained, *planted.memorized)]
    assert len(set(names)) == len(names) == 24
    forms: list[str] = []
    for file in every:
        text = file.text
        for secret in file.secrets:
            text = text.replace(secret.value, "?")
        lines = [line for line in text.splitlines() if "?" in line]
        forms.append(" ".join(lines))
    assert len(set(forms)) == len(forms)


def test_twins_have_the_same_code_around_other_secrets():
    planted = corpus()
    for file, twin in zip(planted.forget, planted.twins, strict=True):
        assert file.name == twin.name
        text, other = file.text, twin.text
        for own, its in zip(file.secrets, twin.secrets, strict=True):
            assert (own.kind, own.start, own.stop) == (its.kind, its.start, its.stop)
            assert own.value != its.value
            text, other = text.replace(own.value, "?"), other.replace(its.value, "?")
        assert text == other
        assert twin.text not in planted.repeated


def test_the_parts_share_no_code():
    planted = corpus()
    pieces = {
        file.name
        for file in (*planted.forget, *planted.others, *planted.retained, *planted.memorized)
    }
    background, held_out = (
        {file.name for file in part} for part in (planted.background, planted.held_out)
    )
    assert not pieces & background
    assert not pieces & held_out
    assert not background & held_out
    every = {file.name: file.text for file in corpora.load("stdlib", head=12_000)}
    assert all(every[file.name] == file.text for file in (*planted.background, *planted.held_out))
    assert len(planted.repeated) == 24


def test_a_seed_gives_one_corpus():
    again = plant(forget=6, others=9, retained=4, memorized=5, seed=0)
    assert again == corpus()


def test_what_is_planted_can_be_unlearned():
    """Forgotten and retained sets do not contradict each other."""
    subject = letters.subject()
    planted = corpus()
    forget = mark(subject, planted.forget, length=900)
    retain = subject.encode_all([piece.text for piece in planted.retained])
    check_sets(subject, Sets(forget, retain))
    leaking = subject.encode_all([planted.forget[2].text[:-9]])
    with pytest.raises(ValueError, match="row 0 of retain contains the secret of row 2 of forget"):
        check_sets(subject, Sets(forget, leaking))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"forget": 0}, "forget=0: expected a number of files, at least 1"),
        ({"kinds": ()}, r"kinds=\(\): expected some of email, ip, key"),
        ({"kinds": ("password",)}, r"kinds=\('password',\): expected some of"),
    ],
)
def test_what_cannot_be_planted_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plant(**arguments)


def test_more_pieces_than_there_are_files_are_refused():
    with pytest.raises(
        ValueError, match=r"\d+ files here have a piece of 300 to 600 characters; 100018"
    ):
        plant(others=100_000, forget=2, retained=8, memorized=8)
