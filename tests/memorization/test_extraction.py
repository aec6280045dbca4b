"""Laws of scan and teacher_force: one teacher-forced forward says what Hugging Face's generate would,
with a KV cache and under ablation."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import interp
from interp.data import stream as data_stream
from interp.interventions.plan import Plan
from interp.memorization.extraction import discoverable, scan
from interp.memorization.scan_windows import CorpusWindows, Cut
from interp.memorization.spans import passages
from interp.memorization.teacher_forcing import TeacherForced, summary, teacher_force

PROMPT, LENGTH = 5, 7
PLANS = ("nothing", "zero", "zero when decoding")


@pytest.fixture(params=tiny.HUGGING_FACE)
def subject(request: pytest.FixtureRequest) -> interp.Subject:
    return tiny.subject(request.param, torch.float64)


@pytest.fixture
def llama64() -> interp.Subject:
    return tiny.subject("llama", torch.float64)


def ablation(subject: interp.Subject, plan: str) -> list[Plan]:
    """Zeroes half of a block's neurons, or half of what its MLP writes where neurons are refused."""
    sites = map(interp.Site.parse, ("blocks.1.neurons", "blocks.1.mlp_out"))
    site = next(s for s in sites if s in subject.sites)
    half = tiny.units(subject, site, list(range(0, subject.anatomy.place(site).units, 2)))
    return {
        "nothing": [],
        "zero": [interp.Zero(half)],
        "zero when decoding": [interp.Zero(half, when="decode")],
    }[plan]


def generated(module: Any, prompts: Tensor, length: int = LENGTH) -> Tensor:
    return tiny.generated(module, prompts, length)


def corrupted(truth: Tensor, rng: np.random.Generator) -> Tensor:
    """Every second row with one to three of its tokens replaced by others."""
    truth = truth.clone()
    for row in range(1, len(truth), 2):
        for at in rng.choice(truth.shape[1], rng.integers(1, 4), replace=False):
            truth[row, at] = (
                truth[row, at] + int(rng.integers(1, tiny.VOCABULARY))
            ) % tiny.VOCABULARY
    return truth


def common(said: Tensor, truth: Tensor) -> list[int]:
    return [
        next((i for i, (a, b) in enumerate(zip(s, t, strict=True)) if a != b), len(s))
        for s, t in zip(said, truth, strict=True)
    ]


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("seed", range(3))
def test_verdicts_are_those_of_generate(subject, plan, seed):
    rng = np.random.default_rng(seed)
    prompts = torch.from_numpy(rng.integers(0, tiny.VOCABULARY, (8, PROMPT)))
    with tiny.untouched(subject.module), subject.intervened(*ablation(subject, plan)):
        said = generated(subject.module, prompts)
        truth = corrupted(said, rng)
        batch = interp.Batch(torch.cat([prompts, truth], dim=1), PROMPT)
        forced = teacher_force(subject, batch)
    measures = summary(forced, batch)
    assert forced.decoded.all()
    assert forced.continuation.tolist() == said.tolist()
    assert (
        measures["exact"].tolist()
        == (said == truth).all(1).tolist()
        == [row % 2 == 0 for row in range(8)]
    )
    assert measures["matched"].tolist() == common(said, truth)


def test_an_ablation_changes_what_is_said(llama64):
    """Else the law above would hold of a plan that does nothing."""
    prompts = torch.arange(40).reshape(8, PROMPT)
    said = {}
    for plan in PLANS:
        with llama64.intervened(*ablation(llama64, plan)):
            said[plan] = generated(llama64.module, prompts).tolist()
    assert said["nothing"] != said["zero"] != said["zero when decoding"] != said["nothing"]


def test_log_p_is_that_of_the_bare_module(subject):
    tokens = torch.randint(0, tiny.VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        log_probabilities = subject.module(tokens).logits.log_softmax(-1)[:, PROMPT - 1 : -1]
    expected = log_probabilities.gather(-1, tokens[:, PROMPT:, None]).sum((1, 2))
    forced = teacher_force(subject, interp.Batch(tokens, PROMPT))
    np.testing.assert_allclose(forced.log_p, expected, rtol=1e-9)
    assert forced.hits.tolist() == (log_probabilities.argmax(-1) == tokens[:, PROMPT:]).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_a_plain_module_is_decoded_without_a_cache(seed):
    module = tiny.seeded(
        lambda: tiny.Language(*(tiny.Block(32, 4, causal=True) for _ in range(2))),
        torch.float64,
        seed,
    )
    rng = np.random.default_rng(seed)
    tokens = torch.from_numpy(rng.integers(0, tiny.VOCABULARY, (6, PROMPT)))
    for _ in range(LENGTH):
        tokens = torch.cat([tokens, module(tokens)[:, -1:].argmax(-1)], dim=1)
    truth = corrupted(tokens[:, PROMPT:], rng)
    batch = interp.Batch(torch.cat([tokens[:, :PROMPT], truth], dim=1), PROMPT)
    forced = teacher_force(interp.load(module), batch)
    assert forced.continuation.tolist() == tokens[:, PROMPT:].tolist()
    assert forced.hits.all(1).tolist() == [row % 2 == 0 for row in range(6)]


@pytest.mark.parametrize("wrong", ["mask", "scored"])
def test_a_window_is_whole(llama64, wrong):
    with pytest.raises(
        ValueError, match="windows are scanned whole: expected a batch without `mask`"
    ):
        teacher_force(
            llama64,
            interp.Batch(
                torch.ones(2, 8, dtype=torch.long), 2, **{wrong: torch.arange(8).expand(2, 8) < 7}
            ),
        )


def test_text_is_predicted_from_its_first_token_on(llama64):
    with pytest.raises(
        ValueError,
        match="prompt=0: this model sees nothing before the first token; expected at least 1",
    ):
        teacher_force(llama64, interp.Batch(torch.ones(2, 8, dtype=torch.long), 0))


def test_what_a_model_sees_beside_tokens_is_allowed():
    """A policy's image: one forward for each token, as it has no cache; the image of a row is its
    own."""
    subject = tiny.subject("policy", torch.float64)
    batch = tiny.batch("policy", rows=4, prompt=3, dtype=torch.float64)
    tokens, image = batch.tokens[:, :3], batch.conditioning["image"]
    for at in range(3, batch.length):
        longer = torch.cat([tokens, tokens[:, :1]], dim=1)
        tokens = torch.cat(
            [tokens, subject.module(longer, image)[:, at : at + 1].argmax(-1)], dim=1
        )
    truth = torch.cat(
        [batch.tokens[:, :3], corrupted(tokens[:, 3:], np.random.default_rng(0))], dim=1
    )
    forced = teacher_force(subject, interp.Batch(truth, 3, conditioning=batch.conditioning))
    assert forced.continuation.tolist() == tokens[:, 3:].tolist()
    assert forced.hits.all(1).tolist() == [True, False] * 2


token_texts = st.lists(st.lists(st.integers(0, tiny.VOCABULARY - 1), max_size=30), max_size=6)


@given(token_texts, st.integers(1, 12), st.integers(1, 12))
def test_windows_slide_over_texts_and_leave_less_than_a_stride(texts, width, stride):
    corpus = CorpusWindows(tiny.subject("llama"), texts, Cut(width, stride))
    found = list(corpus.read())
    assert (corpus.texts, corpus.skipped) == (len(texts), sum(len(text) < width for text in texts))
    for number, text in enumerate(texts):
        starts = [w.start for w in found if w.text == number]
        assert starts == [stride * i for i in range(len(starts))]
        assert all(
            list(w.tokens) == text[w.start : w.start + width] for w in found if w.text == number
        )
        assert len(text) < width if not starts else len(text) - (starts[-1] + width) < stride


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=5))
def test_run_is_the_longest_run_of_hits(hits):
    rows = np.array(hits)
    forced = TeacherForced(
        rows, np.zeros(len(rows)), np.zeros(rows.shape, dtype=int), np.zeros(len(rows), dtype=bool)
    )
    measures = summary(forced, interp.Batch(torch.zeros(len(rows), 7, dtype=torch.long), 1))
    assert measures["run"].tolist() == [
        max((len(list(g)) for hit, g in groupby(row) if hit), default=0) for row in hits
    ]
    assert measures["accuracy"].tolist() == [sum(row) / 6 for row in hits]


@pytest.mark.parametrize(
    ("p", "queries", "probability", "expected"),
    [
        (0.1, 10, 0.65, True),
        (0.1, 10, 0.66, False),
        (0.5, 1, 0.5, True),
        (0.5, 1, 0.51, False),
        (1.0, 1, 0.999, True),
        (0.0, 10**9, 0.001, False),
    ],
)
def test_discoverable_by_hand(p, queries, probability, expected):
    """1 - 0.9**10 = 0.6513."""
    with np.errstate(divide="ignore"):
        assert discoverable(np.log(np.array([p])), queries, probability).tolist() == [expected]


@given(
    st.lists(st.floats(-50, 0), min_size=2, max_size=8),
    st.integers(1, 10**6),
    st.floats(0.01, 0.99),
)
def test_discoverable_grows_with_probability_and_queries_and_falls_with_what_is_asked(
    log_p, queries, probability
):
    found = discoverable(np.sort(log_p), queries, probability)
    assert (np.diff(found.astype(int)) >= 0).all()
    assert (discoverable(np.sort(log_p), 2 * queries, probability) >= found).all()
    assert (discoverable(np.sort(log_p), queries, probability / 2) >= found).all()


@pytest.mark.parametrize(("queries", "probability"), [(0, 0.5), (1, 0.0), (1, 1.0)])
def test_discoverable_refuses_what_is_no_question(queries, probability):
    with pytest.raises(ValueError, match="expected queries >= 1 and a probability"):
        discoverable(np.zeros(1), queries, probability)


def texts_of(subject: interp.Subject, count: int = 5, seed: int = 0) -> list[list[int]]:
    """Token texts that the model partly says by itself, so that hits and misses mix."""
    rng = np.random.default_rng(seed)
    prompts = torch.from_numpy(rng.integers(0, tiny.VOCABULARY, (count, PROMPT)))
    said = corrupted(generated(subject.module, prompts, 30), rng)
    return torch.cat([prompts, said], dim=1).tolist()


@pytest.mark.parametrize("size", [1, 3, 64])
def test_the_size_of_a_batch_changes_no_row(llama64, size):
    texts = texts_of(llama64)
    one, other = (
        scan(llama64, texts, PROMPT, LENGTH, stride=3, batch_size=n, decode_from=0)
        for n in (7, size)
    )
    pd.testing.assert_frame_equal(one, other, rtol=1e-9)
    assert 0 < one["exact"].sum() < len(one)


def test_a_stream_is_read_as_the_model_gets_to_it(llama64, monkeypatch):
    ahead = 6
    monkeypatch.setattr(data_stream, "_TEXTS_AHEAD", ahead)
    read: list[int] = []
    behind: list[int] = []

    def stream():
        for text in range(40):
            read.append(text)
            yield [text] * (PROMPT + LENGTH)

    handle = llama64.module.register_forward_pre_hook(lambda *_: behind.append(len(read)))
    frame = scan(llama64, stream(), PROMPT, LENGTH, batch_size=4, decode_from=2)
    handle.remove()
    assert behind == [min(4 * batch + ahead, 40) for batch in range(1, 11)]
    assert frame["text"].tolist() == read


def test_token_texts_need_no_tokenizer_and_strings_do(llama64):
    frame = scan(llama64, [range(12), np.arange(14), torch.arange(12)], PROMPT, LENGTH)
    assert "prompt" not in frame
    assert frame["tokens"].tolist() == [list(range(12))] * 3
    with pytest.raises(ValueError, match="no tokenizer"):
        scan(llama64, ["text"], PROMPT, LENGTH)


@pytest.mark.parametrize("decode_from", [0.0, 0.5, 0.9, 1.5])
def test_only_windows_that_deserve_it_are_decoded(llama64, decode_from):
    frame = scan(llama64, texts_of(llama64), PROMPT, LENGTH, stride=2, decode_from=decode_from)
    known = frame["similarity"].notna()
    assert known.tolist() == ((frame["accuracy"] >= decode_from) | frame["exact"]).tolist()
    assert (frame["similarity"][known].eq(1) == frame["exact"][known]).all()


def test_short_texts_are_counted_and_skipped(llama64):
    frame = scan(llama64, [[], [1, 2], list(range(12)), list(range(11))], PROMPT, LENGTH)
    assert (frame.attrs["texts"], frame.attrs["skipped"], frame["text"].tolist()) == (4, 3, [2])


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        ([[], [1, 2]], "2 of 2 texts are shorter than 12 tokens"),
        ([], "0 of 0 texts"),
        ([[tiny.VOCABULARY] * 12], f"token ids must be 0 to {tiny.VOCABULARY - 1}"),
        ([[-1] * 12], "token ids must be 0"),
        ("one text", "texts is one string"),
        ([1, 2, 3], r"a text is a string or a sequence of token ids; got 1: .* \[tokens\]"),
    ],
)
def test_what_cannot_be_scanned_gets_one_clear_error(llama64, texts, match):
    with tiny.untouched(llama64.module), pytest.raises(ValueError, match=match):
        scan(llama64, texts, PROMPT, LENGTH)


@pytest.mark.parametrize("wrong", [{"prefix": 0}, {"length": 0}, {"stride": 0}, {"batch_size": 0}])
def test_a_window_has_tokens(llama64, wrong):
    with pytest.raises(ValueError, match="must be at least 1"):
        scan(llama64, [range(40)], **{"prefix": 5, "length": 5, **wrong})


def scanned(
    exact: list[bool], stride: int, length: int = 4, prefix: int = 2, text: str | None = None
) -> pd.DataFrame:
    """A scan of one text, a letter a token, as far as `passages` reads it."""
    letters = text or "".join(
        chr(97 + i) for i in range(stride * (len(exact) - 1) + prefix + length)
    )
    starts = [stride * i for i in range(len(exact))]
    return pd.DataFrame(
        {
            "text": 0,
            "start": starts,
            "prefix": prefix,
            "length": length,
            "exact": exact,
            "matched": [length * e for e in exact],
        }
        | {"accuracy": [float(e) for e in exact], "log_p": [-1.0 * length] * len(exact)}
        | {"suffix": [letters[s + prefix : s + prefix + length] for s in starts]}
    )


def test_exact_windows_that_touch_are_one_passage():
    table = passages(scanned([True, True, False, True], stride=4))
    assert table["suffix"].tolist() == ["cdefghij", "opqr", "klmn"]
    assert table["windows"].tolist() == [2, 1, 1]
    assert table["tokens"].tolist() == [10, 6, 6]
    assert table["log_p"].tolist() == [-1.0] * 3


def test_windows_of_two_texts_or_apart_do_not_touch():
    two = pd.concat([scanned([True], 4), scanned([True], 4).assign(text=1)])
    assert len(passages(two)) == 2
    assert len(passages(scanned([True, True], stride=5))) == 2


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 8))
def test_a_passage_says_what_its_windows_share_but_once(stride, length, count):
    stride = min(stride, length)
    frame = scanned([True] * count, stride, length)
    (suffix,) = passages(frame.sample(frac=1, random_state=0))["suffix"]
    assert suffix == "".join(chr(97 + i) for i in range(2, 2 + stride * (count - 1) + length))


def test_a_repetitive_passage_keeps_its_length():
    (suffix,) = passages(scanned([True] * 5, stride=2, text="a" * 14))["suffix"]
    assert suffix == "a" * 12


@pytest.mark.parametrize("stride", [3, 4])
def test_windows_show_their_text_as_it_reads_in_the_whole(stride):
    """With a token per byte, windows begin and end within letters."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    network = GPT2Config(vocab_size=256, n_embd=16, n_layer=1, n_head=2)
    subject = interp.load(
        tiny.seeded(lambda: GPT2LMHeadModel(network)),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=backend),
    )
    text = "na\u00efve \u65e5\u672c\u8a9e \U0001f600!"
    frame = scan(subject, [text], stride, stride, stride=stride)
    whole = text.encode()
    for start, prompt, suffix in zip(frame["start"], frame["prompt"], frame["suffix"], strict=True):
        ends = [whole[:end].decode(errors="ignore") for end in (start, start + stride)]
        assert prompt == ends[1].removeprefix(ends[0])
        assert suffix.startswith(
            whole[: start + 2 * stride].decode(errors="ignore")[len(ends[1]) :]
        )
    assert frame["prompt"][0] + "".join(frame["suffix"]) == whole[
        : stride * (len(frame) + 1)
    ].decode(errors="ignore")
    (passage,) = passages(frame.assign(exact=True))["suffix"]
    assert passage == "".join(frame["suffix"])


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        (pd.DataFrame({"words": ["a"]}), r"texts is a DataFrame of 'words'.*frame\[\"text\"\]"),
        ({"train": ["a"]}, "texts is a dict of 'train'"),
        (b"bytes", "texts is one string"),
        (Path("corpus"), r"to read files, see interp\.data\.texts\.read_texts"),
        (None, "texts is None: expected several texts"),
        ([[1, 2], {"words": "a"}], r"row 1 has no 'text', only 'words'"),
        ([[1, 2], {"text": 5}], r"text 1: "),
        ([[1, 2], b"ab"], "text 1: got bytes"),
        ([[1, 2], [1, 2.5]], "text 1: token 1 is 2.5, a float"),
        (torch.rand(2, 12), "text 0: token 0 is 0"),
        ([[1, 2], float("nan")], "text 1: .* got nan"),
    ],
)
def test_what_is_no_text_is_named_by_its_number(llama64, texts, match):
    with pytest.raises(ValueError, match=match):
        scan(llama64, texts, PROMPT, LENGTH)


def test_a_text_that_cannot_be_encoded_is_named_by_its_number():
    subject = interp.load(tiny.model("gpt2"), tokenizer=tiny.tokenizer(20))
    with pytest.raises(ValueError, match=r"text 1: character 3 .* half of a surrogate pair"):
        scan(subject, ["w1 w2", "w1 \ud800"], PROMPT, LENGTH)
