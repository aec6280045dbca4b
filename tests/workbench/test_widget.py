"""The Python end of the widget: messages in, traits out."""

from __future__ import annotations

import json
from typing import Any

import letters
import numpy as np
import pytest
import tiny
import torch

import interp
from interp.workbench.view import view
from interp.workbench.workspace import Workspace

TEXTS = letters.noise(8, 32, seed=0)


@pytest.fixture(scope="module")
def learner() -> interp.Subject:
    return letters.overfitted(TEXTS[:4])


@pytest.fixture
def bench(learner: interp.Subject) -> interp.Workbench:
    frame = interp.scan(learner, TEXTS, prefix=8, length=8)
    memorized, control = interp.split(frame)
    return interp.Workbench(learner, memorized, control[:6], control[6:])


def work(bench: interp.Workbench) -> None:
    """Asks for pieces, as the page does, until there are none."""
    number = 0
    while bench.view["progress"]["next"]:
        number += 1
        bench.answer({"do": "next", "number": number})
        assert not bench.error
        assert bench.answered[1] == number


def test_a_click_changes_the_selection_the_numbers_and_the_text_and_undo_brings_them_back(
    bench: interp.Workbench,
):
    work(bench)
    before = bench.view
    assert before["changes"][0]["now"] == "1.00"
    bench.answer({"do": "top", "k": 60, "number": 99})
    assert bench.answered[1] == 99
    assert np.frombuffer(bench.selection, dtype=np.uint8).sum() == 60
    work(bench)
    changed = bench.view
    assert float(changed["changes"][0]["now"]) < 1
    assert any(not run["same"] for run in changed["continuations"]["now"])
    true = bench.space.data["memorized"].targets[0].tolist()
    generated = "".join(run["text"] for run in changed["continuations"]["before"])
    assert generated == bench.space.subject.decode(true)
    bench.answer({"do": "undo", "number": 100})
    again = bench.view
    assert again["canRedo"]
    for name in ("changes", "tokens", "continuations", "selected", "passages"):
        assert again[name] == before[name]


def test_every_answer_is_news_to_every_page(bench: interp.Workbench):
    """Two pages may number their messages alike: an answer that equals the last is not sent."""
    seen: list[list[object]] = []
    bench.observe(lambda change: seen.append(change["new"]), "answered")
    for page in ("a", "b", "a"):
        bench.answer({"do": "next", "page": page, "number": 1})
    assert [answer[:2] for answer in seen] == [["a", 1], ["b", 1], ["a", 1]]


def test_windows_are_asked_for(bench: interp.Workbench):
    with pytest.raises(ValueError, match="memorized and a control"):
        interp.Workbench(bench.space.subject, bench.space.data["memorized"])


def test_ranges_of_the_map_are_units(bench: interp.Workbench):
    bench.answer({"do": "paint", "ranges": [[3, 5], [46, 50]], "on": True})
    expected = bench.space.subject.units(
        {"blocks.0.neurons": [3, 4, 46, 47], "blocks.1.neurons": [0, 1]}
    )
    assert bench.units == expected
    chosen = np.frombuffer(bench.selection, dtype=np.uint8)
    assert np.flatnonzero(chosen).tolist() == [3, 4, 46, 47, 48, 49]
    bench.answer({"do": "toggle", "ranges": [[48, 96]]})
    assert len(bench.units["blocks.1.neurons"]) == 48
    bench.answer({"do": "toggle", "ranges": [[48, 96]]})
    assert not len(bench.units["blocks.1.neurons"])


def test_the_scores_of_the_map_are_those_of_the_method(bench: interp.Workbench):
    work(bench)
    scores = np.frombuffer(bench.scores, dtype="<f4")
    expected = np.concatenate([bench.space.scores[site] for site in bench.space.sites])
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    bench.answer({"do": "method", "method": "activation", "point": "heads"})
    assert not bench.view["scored"]
    work(bench)
    assert len(np.frombuffer(bench.scores, dtype="<f4")) == 8
    assert bench.view["methods"][bench.view["method"]] == "activation"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"do": "fly"}, "unknown message 'fly'"),
        ({"do": "show", "passage": 99}, "expected 0 to 11"),
        ({"do": "control", "name": "random", "seed": 0}, "nothing is selected"),
        ({"do": "treat", "changes": {"kind": "none"}}, "kind='none'"),
        ({"do": "top"}, "KeyError"),
    ],
    ids=str,
)
def test_an_error_is_shown_and_nothing_else_changes(
    bench: interp.Workbench, message: dict[str, Any], said: str
):
    before = bench.view
    with tiny.untouched(bench.space.subject.module):
        bench.answer({**message, "number": 7})
    assert said in bench.error
    assert bench.answered[1] == 7
    assert bench.view == before
    bench.answer({"do": "next", "number": 8})
    assert not bench.error


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError("out of memory")], ids=repr)
def test_an_interrupt_in_the_middle_of_a_forward_leaves_the_model_as_it_was(
    bench: interp.Workbench, monkeypatch: pytest.MonkeyPatch, failure: Any
):
    bench.space.select(bench.space.subject.units("neurons"))
    subject = bench.space.subject
    logits = subject.logits
    fingerprint = subject.fingerprint

    def fails(batch: interp.Batch) -> torch.Tensor:
        logits(batch)
        raise failure

    with tiny.untouched(subject.module):
        monkeypatch.setattr(subject, "logits", fails)
        while not bench.error:
            bench.answer({"do": "next", "number": 1})
        monkeypatch.setattr(subject, "logits", logits)
    assert subject.fingerprint == fingerprint
    assert bench.view["progress"]["next"]  # it can go on
    work_left = dict(bench.view["progress"])
    bench.answer({"do": "next", "number": 2})
    assert not bench.error
    assert bench.view["progress"]["done"] == work_left["done"] + 1


def test_what_cannot_be_shown_is_answered_too(bench: interp.Workbench):
    """Without an answer the page would wait for ever."""
    space = bench.space
    broken = Workspace(
        space.subject,
        space.data["memorized"],
        space.data["control"],
        pictures=lambda ids: ids.new_zeros(len(ids), 5, 4, 4).float(),  # neither grey nor RGB
    )
    bench.space = broken
    bench.answer({"do": "next", "number": 5})
    assert bench.error
    assert bench.answered[1] == 5


def test_pictures_are_decoded_once():
    subject = interp.load(tiny.image_model("rar"))
    images = tiny.image_batch("rar", rows=2)
    decoded: list[int] = []

    def pictures(ids: torch.Tensor) -> torch.Tensor:
        decoded.append(len(ids))
        return subject.stepwise.decode(ids)  # type: ignore[attr-defined]

    bench = interp.Workbench(subject, images, images, pictures=pictures)
    work(bench)
    bench.answer({"do": "toggle", "ranges": [[0, 3]]})
    work(bench)
    assert len(decoded) <= 3  # the original, and what is generated before and now


def test_a_closed_widget_leaves_no_hook(bench: interp.Workbench):
    with tiny.untouched(bench.space.subject.module):
        bench.answer({"do": "top", "k": 3, "number": 1})
        bench.close()


def test_all_that_is_sent_is_json(bench: interp.Workbench):
    bench.answer({"do": "paint", "ranges": [[0, 9]], "on": True})
    work(bench)
    assert json.loads(json.dumps(bench.view)) == bench.view


def test_a_model_without_a_tokenizer_shows_its_token_ids():
    subject = tiny.subject("llama")
    batch = tiny.batch("llama", rows=2)
    space = Workspace(subject, batch, batch)
    space.finish()
    shown = view(space)
    ids = [int(row["piece"]) for row in shown["tokens"]]
    assert ids == batch.tokens[0].tolist()
    generated = "".join(run["text"] for run in shown["continuations"]["before"])
    assert list(map(int, generated.split())) == subject.generate(batch)[0].tolist()


def test_films_and_pictures_are_png_files():
    subject = interp.load(tiny.image_model("rar"))
    images = tiny.image_batch("rar", rows=3)

    def film() -> torch.Tensor:
        subject.touch(images)  # what an episode would do
        return torch.rand(20, 3, 8, 8)

    space = Workspace(subject, images, images, film=film)
    space.select(subject.units("blocks.0.neurons", [0, 1]))
    space.finish()
    rows = view(space)["pictures"]
    captions = [row["caption"] for row in rows]
    assert captions == [
        "original",
        "generated before",
        "generated now",
        "before, 20 pictures",
        "now, 20 pictures",
    ]
    assert [len(row["images"]) for row in rows] == [1, 1, 1, 8, 8]
    assert all(image.startswith("iVBORw0KGgo") for row in rows for image in row["images"])
