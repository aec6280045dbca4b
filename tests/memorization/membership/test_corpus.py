"""Laws of membership over a corpus: equal to separate forwards, for text and for images."""

from __future__ import annotations

import copy
import zlib
from typing import Any

import letters
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from numpy.testing import assert_allclose
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

import interp
from interp.memorization.membership.corpus import mean_of_lowest, membership, scored_texts
from interp.memorization.membership.token_scores import token_scores

TEXTS = [*letters.noise(5, 9, seed=1), "abc", "ab", *letters.noise(2, 14, seed=2)]


@pytest.fixture(scope="module")
def target() -> interp.Subject:
    return letters.subject(seed=0)


@pytest.fixture(scope="module")
def references() -> list[interp.Subject]:
    return [letters.subject(seed=1), letters.subject(seed=2)]


def by_hand(target: Any, references: Any, text: str, min_k: float) -> dict[str, float]:
    """The scores of one text, from one unpadded forward per model."""
    batch = interp.Batch(torch.tensor([target.encode(text)]))
    with torch.no_grad():
        logits = target.target_logits(batch)
        others = [each.target_logits(batch) for each in references]
    scores = token_scores(logits, batch.targets, others)
    log_p = -np.concatenate([target.losses(batch).detach().numpy()[0]])
    assert_allclose(scores.log_p[0], log_p, atol=1e-5)
    count = len(log_p)
    lowest = max(1, int(np.floor(min_k * count + 1e-9)))
    assert scores.informia is not None
    assert scores.log_p_reference is not None
    token = scores.informia[0].double().numpy()
    return {
        "tokens": count,
        "loss": log_p.mean(),
        "min_k": np.sort(log_p)[:lowest].mean(),
        "min_k_plus_plus": np.sort(scores.standardized[0].numpy())[:lowest].mean(),
        "zlib": log_p.sum() / len(zlib.compress(text.encode())),
        "ratio": (log_p - scores.log_p_reference[0].numpy()).mean(),
        "informia": token.mean(),
        "informia_min_k": np.sort(token)[:lowest].mean(),
        "informia_sum": token.sum(),
    }


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_equals_one_forward_per_text(target: Any, references: Any, batch_size: int):
    found = membership(target, iter(TEXTS), references, batch_size=batch_size, min_k=0.25)
    assert found["text"].tolist() == list(range(len(TEXTS)))
    for row, text in zip(found.to_dict("records"), TEXTS, strict=True):
        for name, value in by_hand(target, references, text, 0.25).items():
            # rounding of logits, which a division by a small spread makes larger
            allowed = 1e-4 if name == "min_k_plus_plus" else 1e-5
            assert row[name] == pytest.approx(value, abs=allowed), name


@pytest.mark.parametrize(
    ("share", "expected"), [(0.2, -5.0), (0.4, -4.5), (1.0, -3.0), (0.01, -5.0)]
)
def test_the_lowest_share_by_hand(share: float, expected: float):
    log_p = torch.tensor([[-1.0, -2, -3, -4, -5, -99]])
    counted = torch.tensor([[True] * 5 + [False]])
    assert mean_of_lowest(log_p, counted, share).tolist() == [expected]
    four = torch.tensor([[True] * 4 + [False] * 2])
    assert mean_of_lowest(log_p, four, 0.2).tolist() == [-4.0]


def test_without_reference_model_only_its_own_scores(target: Any):
    found = membership(target, TEXTS)
    assert list(found) == ["text", "tokens", "loss", "min_k", "min_k_plus_plus", "zlib"]
    scored = next(iter(scored_texts(target, TEXTS)))
    assert scored.scores.informia is None


def test_token_ids_and_length(target: Any, references: Any):
    ids = [target.encode(text) for text in TEXTS]
    from_ids = membership(target, ids, references)
    from_text = membership(target, TEXTS, references)
    pd.testing.assert_frame_equal(from_ids, from_text)
    cut = membership(target, TEXTS, references, length=4)
    expected = membership(target, [text[:4] for text in TEXTS], references)
    pd.testing.assert_frame_equal(cut, expected)
    assert cut.attrs["length"] == 4


def test_short_texts_are_counted(target: Any):
    found = membership(target, ["abc", "", "a", "de"])
    assert found["text"].tolist() == [0, 3]
    assert (found.attrs["texts"], found.attrs["skipped"]) == (4, 2)
    with pytest.raises(ValueError, match="in 2 of 2 texts there is no token"):
        membership(target, ["a", ""])


def test_a_model_compared_with_itself_has_no_score(target: Any):
    found = membership(target, TEXTS, target)
    assert found[["ratio", "informia", "kl"]].abs().to_numpy().max() < 1e-6


def test_start_tokens_are_in_front_and_not_scored():
    """Behind a start token the first letter is predicted too."""
    start = letters.LETTERS.index("~")
    tokenizer = letters.tokenizer()
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="~ $A", special_tokens=[("~", start)]
    )
    model = interp.load(letters.subject().module, tokenizer=tokenizer)
    assert model.bos == (start,)
    found: Any = membership(model, ["bcd", "x"])
    batch = interp.Batch(torch.tensor([[start, *model.tokens("bcd")]]))
    assert found["loss"][0] == pytest.approx(-model.losses(batch).mean().item(), rel=1e-5)
    assert found["tokens"].tolist() == [3, 1]
    assert membership(model, ["bcd", "x"], bos=False)["tokens"].tolist() == [2]


@pytest.mark.parametrize("kind", ["var", "rar"])
def test_images_are_measured_as_texts_are(kind: str):
    """Tokens of an image, through Stepwise: a scale of VAR is predicted at once."""
    target = tiny.subject(kind)
    reference = interp.load(copy.deepcopy(target.module))
    with torch.no_grad():
        for parameter in reference.module.parameters():
            parameter.mul_(1.1)
    batch = target.stepwise.example()
    found = membership(target, batch, reference, batch_size=1)
    assert len(found) == len(batch)
    with torch.no_grad():
        own, other = target.losses(batch), reference.losses(batch)
    assert_allclose(found["ratio"], (other - own).mean(1), atol=1e-5)
    assert "zlib" not in found


def test_rows_of_a_batch_are_measured_where_they_are_scored(target: Any, references: Any):
    tokens = torch.tensor([target.encode(text[:9]) for text in TEXTS[:3]])
    scored = torch.zeros_like(tokens, dtype=torch.bool)
    scored[:, 4:6] = True
    found = membership(target, interp.Batch(tokens, 2, scored=scored), references)
    assert found["tokens"].tolist() == [2, 2, 2]
    with torch.no_grad():
        losses = target.losses(interp.Batch(tokens, 4))
    assert_allclose(found["loss"], -losses[:, :2].mean(1), atol=1e-5)
    scored[1] = False
    with pytest.raises(ValueError, match="row 1 of the batch has no target that is measured"):
        membership(target, interp.Batch(tokens, 2, scored=scored), references, batch_size=1)


def test_modes_and_gradients_are_left_as_they_were(target: Any, references: Any):
    target.module.train()
    membership(target, TEXTS, references)
    assert target.module.training
    target.module.eval()
    assert all(parameter.grad is None for parameter in target.module.parameters())


def test_other_tokenizers_are_refused(target: Any):
    other = letters.tokenizer()
    other.add_tokens(["ab"])
    longer = interp.load(letters.subject().module, tokenizer=other)
    with pytest.raises(ValueError, match="reads other tokens than"):
        membership(target, TEXTS, longer)

    swapped = {letter: number for number, letter in enumerate(letters.LETTERS)}
    swapped["a"], swapped["b"] = swapped["b"], swapped["a"]
    backend = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=swapped, merges=[]))
    )
    reference = interp.load(letters.subject().module, tokenizer=backend)
    with pytest.raises(ValueError, match="'a' is token 0 and 1"):
        membership(target, TEXTS, reference)
    with pytest.raises(ValueError, match="'a' is token 0 and 1"):
        interp.scan(target, TEXTS, 4, 4, reference=reference)


def test_a_narrower_reference_without_tokenizer_is_refused():
    wide = tiny.subject("llama")
    narrow = interp.load(copy.deepcopy(wide.module))  # tiny keeps its own for other tests
    narrow.module.lm_head = torch.nn.Linear(32, 30, bias=False)
    with pytest.raises(ValueError, match="predicts 67 tokens and LlamaForCausalLM 30"):
        membership(wide, [[1, 2, 4]], narrow)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_k": 0}, "min_k=0: expected a share"),
        ({"min_k": 1.5}, "min_k=1.5"),
        ({"batch_size": 0}, "at least 1; got 0"),
        ({"length": 0}, "at least 1; got 8 and 0"),
        ({"texts": "one text"}, "texts is one string"),
        ({"texts": []}, "in 0 of 0 texts"),
        ({"texts": ["ab", 3]}, "text 1"),
    ],
)
def test_bad_input_is_one_clear_error(target: Any, options: dict[str, Any], message: str):
    texts = options.pop("texts", TEXTS)
    with pytest.raises(ValueError, match=message):
        membership(target, texts, **options)


def test_logits_that_are_nan_are_refused(target: Any):
    broken = letters.subject()
    with torch.no_grad():
        next(broken.module.parameters()).fill_(torch.nan)
    for own, other in ((broken, target), (target, broken)):
        with pytest.raises(ValueError, match="nan"):
            membership(own, TEXTS, other)


def test_a_scan_with_a_reference_model(target: Any, references: Any, tmp_path: Any):
    texts = letters.noise(4, 24, seed=3)
    reference = references[0]
    found = interp.scan(target, texts, 4, 4, reference=reference, folder=tmp_path)
    alone = interp.scan(reference, texts, 4, 4)
    assert_allclose(found["log_p_reference"], alone["log_p"], atol=1e-5)
    assert_allclose(found["log_ratio"], found["log_p"] - alone["log_p"], atol=1e-5)
    again = interp.scan(target, texts, 4, 4, reference=reference, folder=tmp_path)
    pd.testing.assert_frame_equal(found, again)
    for other in (references[1], None):
        with pytest.raises(ValueError, match="holds another scan"):
            interp.scan(target, texts, 4, 4, reference=other, folder=tmp_path)
