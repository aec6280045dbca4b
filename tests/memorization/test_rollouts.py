"""Episodes of a policy: what counts as which, the same numbers whatever runs beside, and a trained
policy that falls into its trap."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from typer.testing import CliRunner

import interp
from interp.cli.app import app
from interp.data.tabletop.expert import demonstrations
from interp.data.tabletop.frames import (
    demonstration_batch,
    save_frames,
    training_batches,
    weighted_loss,
)
from interp.data.tabletop.perturbations import perturb
from interp.data.tabletop.scenes import SUITES, Scene
from interp.memorization.robustness import robustness
from interp.memorization.rollouts import Episode, act, arms, film, rollouts, run_arms
from interp.models.policy.checkpoints import save_policy
from interp.models.policy.policy import Policy, PolicyConfig

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mujoco") is None,
    reason="mujoco is missing: pip install 'interp[policies]'",
)

SUITE = SUITES["tabletop_object"]


@pytest.fixture(scope="module")
def untrained() -> interp.Subject:
    return interp.load(Policy(PolicyConfig(width=16, depth=1, heads=2, hidden=32), seed=1))


@pytest.fixture(scope="module")
def trained() -> interp.Subject:
    """A policy that was trained for five seconds where the scene tells the task."""
    policy = interp.load(Policy(PolicyConfig(width=48, depth=2, hidden=96), seed=0))
    frames = demonstration_batch(demonstrations("tabletop_object", 160, seed=11))
    interp.fit(
        policy,
        training_batches(frames, 300, 64, seed=0),
        300,
        4e-3,
        betas=(0.9, 0.98),
        warmup=37,
        decay=262,
        floor=0.05,
        clip=1.0,
        objective=weighted_loss,
    )
    return policy


def scenes(count: int, seed: int = 21) -> list[Scene]:
    return [SUITE.scene(SUITE.tasks[n % len(SUITE.tasks)], seed, n) for n in range(count)]


def episode(went_for: tuple[float, float] | None, in_basket: str | None, scene: Scene) -> Episode:
    inside = () if in_basket is None else tuple(in_basket.split(" and "))
    return Episode(scene, np.zeros((1, 3)), went_for, None, inside, ())


def test_goals_and_places_by_hand():
    [clean] = scenes(1)
    swapped, record = perturb(clean, "swap", np.random.default_rng(0))
    old, new = clean.places["red box"], swapped.places["red box"]
    near_old = (old[0] + 0.02, old[1])
    far = (old[0] + 0.04, old[1])
    assert episode(near_old, record["partner"], swapped).old_place
    assert not episode(far, None, swapped).old_place
    assert not episode(new, "red box", swapped).old_place
    assert not episode(None, None, swapped).old_place
    assert episode(new, "red box", swapped).success
    assert not episode(near_old, record["partner"], swapped).success
    other, record = perturb(clean, "task", np.random.default_rng(0))
    assert episode(None, record["target"], other).success
    assert episode(None, "red box", other).old_goal
    assert not episode(None, "red box", other).success
    two, record = perturb(clean, "composition", np.random.default_rng(0))
    assert not episode(None, "red box", two).success
    assert not episode(None, "red box", two).wrong_item
    assert episode(None, "red box", two).old_goal
    assert episode(None, f"{record['further']} and red box", two).success
    assert not episode(None, f"{record['further']} and red box", clean).success
    assert episode(None, f"{record['further']} and red box", clean).wrong_item
    # Nearer to where the target is now than to where it was.
    between = replace(swapped, places={**swapped.places, "red box": far})
    assert not episode((old[0] + 0.03, old[1]), None, between).old_place


def test_two_goals_have_twice_the_time_and_the_episodes_beside_them_do_not(
    untrained: interp.Subject,
):
    [clean] = scenes(1)
    two, _ = perturb(clean, "composition", np.random.default_rng(0))
    alone, longer = rollouts(untrained, [clean, two], seed=3)
    assert not alone.success
    assert (len(alone.path), len(longer.path)) == (61, 121)
    [again] = rollouts(untrained, [clean], seed=3)
    assert np.array_equal(again.path, alone.path)


def test_an_episode_is_the_same_whatever_runs_beside(untrained: interp.Subject):
    tried = scenes(5)
    together = rollouts(untrained, tried, seed=3)
    apart = rollouts(untrained, tried, seed=3, batch_size=2)
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_array_equal(one.path, other.path)
    another = rollouts(untrained, tried[:1], seed=4)
    assert not np.array_equal(another[0].path, together[0].path)


def test_without_a_temperature_the_most_likely_action_is_taken(untrained: interp.Subject):
    given = untrained.stepwise.example().conditioning
    batch = untrained.stepwise.example()
    assert torch.equal(act(untrained, given), untrained.generate(batch))
    cold = act(untrained, given, 1e-6, np.full((2, 4), 0.5))
    assert torch.equal(cold, act(untrained, given))


def test_tokens_are_drawn_with_their_probabilities(untrained: interp.Subject):
    given = {
        name: value[:1].repeat(4000, *[1] * (value.ndim - 1))
        for name, value in untrained.stepwise.example().conditioning.items()
    }
    uniform = np.random.default_rng(0).random((4000, 4))
    tokens = act(untrained, given, 0.7, uniform)
    one = interp.Batch(
        torch.zeros(1, 4, dtype=torch.long), 0, conditioning={n: v[:1] for n, v in given.items()}
    )
    expected = (untrained.target_logits(one)[0, 0].double() / 0.7).softmax(-1).detach()
    shares = torch.bincount(tokens[:, 0], minlength=21) / 4000
    assert (shares - expected).abs().max() < 0.02


def test_a_perturbation_that_is_named_twice_is_tried_once():
    tried = arms("tabletop_goal", ["swap", "clean", "swap"], episodes=1, seed=5)
    assert tried.table["perturbation"].tolist() == ["clean", "swap"]


def test_arms_are_paired_and_say_what_does_not_count():
    tried = arms("tabletop_goal", ["swap", "shift 90 cm"], episodes=2, seed=5)
    table = tried.table
    assert len(table) == 6
    assert len(tried.scenes) == 4
    impossible: Any = table[table["perturbation"] == "shift 90 cm"]
    assert not impossible["valid"].any()
    assert impossible["reason"].str.startswith("no free place").all()
    for number in range(2):
        rows: Any = table[(table["initial_state"] == number) & table["valid"]]
        one, two = (tried.scenes[scene] for scene in rows["scene"])
        assert one.hand == two.hand
        assert set(one.places.values()) == set(two.places.values())
    with pytest.raises(ValueError, match="episodes=0"):
        arms("tabletop_goal", [], episodes=0, seed=5)


def test_a_trained_policy_repeats_its_place_when_the_items_are_swapped(trained: interp.Subject):
    tried = arms("tabletop_object", ["swap", "object"], episodes=20, seed=31)
    assert tried.table["valid"].all()
    report = robustness(run_arms(trained, tried), trained=0.7)
    assert report.is_trained("policy")
    assert report.outcome("policy", "swap") == "trapped"
    trap = report.interval("trap", "policy", "swap")
    assert trap is not None
    assert trap.low > 0.5


def test_what_the_policy_is_given_can_be_changed(trained: interp.Subject):
    tried = scenes(8)

    def blind(given: dict[str, torch.Tensor], rows: np.ndarray) -> dict[str, torch.Tensor]:
        assert len(rows) == len(given["items"])
        return {**given, "items": given["items"].clone().fill_(0), "words": given["words"] * 0}

    seen = [one.success for one in rollouts(trained, tried)]
    unseen = [one.success for one in rollouts(trained, tried, change=blind)]
    assert sum(seen) > sum(unseen)


def test_a_film_is_of_the_episode_that_is_run(trained: interp.Subject):
    tried = scenes(3)
    expected = rollouts(trained, tried, seed=2)[1]
    try:
        episode, pictures = film(trained, tried, 1, seed=2, side=48)
    except ImportError as error:
        pytest.skip(f"no renderer here: {error}")
    np.testing.assert_array_equal(episode.path, expected.path)
    assert pictures.shape == (len(episode.path), 3, 48, 48)
    assert 0 <= pictures.min() < pictures.max() <= 1
    assert not torch.equal(pictures[0], pictures[-1])


def test_interventions_count_in_episodes(trained: interp.Subject):
    tried = scenes(4)
    before = rollouts(trained, tried)
    with trained.intervened(interp.Zero(trained.units("blocks.*.neurons", list(range(96))))):
        without = rollouts(trained, tried)
    again = rollouts(trained, tried)
    assert not all(np.array_equal(a.path, b.path) for a, b in zip(before, without, strict=False))
    for one, other in zip(before, again, strict=True):
        np.testing.assert_array_equal(one.path, other.path)


def test_a_subject_that_is_no_policy_and_a_temperature_below_zero_are_refused(
    untrained: interp.Subject,
):
    with pytest.raises(ValueError, match="is not a policy"):
        rollouts(tiny.subject("llama"), scenes(1))
    with pytest.raises(ValueError, match="temperature=-1"):
        rollouts(untrained, scenes(1), temperature=-1)
    with pytest.raises(ValueError, match="without uniform="):
        act(untrained, untrained.stepwise.example().conditioning, 0.5)


def test_the_same_commands_as_for_text(trained: interp.Subject, tmp_path: Path):
    folder = save_policy(trained.module, tmp_path / "policy")
    frames = demonstration_batch(demonstrations("tabletop_object", 8, seed=11))
    file = save_frames(frames, tmp_path / "frames.safetensors")
    ended = run("scan", folder, file, "--out", tmp_path / "scan", "--json")
    assert ended.exit_code == 0, ended.output
    assert json.loads(ended.stdout)["windows"] == len(frames)
    for command in (["localize"], ["ablate", "--fractions", "0.1"]):
        name, *options = command
        out = tmp_path / name
        ended = run(name, folder, file, "--out", out, *options)
        assert ended.exit_code == 0, ended.output
    assert (tmp_path / "ablate" / "drop.parquet").exists()


def test_the_command_names_the_trap(trained: interp.Subject, tmp_path: Path):
    folder = save_policy(trained.module, tmp_path / "policy")
    options = ("--suite", "tabletop_object", "--perturb", "swap,semantic", "--episodes", 8)
    ended = run("robustness", folder, *options, "--out", tmp_path / "out", "--json")
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)
    assert {row["perturbation"] for row in found["outcomes"]} == {"clean", "swap", "semantic"}
    assert (tmp_path / "out" / "robustness.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--length", "8"), "are for texts"),
        (("--tokenizer", "tokenizer.pth"), "--tokenizer is for image models"),
        (("--prefix", "9"), "leaves nothing to predict of 4 tokens"),
    ],
)
def test_options_that_are_not_for_policies_are_refused(
    untrained: interp.Subject, tmp_path: Path, options: tuple[str, ...], message: str
):
    folder = save_policy(untrained.module, tmp_path / "policy")
    frames = demonstration_batch(demonstrations("tabletop_object", 1, seed=11))
    file = save_frames(frames, tmp_path / "frames.safetensors")
    ended = run("scan", folder, file, "--out", tmp_path / "scan", *options)
    assert ended.exit_code == 1
    assert message in " ".join(ended.output.split())
    assert "Traceback" not in ended.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--suite", "tabletop_objekt"), "nearest: tabletop_object"),
        (("--suite", "libero_object"), "interp.adapters.libero"),
        (("--perturb", "swap,taks"), "nearest: task"),
    ],
)
def test_unknown_names_are_refused_before_anything_is_loaded(
    options: tuple[str, ...], message: str
):
    ended = run("robustness", "nowhere", *options)
    assert ended.exit_code != 0
    assert message in " ".join(ended.output.split())


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))
