"""Episodes of a policy on the tabletop, and the table of them that `robustness` reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.data.tabletop.expert import MAX_STEPS, demonstrate
from interp.data.tabletop.observations import conditioning_of, tokens_to_actions
from interp.data.tabletop.perturbations import CannotPerturb, perturb
from interp.data.tabletop.scenes import Place, Scene, distance, suite
from interp.data.tabletop.simulator import Observation, Tabletop
from interp.models.policy.checkpoints import policy_of
from interp.models.policy.policy import ACTION_TOKENS
from interp.progress import track
from interp.subject.decoding import Decoder
from interp.subject.subject import Subject, evaluating

Conditioning = dict[str, Tensor]
# Changes what a policy is given: from its conditioning and the numbers of the episodes to another
# conditioning of the same shapes.
Change = Callable[[Conditioning, Int[np.ndarray, " rows"]], Conditioning]

_LOW = 0.075  # metres above the surface: a hand below that has gone for something
_AT = 0.035  # metres: how near to a place it has gone for that place
_SENSITIVE_FRAMES = 4  # of a clean episode, on which the effect of another instruction is measured


@dataclass(frozen=True, eq=False)
class Episode:
    """What a policy did in a scene.

    Attributes:
        scene: the scene.
        path: [steps + 1, 3] where the tip of the hand was, in metres.
        went_for: where it first went down or took something; None if nowhere.
        taken: the first item that it took; None for none.
        in_basket: the items that lay in the basket in the end.
        observations: what it saw before each action.
    """

    scene: Scene
    path: Float[np.ndarray, "time 3"]
    went_for: Place | None
    taken: str | None
    in_basket: tuple[str, ...]
    observations: tuple[Observation, ...]

    @property
    def success(self) -> bool:
        """Whether the goal was reached."""
        return set(self.in_basket) == set(self.scene.goals)

    @property
    def old_goal(self) -> bool:
        """Whether the goal of the scene that this one was made from was reached."""
        return self.scene.trained_target in self.in_basket

    @property
    def wrong_item(self) -> bool:
        """Whether an item that was not to be there lay in the basket."""
        return not set(self.in_basket) <= set(self.scene.goals)

    @property
    def old_place(self) -> bool:
        """Whether the hand first went for where the target was in training: to within 3.5 cm, and
        not nearer to where it is now."""
        if self.went_for is None:
            return False
        old = distance(self.went_for, self.scene.trained_place)
        return old <= _AT and old <= distance(self.went_for, self.scene.places[self.scene.target])


def rollouts(
    policy: Subject,
    scenes: Sequence[Scene],
    *,
    temperature: float = 0.5,
    seed: int = 0,
    change: Change | None = None,
    batch_size: int = 40,
    label: str = "episodes",
) -> list[Episode]:
    """Runs a policy in scenes, many at once, with the instruction of each scene.

    Interventions and edits of the policy that are active count: `with subject.intervened(plan):`.
    After each observation one action is drawn and executed. An episode ends when the goal is
    reached, when a wrong item is in the basket, or after 60 steps for each item of the goal.

    Args:
        policy: a policy, as `interp.load` returns it.
        scenes: the scenes.
        temperature: of the softmax that tokens are drawn from; 0 takes the most likely ones, with
            which some hands freeze for ever.
        seed: seed of the draws; each episode has draws of its own, the same whatever runs beside.
        change: changes what the policy is given, to see what it needs.
        batch_size: number of scenes that run at once.
        label: of the progress bar.

    Raises:
        ValueError: a negative temperature, a goal that holds at reset, or a subject that is no
            policy.
        ImportError: MuJoCo is missing.

    Example:
        >>> from interp.data.tabletop.scenes import SUITES
        >>> from interp.memorization.rollouts import rollouts
        >>> from interp.models.policy.policy import Policy, PolicyConfig
        >>> untrained = interp.load(Policy(PolicyConfig(width=16, depth=1, heads=2, hidden=32)))
        >>> scene = SUITES["tabletop_object"].scene("red box", seed=0, number=0)
        >>> [episode] = rollouts(untrained, [scene])
        >>> episode.success, len(episode.path)
        (False, 61)
    """
    policy_of(policy.module)
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature}: expected 0 or more")
    found: list[Episode] = []
    starts = range(0, len(scenes), batch_size)
    tabletops = [Tabletop() for _ in range(min(batch_size, len(scenes)))]
    for start in track(starts, label):
        part = scenes[start : start + batch_size]
        numbers = np.arange(start, start + len(part))
        found += _run(policy, part, numbers, tabletops, temperature, seed, change)
    return found


def film(
    policy: Subject,
    scenes: Sequence[Scene],
    number: int,
    *,
    temperature: float = 0.5,
    seed: int = 0,
    side: int = 128,
) -> tuple[Episode, Float[Tensor, "time 3 side side"]]:
    """Returns one of the episodes that `rollouts` would run, and pictures of it.

    Args:
        policy, scenes, temperature, seed: as for `rollouts`.
        number: which of the scenes.
        side: of the pictures, in pixels.

    Returns:
        The episode, and what the camera above the table saw before the first and after each action,
        in [0, 1].

    Raises:
        IndexError: there is no such scene.
        ImportError: MuJoCo or a renderer is missing.
    """
    pictures: list[Tensor] = []

    def draw(tabletop: Tabletop) -> None:
        picture = torch.from_numpy(tabletop.render(side).copy())
        pictures.append(picture.permute(2, 0, 1) / 255)

    with Tabletop() as tabletop:
        # Its number among all scenes, so that it has the draws that it has in `rollouts`.
        one = np.array([number])
        [episode] = _run(
            policy, [scenes[number]], one, [tabletop], temperature, seed, None, watch=draw
        )
    return episode, torch.stack(pictures)


def _run(
    policy: Subject,
    scenes: Sequence[Scene],
    numbers: Int[np.ndarray, " scenes"],
    tabletops: Sequence[Tabletop],
    temperature: float,
    seed: int,
    change: Change | None,
    watch: Callable[[Tabletop], None] = lambda _: None,
) -> list[Episode]:
    # The last batch may have fewer scenes than there are tabletops.
    seen = [[tabletop.reset(scene)] for tabletop, scene in zip(tabletops, scenes, strict=False)]
    for tabletop in tabletops[: len(scenes)]:
        watch(tabletop)
    limits = np.array([MAX_STEPS * len(scene.goals) for scene in scenes])
    # [scenes, steps, tokens]. Each generator fills its numbers step by step: those of an episode
    # depend neither on the batch that it is in nor on how long others may last.
    draws = np.stack(
        [
            np.random.default_rng([seed, number]).random((limits.max(), ACTION_TOKENS))
            for number in numbers.tolist()
        ]
    )
    results: list[tuple[str, ...]] = [()] * len(scenes)
    active = np.arange(len(scenes))
    for step in range(limits.max()):
        rows: list[int] = active.tolist()
        given = conditioning_of(
            [seen[row][-1] for row in rows],
            [tabletops[row].language_instruction for row in rows],
        )
        if change is not None:
            given = change(given, numbers[active])
        tokens = act(policy, given, temperature, draws[active, step])
        going: list[int] = []
        for row, action in zip(rows, tokens_to_actions(tokens), strict=True):
            observation, _, done, info = tabletops[row].step(action)
            watch(tabletops[row])
            seen[row].append(observation)
            results[row] = info["in_basket"]
            if not done and step + 1 < limits[row]:
                going.append(row)
        # Episodes that are over leave the batch of the policy.
        active = np.array(going, dtype=int)
        if not len(active):
            break
    return [
        _episode(scene, observations, in_basket)
        for scene, observations, in_basket in zip(scenes, seen, results, strict=True)
    ]


def _episode(scene: Scene, seen: Sequence[Observation], in_basket: tuple[str, ...]) -> Episode:
    path = np.stack([observation.hand for observation in seen])
    went_for: Place | None = None
    taken: str | None = None
    for observation in seen:
        is_low = observation.hand[2] - scene.surface.height < _LOW
        if went_for is None and (is_low or observation.holding):
            went_for = (float(observation.hand[0]), float(observation.hand[1]))
        # An observation does not name what is held: it is the item nearest to the hand.
        if observation.holding:
            offsets = observation.positions - observation.hand
            taken = observation.names[int(np.linalg.norm(offsets, axis=1).argmin())]
            break
    # Nothing was done after the last observation.
    return Episode(scene, path, went_for, taken, in_basket, tuple(seen[:-1]))


def act(
    policy: Subject,
    conditioning: Mapping[str, Tensor],
    temperature: float = 0.0,
    uniform: Float[np.ndarray, "batch 4"] | None = None,
) -> Int[Tensor, "batch 4"]:
    """Returns the tokens of the next action.

    Args:
        policy: the policy.
        conditioning: what it is given: see `conditioning_of`.
        temperature: 0 for the most likely tokens.
        uniform: [batch, 4] random numbers in [0, 1) that tokens are drawn by; for a temperature
            above 0.

    Raises:
        ValueError: a temperature above 0 without these numbers.
    """
    if temperature and uniform is None:
        raise ValueError(f"temperature={temperature} without uniform=: expected numbers to draw by")
    rows = len(conditioning["words"])
    on_device = {name: value.to(policy.device) for name, value in conditioning.items()}
    decoder = Decoder(policy, rows, on_device)
    new = torch.empty(rows, 0, dtype=torch.long, device=policy.device)
    tokens: list[Tensor] = []
    with torch.no_grad(), evaluating(policy):
        for token in range(ACTION_TOKENS):
            logits = decoder.feed(new)[:, -1].double().cpu()
            if uniform is not None and temperature:
                # The first token whose cumulated probability reaches the random number.
                shares = (logits / temperature).softmax(-1).cumsum(-1)
                drawn = torch.from_numpy(uniform[:, token, None])
                # Rounding can leave the last share a little below 1.
                chosen = (shares < drawn).sum(-1).clamp(max=logits.shape[-1] - 1)
            else:
                chosen = logits.argmax(-1)
            tokens.append(chosen)
            new = chosen[:, None].to(policy.device)
    return torch.stack(tokens, 1)


@dataclass(frozen=True, eq=False)
class Arms:
    """Scenes in which a policy is tried, and which of them count.

    Attributes:
        table: one row per scene: `perturbation`, `task`, `seed`, `initial_state`, `valid`,
            `reason`, and `scene`, its number in `scenes`, -1 where there is none.
        scenes: the scenes.
    """

    table: pd.DataFrame
    scenes: list[Scene]


def arms(suite_name: str, perturbations: Sequence[str], episodes: int, seed: int) -> Arms:
    """Returns the scenes of a suite, clean and perturbed, as many of each task.

    The expert is tried in each of them. Where it fails, where the scene allows no such change, or
    where an item moves by itself, the scene does not count.

    Args:
        suite_name: name of the suite.
        perturbations: names, see `interp.data.tabletop.perturbations.NAMES`; the clean scenes are
            always there.
        episodes: scenes per perturbation.
        seed: seed of scenes and perturbations.

    Raises:
        ValueError: an unknown suite or perturbation, or no episodes.
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes}: expected at least 1")
    drawn = suite(suite_name)
    # An episode that is there twice would be refused, after all of them were run.
    names = list(dict.fromkeys(["clean", *perturbations]))
    scenes: list[Scene] = []
    rows: list[dict[str, Any]] = []
    tabletop = Tabletop()
    for number in track(range(episodes), "scenes"):
        task = drawn.tasks[number % len(drawn.tasks)]
        clean = drawn.scene(task, seed, number)
        for name in names:
            # Draws of its own, the same whatever else is asked for.
            draws = np.random.default_rng([seed, number, crc32(name.encode())])
            row = {"perturbation": name, "task": task, "seed": seed, "initial_state": number}
            try:
                scene, _ = perturb(clean, name, draws)
                reason = _wrong_with(tabletop, scene)
            except CannotPerturb as error:
                rows.append({**row, "scene": -1, "valid": False, "reason": str(error)})
                continue
            rows.append({**row, "scene": len(scenes), "valid": not reason, "reason": reason})
            scenes.append(scene)
    return Arms(pd.DataFrame(rows), scenes)


def _wrong_with(tabletop: Tabletop, scene: Scene) -> str:
    """Why an episode in a scene would mean nothing; "" if it means something."""
    tabletop.reset(scene)
    for _ in range(10):
        # The hand stays where it is and does not suck.
        tabletop.step([0, 0, 0, 0, 0, 0, -1])
    if not tabletop.is_at_rest():
        return "items move by themselves"
    if demonstrate(tabletop, scene) is None:
        return "the expert fails"
    return ""


def run_arms(
    policy: Subject,
    tried: Arms,
    *,
    temperature: float = 0.5,
    seed: int = 0,
    change: Change | None = None,
) -> pd.DataFrame:
    """Runs a policy in the scenes and returns the table of episodes that `robustness` reads.

    Args:
        policy: the policy.
        tried: the scenes.
        temperature, seed, change: see `rollouts`.

    Returns:
        The rows of `tried.table`, with `success`, `old_goal`, `old_place`, `wrong_item`, `path`,
        `taken` and `in_basket`, and with `actions` [4 frames, 3]: what the policy would do in the
        first frames of the clean episode, under the instruction of this one.
    """
    episodes = rollouts(policy, tried.scenes, temperature=temperature, seed=seed, change=change)
    # Each of these has a scene: leaving one as it is cannot fail.
    clean_rows: Any = tried.table[tried.table["perturbation"] == "clean"]
    clean_of = dict(zip(clean_rows["initial_state"], clean_rows["scene"], strict=True))
    rows: list[dict[str, Any]] = []
    for row in tried.table.to_dict("records"):
        if row["scene"] < 0:
            false = dict.fromkeys(("success", "old_goal", "old_place", "wrong_item"), False)
            none = dict.fromkeys(("path", "taken", "in_basket", "actions"))
            rows.append({**row, **false, **none})
            continue
        episode = episodes[row["scene"]]
        rows.append(
            {
                **row,
                "success": episode.success,
                "old_goal": episode.old_goal,
                "old_place": episode.old_place,
                "wrong_item": episode.wrong_item,
                "path": episode.path,
                "taken": episode.taken,
                "in_basket": ", ".join(episode.in_basket) or None,
                "actions": _actions(policy, episodes[clean_of[row["initial_state"]]], episode),
            }
        )
    return pd.DataFrame(rows).drop(columns="scene")


def _actions(policy: Subject, clean: Episode, episode: Episode) -> Float[np.ndarray, "frames 3"]:
    """What a policy would do in the first frames of a clean episode under the instruction of
    another one."""
    seen = clean.observations[:_SENSITIVE_FRAMES]
    given = conditioning_of(seen, [episode.scene.instruction] * len(seen))
    return tokens_to_actions(act(policy, given))[:, :3]
