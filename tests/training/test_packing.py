"""Packed rows: where documents lie, and that a model sees each of them alone."""

from __future__ import annotations

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

import interp
from interp.errors import LoadError
from interp.training.fit import fit
from interp.training.packing import documents_of, pack, packed

DOCUMENTS = st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=7), min_size=1, max_size=9)


@given(DOCUMENTS)
def test_packing_loses_no_token_and_predicts_all_but_first_tokens(documents):
    rows = pack(documents, length=8)
    numbers = documents_of(rows)
    found: list[list[int]] = []
    for tokens, own in zip(rows.tokens, numbers, strict=True):
        found += [tokens[own == number].tolist() for number in range(int(own.max()) + 1)]
    # Padding is the last document of a row that it does not fill.
    real = [part for part in found if part in documents]
    assert all(document in found for document in documents)
    assert len(real) >= len(documents)
    assert int(rows.counted.sum()) == sum(len(document) - 1 for document in documents)


def test_a_document_that_fits_no_row_is_refused():
    with pytest.raises(ValueError, match="document 1 has 9 tokens: expected 1 to 8"):
        pack([[1], [2] * 9], length=8)
    with pytest.raises(ValueError, match="document 0 has 0 tokens"):
        pack([[]], length=8)
    with pytest.raises(ValueError, match="no documents"):
        pack([], length=8)


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox", "gemma3", "mixtral"])
def test_a_document_does_not_see_the_others_of_its_row(name):
    subject = packed(tiny.subject(name))
    first, second, third = [3, 1, 4, 1], [5, 9, 2], [6, 5, 3, 5]
    rows = pack([first, second, third], length=12)
    changed = pack([first, [8, 7, 7], third], length=12)
    logits, after = subject.logits(rows), subject.logits(changed)
    torch.testing.assert_close(logits[:, 1:4], after[:, 1:4])
    torch.testing.assert_close(logits[:, 8:11], after[:, 8:11])
    assert not torch.allclose(logits[:, 5:7], after[:, 5:7])
    for start, document in ((0, first), (4, second), (7, third)):
        alone = tiny.subject(name).logits(interp.Batch(torch.tensor([document])))
        own = logits[:, start + 1 : start + len(document)]
        torch.testing.assert_close(own, alone[:, 1:], atol=2e-5, rtol=1e-4)


def test_training_on_packed_rows_is_training_on_the_documents():
    documents = [[3, 1, 4, 1], [5, 9, 2, 6], [5, 3, 5, 8], [9, 7, 9, 3]]
    weights: list[dict[str, torch.Tensor]] = []
    for rows in (interp.Batch(torch.tensor(documents)), pack(documents, length=8)):
        subject = interp.load(tiny.model("llama"))
        read = subject if documents_of(rows) is None else packed(subject)
        history = fit(read, [rows] * 3, 3, lr=1e-3)
        weights.append({"loss": torch.tensor(history["loss"].to_numpy())})
        weights[-1] |= subject.module.state_dict()
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["opt", "bloom"])
def test_models_whose_positions_are_their_own_are_refused(name):
    """They take position_ids, or do not, and read on over the end of a document."""
    with pytest.raises(LoadError, match="keep documents in one row apart"):
        packed(tiny.subject(name))


def test_a_model_that_mixes_documents_is_refused():
    class Mixing(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.model = module.model
            self.config = module.config
            self.lm_head = module.lm_head

        def forward(self, tokens, **options):
            return self.lm_head(self.model(tokens, use_cache=False).last_hidden_state)

    mixing = interp.load(Mixing(tiny.model("llama")))
    with pytest.raises(LoadError, match="keep documents in one row apart"):
        packed(mixing)


def test_a_model_that_puts_something_in_front_is_refused():
    llama = tiny.subject("llama")
    behind = interp.Subject(llama.module, llama.anatomy, llama.forward, lead=3)
    with pytest.raises(LoadError, match="puts 3 positions in front"):
        packed(behind)


def test_a_model_without_positions_is_refused():
    with pytest.raises(LoadError, match="cannot read packed rows"):
        packed(tiny.subject("policy"))


def test_rows_that_are_not_packed_are_refused():
    with pytest.raises(ValueError, match="the batch is not packed"):
        packed(tiny.subject("llama")).logits(tiny.batch("llama"))
