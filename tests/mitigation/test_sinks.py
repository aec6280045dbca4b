"""Sinks against what they stand for: plans row by row, pruned weights, plain training."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tiny
import torch
from torch import nn

import interp
from interp.mitigation.sinks import SinkDecay, Sinks, content_ids
from interp.training.fit import epochs, fit
from interp.training.packing import pack, packed
from interp.training.unit_parameters import unit_parameters

KINDS = ["llama", "gpt2", "opt", "phi"]


def sinks_of(name: str, **options) -> Sinks:
    return Sinks.of(tiny.subject(name), **{"general": 0.5, "active": 0.25, **options})


def check_own_sinks(sinks: Sinks, subject: interp.Subject, batch: interp.Batch, ids: list[int]):
    """Each row has the logits that it has alone, with all sinks but its own at zero."""
    with sinks.own(subject, torch.tensor(ids)):
        found = subject.logits(batch)
    for row, document in enumerate(ids):
        others = sinks.pool - sinks.units([document])
        with subject.intervened(interp.Zero(others)):
            expected = subject.logits(batch.rows(slice(row, row + 1)))
        torch.testing.assert_close(found[row : row + 1], expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("options", [{}, {"per_layer": True}, {"scheme": "reference"}])
def test_own_sinks_are_those_of_a_plan_for_each_row(name, options):
    subject, batch = tiny.subject(name), tiny.batch(name, rows=3)
    sinks = sinks_of(name, **options)
    check_own_sinks(sinks, subject, batch, [7, 2, 11])


@pytest.mark.parametrize("per_layer", [False, True])
def test_each_site_masks_its_own_pool_also_where_pools_are_equally_large(per_layer):
    subject, batch = tiny.subject("llama"), tiny.batch("llama", rows=2)
    first, second, third = subject.anatomy.expand("neurons")
    pool = subject.units(first, range(4)) | subject.units(second, range(5, 9))
    pool = pool | subject.units(third, range(8))
    sinks = Sinks(pool, 0.5, per_layer=per_layer)
    check_own_sinks(sinks, subject, batch, [3, 8])


def test_per_layer_masks_differ_and_shared_ones_do_not():
    shared, own = sinks_of("llama").units([5]), sinks_of("llama", per_layer=True).units([5])
    first, second = shared.sites[:2]
    assert np.array_equal(shared[first], shared[second])
    assert not np.array_equal(own[first], own[second])


def test_dropped_sinks_are_pruned_neurons():
    subject, batch = tiny.subject("llama"), tiny.batch("llama")
    sinks = Sinks.of(subject, general=0.6, active=0.25)
    pruned = copy.deepcopy(subject.module)
    kept = int(0.6 * tiny.NEURONS)
    for layer in pruned.model.layers:
        mlp = layer.mlp
        for name in ("gate_proj", "up_proj"):
            whole = getattr(mlp, name)
            part = nn.Linear(whole.in_features, kept, bias=False)
            part.weight.data = whole.weight.data[:kept]
            setattr(mlp, name, part)
        part = nn.Linear(kept, mlp.down_proj.out_features, bias=False)
        part.weight.data = mlp.down_proj.weight.data[:, :kept]
        mlp.down_proj = part
    with subject.intervened(sinks.dropped()):
        found = subject.logits(batch)
    torch.testing.assert_close(found, interp.load(pruned).logits(batch), atol=1e-6, rtol=1e-6)


def test_the_scales_of_dropping_are_those_of_the_paper_and_of_expectation():
    subject = tiny.subject("llama")
    sinks = Sinks.of(subject, general=0.5, active=0.25)
    factors = {"expected": (0.5 + 0.5 * 0.25) / 0.5, "reference": (0.5 + 0.25) / 0.5}
    for scale, factor in factors.items():
        _, *scales = sinks.dropped(scale)
        assert [each.factor for each in scales] == pytest.approx([factor] * tiny.BLOCKS)
        for each in scales:
            assert not each.units & sinks.pool
    sites = subject.anatomy.expand("neurons")
    batch = tiny.batch("llama")
    plain = interp.record(subject, batch, sites[0], reduce="rows")[sites[0]]
    with subject.intervened(sinks.dropped("reference")):
        scaled = interp.record(subject, batch, sites[0], reduce="rows")[sites[0]]
    general = tiny.NEURONS // 2
    np.testing.assert_allclose(scaled[:, :general], 1.5 * plain[:, :general], rtol=1e-5)
    assert not scaled[:, general:].any()


@pytest.mark.parametrize("name", KINDS)
def test_sinks_that_are_off_have_no_gradient_and_all_others_have_one(name):
    subject = interp.load(tiny.model(name))
    # In eight rows no neuron is off by chance, as those of a ReLU may be.
    batch = tiny.batch(name, rows=8)
    sinks = Sinks.of(subject, general=0.5, active=0.25)
    masks = unit_parameters(subject, sinks.pool, batch)
    on = unit_parameters(subject, sinks.units([3]), batch)
    loss = sinks.objective(lambda batch, _: torch.full((len(batch),), 3))(subject, batch, 0)
    loss.backward()
    for path, parameter in subject.module.named_parameters():
        if path not in masks:
            continue
        off = masks[path] & ~on[path]
        assert off.any()
        assert not parameter.grad[off].any()
        assert parameter.grad[on[path]].any()
        assert parameter.grad[~masks[path]].any()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_without_sinks_training_is_plain_training_bit_for_bit(name):
    batch = tiny.batch(name, rows=4, padded=True)
    trained: list[interp.Subject] = []
    for sinks in (None, Sinks.of(tiny.subject(name), general=1.0, active=0.3)):
        subject = interp.load(tiny.model(name))
        objective = None if sinks is None else sinks.objective()
        torch.manual_seed(0)  # for dropout
        history = fit(subject, epochs(batch, 2, seed=1), 4, lr=1e-3, objective=objective)
        trained.append(subject)
        assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    plain, without = (subject.module.state_dict() for subject in trained)
    for path, value in plain.items():
        assert torch.equal(value, without[path]), path


def test_training_leaves_sinks_of_absent_documents_as_they_are():
    batch = tiny.batch("llama", rows=4)
    subject = interp.load(tiny.model("llama"))
    before = copy.deepcopy(subject.module.state_dict())
    sinks = Sinks.of(subject, general=0.5, active=0.25, scheme="disjoint")
    ids = torch.tensor([1, 2, 1, 2])
    fit(subject, [batch] * 3, 3, lr=1e-2, objective=sinks.objective(lambda *_: ids))
    absent = unit_parameters(subject, sinks.units([3, 4]), batch)
    present = unit_parameters(subject, sinks.units([1, 2]), batch)
    for path, value in subject.module.state_dict().items():
        if path in absent:
            assert torch.equal(value[absent[path]], before[path][absent[path]])
            assert not torch.equal(value[present[path]], before[path][present[path]])


def test_copies_have_one_id_and_padding_does_not_count():
    sequences = [[5, 6, 7], [5, 6], [5, 6, 7], [5, 6, 0]]
    ids = content_ids(interp.Batch.pad(sequences)).tolist()
    assert ids[0] == ids[2]
    assert len(set(ids)) == 3
    assert min(ids) >= 1
    alone = [int(content_ids(interp.Batch(torch.tensor([one])))) for one in sequences]
    assert alone == ids


def test_packed_documents_have_the_sinks_that_they_have_alone():
    subject = packed(tiny.subject("llama"))
    sinks = sinks_of("llama")
    documents = [[3, 1, 4, 1], [5, 9, 2], [6, 5, 3, 5]]
    rows = pack(documents, length=12)
    with sinks.own(subject, content_ids(rows)):
        found = subject.logits(rows)
    start = 0
    for document in documents:
        alone = interp.Batch(torch.tensor([document]))
        with sinks.own(tiny.subject("llama"), content_ids(alone)):
            expected = tiny.subject("llama").logits(alone)
        own = found[:, start + 1 : start + len(document)]
        torch.testing.assert_close(own, expected[:, 1:], atol=2e-5, rtol=1e-4)
        start += len(document)


def test_another_document_changes_nothing_under_sinks():
    subject = packed(tiny.subject("llama"))
    sinks = sinks_of("llama")
    logits: list[torch.Tensor] = []
    for second in ([5, 9, 2, 6], [8, 7, 7, 1]):
        rows = pack([[3, 1, 4, 1], second], length=8)
        with sinks.own(subject, content_ids(rows)):
            logits.append(subject.logits(rows)[:, 1:4])
    assert torch.equal(*logits)


def test_a_document_without_its_own_sinks_has_none():
    subject, batch = tiny.subject("gpt2"), tiny.batch("gpt2", rows=1)
    sinks = sinks_of("gpt2")
    with subject.intervened(sinks.dropped()):
        dropped = subject.logits(batch)
    with sinks.own(subject, torch.tensor([9])), subject.intervened(sinks.without([9])):
        found = subject.logits(batch)
    torch.testing.assert_close(found, dropped)


def test_scaled_sinks_are_the_mean_over_many_documents_to_first_order():
    subject, batch = tiny.subject("llama"), tiny.batch("llama", rows=1)
    sinks = sinks_of("llama")
    [site, *_] = subject.anatomy.expand("neurons")
    many = 3000
    with sinks.own(subject, torch.arange(1, many + 1)):
        repeated = batch.rows(np.zeros(many, dtype=int))
        own = interp.record(subject, repeated, site, reduce="mean", batch_size=many)[site]
    with subject.intervened(sinks.scaled()):
        scaled = interp.record(subject, batch, site, reduce="mean")[site]
    assert np.abs(own - scaled).max() < 0.1 * np.abs(scaled).max()


def test_generation_under_own_sinks_is_the_same_with_a_cache_and_by_whole_forwards():
    subject = tiny.subject("llama")
    assert subject.decoding.cached
    sinks = sinks_of("llama")
    prompts = tiny.batch("llama", rows=2, length=4).tokens
    ids = torch.tensor([4, 6])
    with sinks.own(subject, ids):
        generated = subject.generate(prompts, 5)
        sequence = prompts
        for _ in range(5):
            following = torch.cat([sequence, sequence[:, :1]], dim=1)
            token = subject.logits(interp.Batch(following))[:, -1].argmax(-1, keepdim=True)
            sequence = torch.cat([sequence, token], dim=1)
    assert torch.equal(generated, sequence[:, 4:])
    assert torch.equal(generated, own_by_transformers(subject, sinks, prompts, ids))


def own_by_transformers(subject, sinks, prompts, ids):
    with sinks.own(subject, ids):
        return tiny.generated(subject.module, prompts, 5)


def test_image_models_have_sinks_too():
    subject, batch = tiny.subject("var"), tiny.image_batch("var")
    sinks = sinks_of("var")
    with sinks.own(subject, torch.tensor([1, 2])):
        own = subject.losses(batch)
    with subject.intervened(interp.Zero(sinks.pool - sinks.units([2]))):
        second = subject.losses(batch.rows(slice(1, 2)))
    torch.testing.assert_close(own[1:], second, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("of_sinks", [0.0, 0.05])
def test_sinks_decay_at_their_own_rate(of_sinks):
    lr, decay, steps = 1e-2, 0.5, 4
    batch = tiny.batch("llama", rows=4)
    subject = interp.load(tiny.model("llama"))
    before = copy.deepcopy(subject.module.state_dict())
    sinks = Sinks.of(subject, general=0.5, active=0.25, scheme="disjoint")
    fit(
        subject,
        [batch] * steps,
        steps,
        lr,
        weight_decay=decay,
        warmup=2,
        objective=sinks.objective(lambda *_: torch.ones(4, dtype=torch.int64)),
        callback=SinkDecay(subject, unit_parameters(subject, sinks.pool, batch), decay, of_sinks),
    )
    # What no document has trained has only decayed, by the rates of the four steps.
    rates = lr * np.array([0.5, 1, 1, 1])
    left = float(np.prod(1 - rates * of_sinks))
    absent = unit_parameters(subject, sinks.units([2, 3]), batch)
    for path, mask in absent.items():
        value = subject.module.state_dict()[path][mask]
        torch.testing.assert_close(value, left * before[path][mask], atol=1e-6, rtol=1e-5)


def test_sink_decay_refuses_a_training_that_is_continued():
    subject = interp.load(tiny.model("llama"))
    batch = tiny.batch("llama")
    sinks = Sinks.of(subject, general=0.5, active=0.25)
    masks = unit_parameters(subject, sinks.pool, batch)
    decay = SinkDecay(subject, masks, 0.1)
    fit(subject, [batch], 1, callback=decay)
    with pytest.raises(ValueError, match="step 0 comes where step 1 was expected"):
        fit(subject, [batch], 1, callback=decay)
    with pytest.raises(ValueError, match="no parameter 'gone'"):
        SinkDecay(subject, {"gone": torch.ones(1, dtype=torch.bool)}, 0.1)


def test_what_is_no_pool_or_no_ids_is_refused():
    subject, batch = tiny.subject("llama"), tiny.batch("llama")
    with pytest.raises(ValueError, match="leaves no sinks among the 48 neurons"):
        Sinks.of(subject, general=0.99999999, active=0.3)
    with pytest.raises(ValueError, match=r"general=1\.5"):
        Sinks.of(subject, general=1.5, active=0.3)
    with pytest.raises(ValueError, match=r"active=0\.01 of 24 sink units"):
        Sinks.of(subject, general=0.5, active=0.01)
    with pytest.raises(ValueError, match="expected sites of neurons"):
        Sinks(subject.units("heads"), 0.5)
    none = Sinks.of(subject, general=1.0, active=0.3)
    with pytest.raises(ValueError, match="no units"):
        none.dropped()
    sinks = sinks_of("llama")
    with pytest.raises(ValueError, match="no ids"):
        sinks.without([])
    with pytest.raises(ValueError, match="nearest: expected"):
        sinks.dropped("expect")  # pyright: ignore[reportArgumentType]
    with (
        pytest.raises(ValueError, match="shape"),
        sinks.own(subject, torch.ones(1, 1, 1, dtype=torch.int64)),
    ):
        pass
    with (
        pytest.raises(ValueError, match="2 rows, and there are ids of 3 documents"),
        sinks.own(subject, torch.tensor([1, 2, 3])),
    ):
        subject.logits(batch)
    # Ids of one batch must not be used again for the next ones.
    with (
        pytest.raises(ValueError, match="4 rows, and there are ids of 2 documents"),
        sinks.own(subject, torch.tensor([1, 2])),
    ):
        subject.logits(tiny.batch("llama", rows=4))
    with (
        pytest.raises(ValueError, match="reads 9 positions, and there are ids of 4"),
        sinks.own(subject, torch.ones(2, 4, dtype=torch.int64)),
    ):
        subject.logits(batch)
    with pytest.raises(ValueError, match="document is 0"):
        fit(
            interp.load(tiny.model("llama")),
            [batch],
            1,
            objective=sinks.objective(lambda *_: torch.zeros(2, dtype=torch.int64)),
        )
    assert not tiny.hook_count(subject.module)


def test_a_pool_of_another_model_is_refused():
    wider = Sinks(interp.Units({"blocks.0.neurons": [50]}, {"blocks.0.neurons": 64}), 1.0)
    with pytest.raises(ValueError, match="64"), wider.own(tiny.subject("llama"), torch.tensor([1])):
        pass
