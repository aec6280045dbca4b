"""One policy, and what is measured on it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

import interp
from experiments.libero_pro.presets import SUITE_OF, Preset, Regime
from interp.analysis.activation_patching import donor_plan
from interp.analysis.probes import fit_ridge_probe, rows_at
from interp.data.tabletop.expert import demonstrations
from interp.data.tabletop.frames import (
    demonstration_batch,
    is_approach,
    training_batches,
    weighted_loss,
)
from interp.data.tabletop.observations import conditioning_of, tokens_to_actions
from interp.data.tabletop.perturbations import perturb
from interp.data.tabletop.scenes import Scene, scattered, suite
from interp.data.tabletop.simulator import Tabletop
from interp.localization.registry import localize
from interp.memorization.robustness import (
    distance_between_tasks,
    path_deviation,
    text_sensitivity,
)
from interp.memorization.rollouts import Arms, Change, act, arms, rollouts, run_arms
from interp.models.policy.checkpoints import policy_of
from interp.models.policy.policy import ACTION_TOKENS, BINS, Policy
from interp.progress import track
from interp.subject.batch import Batch
from interp.subject.subject import Subject, evaluating
from interp.training.fit import fit

FOUND = "gradient_x_activation"
RANDOM = "random"
NOTHING = "nothing"
INPUTS = ("words", "items", "state")
ANOTHER_TASK = "of another task"
SAME_TASK = "of the same task"
POLICY = "policy"
UNTRAINED = "untrained network"
SHUFFLED = "shuffled places"
CLEAN_SCENES = "clean scenes"
SCATTERED = "scattered items"
TRAINING = "training"
HELD_OUT = "held out"
# Seeds of what no policy is trained on, far from those of the demonstrations.
_HELD_OUT_SEED = 10_000
_SCENES_SEED = 20_000
_HELD_OUT_DEMONSTRATIONS = 40
_PROBED_SEED = 50_000
_UNTRAINED_SEED = 60_000
_TRIED_SEED = 70_000
_NEXT_ATTEMPT = 100_000  # between the seeds of two trainings of a policy
TRAINED = 0.9  # clean success without which nothing else says anything
_SCANNED = 1000  # frames of each kind
_ALONG_Y = 0.5  # a donor counts that would move the hand otherwise by at least this, from -1 to 1


@dataclass(frozen=True, eq=False)
class Trained:
    """A policy and what it was trained on.

    Attributes:
        regime: how it was trained.
        policy: the policy.
        frames: what it was trained on.
        held_out: frames of other demonstrations of its suite.
        tasks: the task of each of these.
        clean_success: in scenes that are used for nothing else, after each training.
    """

    regime: Regime
    policy: Subject
    frames: Batch
    held_out: Batch
    tasks: np.ndarray
    clean_success: tuple[float, ...] = ()


def train(preset: Preset, regime: Regime, seed: int) -> Trained:
    """Trains the policy of a regime.

    Some trainings never find out which item a word means, and a policy that does not do its own
    task says nothing about perturbations. So a training that fails in clean scenes is done again
    from other weights; nothing else decides about that.
    """
    suite_name = SUITE_OF[regime.name]
    frames = demonstration_batch(demonstrations(suite_name, regime.demonstrations, seed))
    tried = _valid_scenes(arms(suite_name, [], preset.tried, _TRIED_SEED + seed))
    policy = _fitted(preset, regime, frames, seed)
    clean_success = [_success(policy, tried, seed)]
    while clean_success[-1] < TRAINED and len(clean_success) < preset.attempts:
        policy = _fitted(preset, regime, frames, seed + _NEXT_ATTEMPT * len(clean_success))
        clean_success.append(_success(policy, tried, seed))
    others = demonstrations(suite_name, _HELD_OUT_DEMONSTRATIONS, _HELD_OUT_SEED + seed)
    lengths = [len(each.actions) for each in others]
    tasks = np.repeat([each.scene.task for each in others], lengths)
    held_out = demonstration_batch(others)
    return Trained(regime, policy, frames, held_out, tasks, tuple(clean_success))


def _fitted(preset: Preset, regime: Regime, frames: Batch, seed: int) -> Subject:
    policy = interp.load(Policy(preset.shape, seed))
    fit(
        policy,
        training_batches(frames, regime.steps, preset.batch_size, seed),
        regime.steps,
        preset.lr,
        betas=(0.9, 0.98),
        weight_decay=0.01,
        warmup=min(50, regime.steps // 4),
        decay=regime.steps - min(50, regime.steps // 4),
        floor=0.05,
        clip=1.0,
        objective=weighted_loss,
    )
    return policy


def _valid_scenes(tried: Arms) -> list[Scene]:
    """The scenes that can be done: those in which the expert succeeds."""
    valid = tried.table[tried.table["valid"]]
    return [tried.scenes[number] for number in valid["scene"]]


def _success(policy: Subject, scenes: list[Scene], seed: int) -> float:
    run = rollouts(policy, scenes, seed=seed)
    return float(np.mean([each.success for each in run]))


def trainings(trained: Trained) -> pd.DataFrame:
    """Returns one row per training of a policy, the last of which is the one that is measured:
    `clean_success` in the scenes that decide whether it is trained again."""
    table = pd.DataFrame({"clean_success": trained.clean_success})
    return table.assign(attempt=range(len(table)), policy=trained.regime.name)


def episodes(preset: Preset, trained: Trained, scenes: str, seed: int) -> pd.DataFrame:
    """Returns one row per episode of a policy in the scenes of a regime.

    Besides what `run_arms` returns, `path_deviation` is from the path in the clean scene, in
    metres; `text_sensitivity` is how far the instruction moves the first actions of the clean
    episode, as a share of the distance between tasks.
    """
    tried = arms(SUITE_OF[scenes], preset.perturbations, preset.episodes, _SCENES_SEED + seed)
    table = run_arms(trained.policy, tried, seed=seed)
    # An episode is compared with that of the same initial state without a change.
    clean = table[table["perturbation"] == "clean"].set_index("initial_state")
    actions = np.concatenate(list(clean["actions"]))
    tasks = np.repeat(clean["task"], [len(each) for each in clean["actions"]])
    between = distance_between_tasks(actions, tasks)
    deviations: list[float] = []
    sensitivities: list[float] = []
    for row in table.to_dict("records"):
        own = clean.loc[row["initial_state"]]
        there = row["path"] is not None
        deviations.append(path_deviation(own["path"], row["path"]) if there else np.nan)
        known = there and between > 0
        sensitivities.append(
            text_sensitivity(own["actions"], row["actions"], between) if known else np.nan
        )
    table = table.drop(columns=["path", "actions"])
    return table.assign(
        path_deviation=deviations,
        text_sensitivity=sensitivities,
        policy=trained.regime.name,
        scenes=scenes,
    )


def blind(preset: Preset, trained: Trained, seed: int) -> pd.DataFrame:
    """Returns one row per clean episode in which a policy is not given a part of its input: no
    words, or no items. With no items it can only replay a trajectory."""
    tried = arms(SUITE_OF[trained.regime.name], [], preset.episodes, _SCENES_SEED + seed)
    numbers = tried.table[tried.table["valid"]]["initial_state"]
    scenes = _valid_scenes(tried)
    changes: dict[str, Change | None] = {
        "everything": None,
        "no words": lambda given, _: {**given, "words": torch.zeros_like(given["words"])},
        "no items": lambda given, _: {**given, "items": torch.zeros_like(given["items"])},
    }
    parts: list[pd.DataFrame] = []
    for name, change in changes.items():
        run = rollouts(trained.policy, scenes, seed=seed, change=change)
        rows = [
            {"episode": number, "success": float(each.success)}
            for number, each in zip(numbers, run, strict=True)
        ]
        parts.append(pd.DataFrame(rows).assign(given=name))
    return pd.concat(parts, ignore_index=True).assign(policy=trained.regime.name)


def extraction(trained: Trained, seed: int) -> pd.DataFrame:
    """Returns one row per frame: whether the policy continues it with exactly the action of the
    demonstration, for frames that it was trained on and for others of the same suite."""
    rng = np.random.default_rng([seed, 5])
    parts: list[pd.DataFrame] = []
    for name, frames in ((TRAINING, trained.frames), (HELD_OUT, trained.held_out)):
        # Frames of both sets are numbered from 0, but are no pairs: an arbitrary pairing, where
        # there are as many of both, leaves the variance of a difference what it is.
        chosen = frames.rows(rng.permutation(len(frames))[:_SCANNED])
        found = interp.scan(trained.policy, chosen, batch_size=250)
        columns: Any = found[["exact", "accuracy", "log_p"]].astype(float)
        parts.append(columns.assign(data=name, frame=range(len(found))))
    return pd.concat(parts, ignore_index=True).assign(policy=trained.regime.name)


def inputs(preset: Preset, trained: Trained, seed: int) -> pd.DataFrame:
    """Returns one row per held-out frame on the way to an item, and part of the input: how far the
    action moves when that part comes from another frame, as a share of the distance between
    tasks."""
    rng = np.random.default_rng([seed, 6])
    frames, tasks = _on_the_way(preset, trained, rng)
    before = _directions(trained.policy, frames)
    between = distance_between_tasks(before, tasks)
    rows: list[pd.DataFrame] = []
    for source in (ANOTHER_TASK, SAME_TASK):
        donors = _donors(tasks, rng, same=source == SAME_TASK)
        for part in INPUTS:
            given = {**frames.conditioning, part: frames.conditioning[part][donors]}
            moved = _directions(trained.policy, replace(frames, conditioning=given)) - before
            # Unknown where all tasks have the same actions, as in an untrained policy.
            change = np.linalg.norm(moved, axis=1) / (between if between > 0 else np.nan)
            rows.append(pd.DataFrame({"part": part, "source": source, "change": change}))
    table = pd.concat(rows, ignore_index=True)
    numbers = table.groupby(["part", "source"], sort=False).cumcount()
    return table.assign(frame=numbers, policy=trained.regime.name)


def _on_the_way(
    preset: Preset, trained: Trained, rng: np.random.Generator
) -> tuple[Batch, np.ndarray]:
    approach = is_approach(trained.held_out).nonzero()[:, 0].numpy()
    chosen = rng.permutation(approach)[: preset.frames]
    return trained.held_out.rows(chosen), trained.tasks[chosen]


def _donors(tasks: np.ndarray, rng: np.random.Generator, *, same: bool) -> Tensor:
    """For each row another one of the same task, or one of another task."""
    found: list[int] = []
    for row, task in enumerate(tasks):
        fits = np.flatnonzero((tasks == task) == same)
        others = fits[fits != row]
        # A row without another that fits is its own donor: nothing moves.
        found.append(int(rng.choice(others)) if len(others) else row)
    return torch.tensor(found)


def _directions(policy: Subject, frames: Batch) -> Float[np.ndarray, "frames 3"]:
    return tokens_to_actions(act(policy, frames.conditioning))[:, :3]


def patching(preset: Preset, trained: Trained, seed: int) -> pd.DataFrame:
    """Returns one row per block, part of the input and frame: how far the motion along y goes over
    to that of another task's frame, once the residual stream before the block has that frame's
    values at the positions of the part. What a block has read from a part by then is elsewhere:
    the positions of the action are a part too.

    `share` is (patched - own) / (other - own) of the expected motion along y, given the motion of
    the demonstration along x. Frames count where the two differ by at least a quarter of the
    range.
    """
    rng = np.random.default_rng([seed, 7])
    frames, tasks = _on_the_way(preset, trained, rng)
    donors = _donors(tasks, rng, same=False)
    given = {name: value[donors] for name, value in frames.conditioning.items()}
    other = replace(frames, conditioning=given)
    own_y = _expected_y(trained.policy, frames)
    other_y = _expected_y(trained.policy, other)
    counts = np.abs(other_y - own_y) >= _ALONG_Y
    kept = np.flatnonzero(counts)
    if not len(kept):
        return pd.DataFrame(columns=["block", "part", "frame", "share", "policy"])
    frames, other = frames.rows(kept), other.rows(kept)
    own_y, other_y = own_y[kept], other_y[kept]
    module = policy_of(trained.policy.module)
    rows: list[pd.DataFrame] = []
    for block in track(range(module.config.depth), "patching"):
        # The words, the items, the hand and the first action, whose motions are predicted.
        for segment in module.segments[:4]:
            positions = tuple(range(segment.start, segment.stop))
            plan = donor_plan(trained.policy, f"blocks.{block}.resid_pre", other, positions)
            with trained.policy.intervened(plan):
                patched = _expected_y(trained.policy, frames)
            share = (patched - own_y) / (other_y - own_y)
            rows.append(
                pd.DataFrame({"block": block, "part": segment.name, "frame": kept, "share": share})
            )
    return pd.concat(rows, ignore_index=True).assign(policy=trained.regime.name)


def _expected_y(policy: Subject, frames: Batch) -> Float[np.ndarray, " frames"]:
    with torch.no_grad(), evaluating(policy):
        # The second token is the motion along y; the first, along x, is read from the
        # demonstration.
        logits = policy.target_logits(frames)[:, 1]
    values = torch.linspace(-1, 1, BINS, dtype=torch.double)
    return (logits.double().softmax(-1).cpu() @ values).numpy()


def places(preset: Preset, trained: Trained, scenes: str, seed: int) -> pd.DataFrame:
    """Returns one row per swapped scene, network, block and kind of scenes that a probe was fitted
    on: whether the place that it reads is nearer to where the target was in training than to where
    it lies (`at_old_place`), and how far it is from where it lies, in cm (`error`).

    The residual stream after the block is read before the first action, where the motions along x
    and y are predicted, that along y after a motion of 0 along x. Fitted on clean scenes, where the
    two places are the same, a probe reads what the network has learned to take for the place of the
    target. Fitted on scattered items, it reads where the target lies if that can be read linearly
    there. An untrained network and shuffled places say what a probe reads by itself.
    """
    rng = np.random.default_rng([seed, 9])
    drawn = suite(SUITE_OF[scenes])
    numbers = range(2 * preset.probed)
    clean = [
        drawn.scene(drawn.tasks[number % len(drawn.tasks)], _PROBED_SEED + seed, number)
        for number in numbers
    ]
    # The probe is tested on other scenes than it was fitted on.
    shown, tested = clean[: preset.probed], clean[preset.probed :]
    # Drawn in the same order in every job: the control policy is read in the same scenes.
    swapped = [perturb(scene, "swap", rng)[0] for scene in tested]
    fitted_on = {CLEAN_SCENES: shown, SCATTERED: [scattered(scene, rng) for scene in shown]}
    now = np.array([scene.places[scene.target] for scene in swapped])
    before = np.array([scene.trained_place for scene in swapped])
    networks = {
        POLICY: trained.policy,
        UNTRAINED: interp.load(Policy(preset.shape, _UNTRAINED_SEED + seed)),
    }
    found: list[pd.DataFrame] = []
    for network, policy in networks.items():
        tested_rows = _at_first(policy, swapped)
        for fitted, scenes_shown in fitted_on.items():
            shown_rows = _at_first(policy, scenes_shown)
            targets = np.array([scene.places[scene.target] for scene in scenes_shown])
            labels = {network: targets}
            if network == POLICY:
                labels[SHUFFLED] = rng.permutation(targets)
            for (name, values), block in product(labels.items(), range(preset.shape.depth)):
                read = fit_ridge_probe(shown_rows[block], values).predict(tested_rows[block])
                to_now = np.linalg.norm(read - now, axis=1)
                at_old_place = np.linalg.norm(read - before, axis=1) < to_now
                table = pd.DataFrame({"at_old_place": at_old_place, "error": 100 * to_now})
                table["scene"] = range(len(now))
                found.append(table.assign(network=name, fitted=fitted, block=block))
    return pd.concat(found, ignore_index=True).assign(policy=trained.regime.name, scenes=scenes)


def _at_first(policy: Subject, scenes: list[Scene]) -> list[Float[np.ndarray, "scenes width"]]:
    """For each block the residual stream after it, at the two positions that predict the motion
    along x and y, before anything has moved."""
    with Tabletop() as tabletop:
        seen = [tabletop.reset(scene) for scene in scenes]
    given = conditioning_of(seen, [scene.instruction for scene in scenes])
    # The middle bin is no motion.
    at_rest = torch.full((len(scenes), ACTION_TOKENS), BINS // 2)
    frames = Batch(at_rest, 0, conditioning=given)
    # The position before the first action token predicts it.
    first = policy_of(policy.module).lead - 1
    parts = [
        rows_at(policy, frames, "blocks.*.resid_post", position).values()
        for position in (first, first + 1)
    ]
    # Both positions side by side: [scenes, 2 * width] for each block.
    return [np.concatenate(at_block, axis=1) for at_block in zip(*parts, strict=True)]


def ablation(
    preset: Preset, trained: Trained, reference: Batch, tried: Arms, seed: int
) -> pd.DataFrame:
    """Returns one row per episode after the ablation of neurons: those that the frames of training
    need and frames of decorrelated scenes do not, and the same number of random ones of all blocks.
    These are not matched by block: unlike those of `Selection.random`, they may lie in blocks whose
    neurons cost more or less than those of the neurons that were found.

    Args:
        preset: see `Preset`.
        trained: the policy.
        reference: frames of decorrelated scenes.
        tried: clean and swapped scenes.
        seed: seed of the controls and of the episodes.
    """
    rng = np.random.default_rng([seed, 8])
    approach = is_approach(trained.frames).nonzero()[:, 0].numpy()
    memorized = trained.frames.rows(rng.permutation(approach)[: preset.frames])
    early = is_approach(reference).nonzero()[:, 0].numpy()
    against = reference.rows(rng.permutation(early)[: preset.frames])
    scores = {(FOUND, 0): localize(trained.policy, memorized, against, FOUND, "neurons")}
    for draw in range(preset.draws):
        control = localize(trained.policy, memorized, None, RANDOM, "neurons", seed=seed + draw)
        scores[RANDOM, draw] = control
    parts = [_after(trained, tried, None, seed).assign(method=NOTHING, fraction=0.0, draw=0)]
    for (method, draw), found in track(scores.items(), "ablations"):
        for fraction in preset.fractions:
            run = _after(trained, tried, found.top(fraction), seed)
            parts.append(run.assign(method=method, fraction=fraction, draw=draw))
    return pd.concat(parts, ignore_index=True).assign(policy=trained.regime.name)


def _after(trained: Trained, tried: Arms, units: Any, seed: int) -> pd.DataFrame:
    plan = [] if units is None else interp.Zero(units)
    with trained.policy.intervened(plan):
        run = rollouts(trained.policy, tried.scenes, seed=seed)
    table = tried.table[tried.table["valid"]]
    rows = [
        {
            "arm": arm,
            "episode": number,
            "success": float(run[scene].success),
            "old_place": float(run[scene].old_place),
        }
        # Scenes in which the expert fails were run too, and are left out here.
        for arm, number, scene in zip(
            table["perturbation"], table["initial_state"], table["scene"], strict=True
        )
    ]
    return pd.DataFrame(rows)
