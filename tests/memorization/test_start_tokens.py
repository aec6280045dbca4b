"""Laws of start tokens: a text is measured as its tokenizer presents it, a window behind what the
tokenizer puts in front of a text, and everything downstream measures the same."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

import interp
from interp.subject.batch import batches

PREFIX, LENGTH = 4, 5


def tokenizer(template: str = "") -> PreTrainedTokenizerFast:
    """Words w0, w1, ... with a template such as "w1 $A w2" around a text."""
    words = tiny.tokenizer(tiny.VOCABULARY)
    if template:
        special = [(name, int(name[1:])) for name in template.split() if name != "$A"]
        words.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=special
        )
    return words


@functools.cache
def subject(template: str = "w1 $A") -> interp.Subject:
    return interp.load(tiny.model("llama"), tokenizer=tokenizer(template))


def text(tokens: list[int]) -> str:
    return " ".join(f"w{token}" for token in tokens)


def some_tokens(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, tiny.VOCABULARY, (count,), generator=generator).tolist()


@pytest.mark.parametrize(
    ("template", "bos"),
    [("", ()), ("w1 $A", (1,)), ("w1 $A w2", (1,)), ("$A w2", ()), ("w1 w2 $A w1", (1, 2))],
)
def test_start_tokens_are_what_is_put_in_front(template: str, bos: tuple[int, ...]):
    assert subject(template).bos == bos
    assert tiny.subject("llama").bos == ()


def whole_words(template: str = "") -> PreTrainedTokenizerFast:
    """A tokenizer of whole words without a token for unknown ones: it raises on all others."""
    backend = Tokenizer(models.WordLevel({f"w{n}": n for n in range(tiny.VOCABULARY)}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if template:
        special = [(name, int(name[1:])) for name in template.split() if name != "$A"]
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=special
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.mark.parametrize(("template", "bos"), [("", ()), ("w1 $A", (1,)), ("w1 w2 $A", (1, 2))])
def test_a_tokenizer_that_knows_none_of_the_usual_texts_is_tried_on_its_own(
    template: str, bos: tuple[int, ...]
):
    assert interp.load(tiny.model("llama"), tokenizer=whole_words(template)).bos == bos


def test_a_text_that_the_tokenizer_cannot_write_is_named():
    words = interp.load(tiny.model("llama"), tokenizer=whole_words())
    long_enough = text(some_tokens(12))
    with pytest.raises(ValueError, match=r"text 1: the tokenizer cannot write the text.*UNK"):
        interp.scan(words, [long_enough, "never seen"], PREFIX, LENGTH)


def test_what_is_put_in_front_must_be_told_apart():
    class Mixing:
        vocab_size = 5

        def __len__(self) -> int:
            return 5

        def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
            return {"input_ids": [2, 3] if "add_special_tokens" in options else [1, 3, 2]}

    mixing = interp.load(tiny.model("llama"), tokenizer=Mixing())
    with pytest.raises(ValueError, match="cannot be told; pass bos=False"):
        _ = mixing.bos
    assert mixing.behind_bos([3], bos=False) == [3]


@pytest.mark.parametrize("template", ["w1 $A", "w1 w2 $A w1"])
def test_windows_are_measured_behind_the_start_tokens(template: str):
    behind, tokens = subject(template), some_tokens(23)
    bos = list(behind.bos)
    frame = interp.scan(behind, [text(tokens)], PREFIX, LENGTH, stride=3, decode_from=0)
    starts = [0, 3, 6, 9, 12]
    assert frame["start"].tolist() == starts
    assert frame["tokens"].tolist() == [tokens[s : s + PREFIX + LENGTH] for s in starts]
    assert frame["bos"].tolist() == [bos] * 5
    assert (set(frame["prefix"]), set(frame["length"])) == ({PREFIX}, {LENGTH})
    assert frame["prompt"][0] == text(tokens[:PREFIX])
    assert frame.attrs["bos"] == bos

    # The same by hand, and from the frame as every later stage reads it.
    rows = [bos + row for row in frame["tokens"]]
    by_hand = interp.Batch(torch.tensor(rows), len(bos) + PREFIX)
    (from_frame,) = batches(frame, batch_size=8)
    assert torch.equal(from_frame.tokens, by_hand.tokens)
    assert from_frame.prompt == by_hand.prompt
    with torch.no_grad():
        log_p = -behind.losses(by_hand).sum(1)
    assert frame["log_p"].tolist() == pytest.approx(log_p.tolist(), abs=1e-5)
    same = interp.scan(behind, by_hand, decode_from=0)
    assert same["similarity"].tolist() == frame["similarity"].tolist()


def test_without_start_tokens_a_scan_is_as_it_was():
    tokens = some_tokens(23)
    plain = interp.scan(subject(""), [text(tokens)], PREFIX, LENGTH)
    off = interp.scan(subject(), [text(tokens)], PREFIX, LENGTH, bos=False)
    assert "bos" not in [*plain, *off]
    assert plain.equals(off)
    assert off.attrs["bos"] == plain.attrs["bos"] == []
    assert not plain["log_p"].equals(
        interp.scan(subject(), [text(tokens)], PREFIX, LENGTH)["log_p"]
    )


def test_token_ids_do_not_get_start_tokens_twice():
    behind, tokens = subject(), some_tokens(23)
    wanted = interp.scan(behind, [text(tokens)], PREFIX, LENGTH)
    for given in ([1, *tokens], tokens, text([1, *tokens])):
        assert interp.scan(behind, [given], PREFIX, LENGTH).equals(wanted)


def test_a_row_that_is_one_window_with_its_start_token_stays_as_it_is():
    behind, tokens = subject(), some_tokens(PREFIX + LENGTH - 1)
    frame = interp.scan(behind, [[1, *tokens], some_tokens(12)], PREFIX, LENGTH)
    assert frame["tokens"][0] == [1, *tokens]
    assert frame["bos"].tolist() == [[], [1]]
    with torch.no_grad():
        loss = behind.losses(interp.Batch(torch.tensor([[1, *tokens]]), PREFIX)).sum()
    assert frame["log_p"][0] == pytest.approx(-float(loss), abs=1e-5)
    with pytest.raises(ValueError, match=r"several start tokens \[\(\), \(1,\)\]"):
        interp.Batch.from_frame(frame)


def test_a_batch_by_hand_is_what_the_model_sees():
    batch = tiny.batch("llama", rows=3, prompt=4)
    frame = interp.scan(subject(), batch)
    assert "bos" not in frame
    assert frame["log_p"].equals(interp.scan(tiny.subject("llama"), batch)["log_p"])


def test_texts_are_generated_and_encoded_behind_the_start_tokens():
    behind, tokens = subject("w1 w2 $A w1"), some_tokens(6)
    ids = torch.tensor([[1, 2, *tokens]])
    # A text as it reads after the prompt: with the space between them.
    wanted = " " + behind.decode(behind.generate(ids, 5)[0].tolist())
    assert behind.generate(text(tokens), 5) == wanted
    assert behind.generate(text([1, 2, *tokens]), 5) == wanted
    raw = " " + behind.decode(behind.generate(ids[:, 2:], 5)[0].tolist())
    assert behind.generate(text(tokens), 5, bos=False) == raw

    batch = behind.encode_all([text(tokens), text(tokens[:3])], length=4)
    assert batch.tokens.tolist() == [[1, 2, *tokens[:4]], [1, 2, *tokens[:3], 0]]
    assert batch.prompt == 2
    assert behind.encode_all([text(tokens)], bos=False).tokens.tolist() == [tokens]


def test_a_scan_is_not_resumed_with_other_start_tokens(tmp_path: Path):
    texts = [some_tokens(23), some_tokens(30, seed=1)]
    kept = interp.scan(subject(), texts, PREFIX, LENGTH, folder=tmp_path)
    again = interp.scan(subject(), texts, PREFIX, LENGTH, folder=tmp_path)
    assert again["bos"].tolist() == kept["bos"].tolist()
    assert interp.Batch.from_frame(again).prompt == PREFIX + 1
    with pytest.raises(ValueError, match=r"bos was \[1\] and is \[\]"):
        interp.scan(subject(), texts, PREFIX, LENGTH, folder=tmp_path, bos=False)


def test_later_stages_measure_the_same_windows():
    """What `extraction_drop` says of the unchanged model is what the scan said."""
    from interp.memorization.evaluation import measure_under

    frame = interp.scan(subject(), [some_tokens(60)], PREFIX, LENGTH)
    measured = measure_under(subject(), [[]], {"all": frame})
    assert (measured["loss"] * LENGTH).tolist() == pytest.approx(
        (-frame["log_p"]).tolist(), abs=1e-4
    )


def test_the_command_line_says_which_start_tokens(tmp_path: Path):
    from interp.cli.app import app

    folder = tmp_path / "model"
    tiny.model("llama").save_pretrained(folder)
    tokenizer("w1 $A").save_pretrained(folder)
    (tmp_path / "a.txt").write_text(text(some_tokens(40)))
    for option, said in (("--bos", "w1"), ("--no-bos", "none")):
        arguments = ["scan", str(folder), str(tmp_path / "a.txt"), "--json", option]
        arguments += ["--prefix", "4", "--length", "5", "--out", str(tmp_path / option)]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout.splitlines()[-1])["start_tokens"] == said


def test_a_tokenizer_that_takes_no_text_does_not_count_as_one_without_start_tokens():
    class Failing:
        vocab_size = 5

        def __len__(self) -> int:
            return 5

        def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
            raise TypeError("unexpected argument 'verbose'")

        def decode(self, tokens: list[int], **options: Any) -> str:
            return "x"

    failing = interp.load(tiny.model("llama"), tokenizer=Failing())
    with pytest.raises(ValueError, match=r"takes no text \(unexpected.*; pass bos=False"):
        _ = failing.bos
