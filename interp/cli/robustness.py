"""The command that tries a policy in perturbed scenes: `interp robustness`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli.options import AsJson
from interp.cli.steps import load_subject, plain_errors, print_result
from interp.experiment.options import Device

_PERTURBATIONS = "swap,shift 14 cm,semantic,task,unseen"


@plain_errors
def robustness(
    policy: Annotated[str, typer.Argument(help="Folder of a policy, as `save_policy` writes it.")],
    suite: Annotated[
        str,
        typer.Option(
            help="Where it is tried: tabletop_object, tabletop_goal or tabletop_decorrelated. "
            "The suites of LIBERO need a policy of their own: see interp.adapters.libero."
        ),
    ] = "tabletop_object",
    perturb: Annotated[
        str,
        typer.Option(
            help="Perturbations, with commas between them: object, swap, shift N cm, semantic, "
            "task, environment, corrupted xxx, corrupted random words, other_task, unseen, "
            "composition, sequence."
        ),
    ] = _PERTURBATIONS,
    episodes: Annotated[int, typer.Option(help="Episodes of each.", min=1)] = 40,
    seed: Annotated[int, typer.Option(help="Seed of scenes, perturbations and actions.")] = 0,
    temperature: Annotated[
        float, typer.Option(help="Of the actions; 0 for the most likely ones.", min=0.0)
    ] = 0.5,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the tables and the figure; none by default."),
    ] = None,
    device: Device = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Try a policy in clean and in perturbed scenes, and tell failure from memorization.

    A failure is a trap if the hand went where the target was in training, or if the task of
    training was done. Without a control policy, trained on decorrelated scenes, no trap is called
    memorized here: compare the two in Python with interp.memorization.robustness.

    Example: `interp robustness policies/object --suite tabletop_object --perturb swap,task`
    """
    from interp.data.tabletop.perturbations import check_name
    from interp.data.tabletop.scenes import suite as find_suite
    from interp.files import writable
    from interp.memorization.robustness import ALL
    from interp.memorization.robustness import robustness as report_of
    from interp.memorization.rollouts import arms, run_arms

    if suite.startswith("libero"):
        raise ValueError(
            f"--suite {suite}: a policy of the tabletop reads none of LIBERO's cameras and joints; "
            "run a policy of your own with interp.adapters.libero.run_episode, and give the table "
            "of its episodes to interp.memorization.robustness.robustness"
        )
    names = [name.strip() for name in perturb.split(",") if name.strip()]
    find_suite(suite)
    for name in names:
        check_name(name)
    if out is not None:
        writable(out)
    subject = load_subject(policy, [], device=device)
    tried = arms(suite, names, episodes, seed)
    report = report_of(run_arms(subject, tried, temperature=temperature, seed=seed))
    if out is not None:
        report.save(out)
    outcomes = report.outcomes().set_index(["regime", "perturbation", "task"])
    table = report.table().join(outcomes)
    table = table.xs(ALL, level="task").reset_index("perturbation").round(3)
    summary: dict[str, Any] = {
        "suite": suite,
        "episodes": episodes,
        "seed": seed,
        "verdict": report.verdict,
    }
    if as_json:
        summary["outcomes"] = table.to_dict("records")
    print_result(as_json, summary, table, "what the perturbations do")
