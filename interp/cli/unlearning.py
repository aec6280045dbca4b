"""Unlearning of the secrets in files, as the command line runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from interp.data.code_secrets import (
    KINDS,
    SecretFile,
    count_cut_off,
    find_secrets,
    locate_secrets,
    mark,
)
from interp.files import replaced, replaced_folder
from interp.memorization.recitation import NGRAMS, levels, recitation
from interp.mitigation.removal.compare import removal_report
from interp.mitigation.removal.report import RemovalReport
from interp.mitigation.removal.stress import Relearning
from interp.mitigation.unlearning.stopping import Stop
from interp.mitigation.unlearning.unlearn import unlearn
from interp.subject.batch import Batch
from interp.subject.subject import Subject
from interp.training.fit import Checkpoints

# The n of the EL_n that training stops by.
_STOPPED_BY = 10
_WITH_SECRETS = ("forget", "others", "twins")


@dataclass(frozen=True)
class Recipe:
    """How secrets are unlearned and how the result is examined.

    Attributes:
        method, options: method of unlearning, and its options.
        thresholds: levels at which to stop; those of the unseen texts if there are none.
        lr: learning rate.
        epochs: largest number of epochs.
        length: number of tokens to keep of each file with secrets.
        text_length: number of tokens to keep of each other text.
        checkpoint: number of epochs between two writes of the state.
        relearning: how the report tries to bring the secrets back; None to leave that out.
        batch_size: batch size of measurements.
    """

    method: str = "codeeraser"
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    thresholds: Mapping[str, float] = field(default_factory=dict[str, float])
    lr: float = 3e-6
    epochs: int = 100
    length: int = 512
    text_length: int = 128
    checkpoint: int = 5
    relearning: Relearning | None = None
    batch_size: int = 16


@dataclass(frozen=True)
class TextSets:
    """The texts of an unlearning, by their roles: `forget`, and those of `retain`, `unseen`,
    `twins`, `others`, `memorized` and `held-out` that were given.

    Attributes:
        files: texts in which secrets are marked.
        texts: the others.
    """

    files: Mapping[str, tuple[SecretFile, ...]]
    texts: Mapping[str, tuple[str, ...]]


def read_sets(
    texts: Mapping[str, Sequence[str]], secrets: Path | None, kinds: Sequence[str] | None
) -> TextSets:
    """Finds the secrets in texts, and checks that no text contradicts another one.

    Args:
        texts: the texts by their roles (see `TextSets`).
        secrets: a file with one secret per line; by default they are found.
        kinds: the kinds of secret to find, see `find_secrets`; all by default.

    Raises:
        ValueError: a text to forget, to compare or to spare has no secret; a text of another role
            is one that is to be forgotten, or contains a secret of it; there are not as many twins
            as texts to forget; or the file of secrets is empty.

    Example:
        >>> from interp.cli.unlearning import read_sets
        >>> sets = read_sets({"forget": ["mail ann@corp.org"]}, None, ["email"])
        >>> sets.files["forget"][0].secrets[0].value
        'ann@corp.org'
        >>> read_sets({"forget": ["nothing"]}, None, ["email"])
        Traceback (most recent call last):
        ValueError: text 0 of --forget has no secret (looked for: email): ...
    """
    values = None if secrets is None else _values(secrets)
    kinds = KINDS if not kinds else tuple(kinds)
    looked_for = f"a line of {secrets}" if values is not None else ", ".join(kinds)
    files: dict[str, tuple[SecretFile, ...]] = {}
    plain: dict[str, tuple[str, ...]] = {}
    for role, given in texts.items():
        if not given:
            raise ValueError(f"--{role} has no texts: expected at least one")
        found = [
            _marked(role, number, text, values, kinds)
            for number, text in enumerate(given)
            if role in (*_WITH_SECRETS, "unseen")
        ]
        without = [number for number, file in enumerate(found) if not file.secrets]
        if role in _WITH_SECRETS and without:
            raise ValueError(
                f"text {without[0]} of --{role} has no secret (looked for: {looked_for}): leave it "
                "out, or name its secrets, one per line, in a file for --secrets"
            )
        # A role has files with secrets only if each of its texts has one.
        if found and not without:
            files[role] = tuple(found)
        else:
            plain[role] = tuple(given)
    _check_contradictions(texts, files["forget"])
    if "twins" in files and len(files["twins"]) != len(files["forget"]):
        raise ValueError(
            f"--twins has {len(files['twins'])} texts and --forget {len(files['forget'])}: "
            "expected one twin per text, in the same order"
        )
    return TextSets(files, plain)


def notes_on(subject: Subject, sets: TextSets, length: int) -> list[str]:
    """Returns what of the texts is not measured as one might expect.

    Args:
        subject: tokenizes.
        sets: the texts.
        length: number of tokens that are kept of each file with secrets.
    """
    notes: list[str] = []
    for role, files in sets.files.items():
        # Without a word a secret behind the cut would seem to be forgotten, or measured.
        cut_off = count_cut_off(subject, files, length)
        if cut_off:
            secrets = sum(len(file.secrets) for file in files)
            notes.append(
                f"{cut_off} of {secrets} secrets of --{role} do not lie fully in the first "
                f"{length} tokens of their text: what lies behind is neither trained on nor "
                "measured; raise --length, or split these texts"
            )
    if "unseen" in sets.texts:
        notes.append(
            "not every text of --unseen has a secret, so that all of its tokens are measured, and "
            "not those of secrets"
        )
    return notes


def check_finished(out: Path) -> None:
    """Checks that a folder does not hold a model whose training cannot be told.

    Args:
        out: the folder of an unlearning.

    Raises:
        ValueError: it has a model and no state of its training.
    """
    if (out / "model").exists() and not _checkpoints(out, 1).state.exists():
        raise ValueError(
            f"{out / 'model'} exists, without the state of its training: give another --out, or "
            "remove it"
        )


def unlearn_files(
    before: Subject, after: Subject, sets: TextSets, recipe: Recipe, out: Path
) -> tuple[pd.DataFrame, RemovalReport]:
    """Unlearns secrets, and writes the model, its training and the report.

    Args:
        before: the model.
        after: the same model in other memory, which is trained.
        sets: the texts.
        recipe: how.
        out: folder of the files. What is finished in it is not done again.

    Returns:
        The history of the training (see `unlearn`), and the report.

    Raises:
        ValueError: a model that is not one of Hugging Face, or see `unlearn`.
    """
    _check_savable(after)
    batches = _batches(before, sets, recipe)
    forget = batches["forget"]
    unseen = batches.get("unseen")
    thresholds = dict(recipe.thresholds)
    if not thresholds:
        assert unseen is not None
        thresholds = levels(
            recitation(before, unseen, (_STOPPED_BY,), batch_size=recipe.batch_size)
        )

    history = unlearn(
        after,
        forget,
        batches.get("retain"),
        recipe.method,
        stop=Stop(thresholds, epochs=recipe.epochs),
        lr=recipe.lr,
        batch_size=recipe.batch_size,
        checkpoints=_checkpoints(out, recipe.checkpoint),
        **recipe.options,
    )
    with replaced(out / "training.parquet") as temporary:
        history.to_parquet(temporary)
    if not (out / "model").exists():
        with replaced_folder(out / "model") as temporary:
            after.module.save_pretrained(temporary)  # pyright: ignore[reportCallIssue]
            if after.tokenizer is not None:
                after.tokenizer.save_pretrained(temporary)

    # EL is reported for the n that training stopped by, too.
    found = Stop(thresholds).ngrams
    report = removal_report(
        before,
        after,
        forget,
        twins=batches.get("twins"),
        retain=batches.get("retain"),
        memorized=batches.get("memorized"),
        others=batches.get("others"),
        held_out=batches.get("held-out"),
        unseen=unseen,
        thresholds=thresholds,
        ngrams=sorted({*NGRAMS, *found}),
        relearning=recipe.relearning,
        batch_size=recipe.batch_size,
    )
    if not recipe.thresholds:
        report = replace(report, source="unseen data")
    report.save(out)
    return history, report


def _values(path: Path) -> tuple[str, ...]:
    lines = path.read_text(encoding="utf-8").splitlines()
    values = tuple(line.strip() for line in lines if line.strip())
    if not values:
        raise ValueError(f"{path} is empty: expected one secret per line")
    return values


def _marked(
    role: str, number: int, text: str, values: Sequence[str] | None, kinds: Sequence[str]
) -> SecretFile:
    """A text with its secrets: those that are found or, if they are named, every place of them."""
    name = f"text {number} of --{role}"
    if values is None:
        return SecretFile(name, text, find_secrets(text, kinds))
    return SecretFile(name, text, locate_secrets(text, dict.fromkeys(values, "named")))


def _check_contradictions(texts: Mapping[str, Sequence[str]], forget: Sequence[SecretFile]) -> None:
    """Refuses a text of another role that is to be forgotten, or has a secret that is.

    Whole texts are compared, and not the tokens that are kept of them: where they are cut must not
    decide whether a secret is noticed.
    """
    reasons = {
        "retain": "it would be trained to be kept",
        "unseen": "the model has seen it",
        "twins": "the model has seen it",
        "held-out": "the model has seen it",
        "others": "forgetting it would count as damage",
        "memorized": "forgetting it would count as damage",
    }
    for role, reason in reasons.items():
        for number, text in enumerate(texts.get(role, ())):
            for file in forget:
                if text == file.text:
                    raise ValueError(
                        f"text {number} of --{role} is {file.name}: {reason}; leave it out of one "
                        "of them"
                    )
                for secret in file.secrets:
                    # Where it is and not what: this message may be stored in a log.
                    if secret.value in text:
                        raise ValueError(
                            f"text {number} of --{role} contains the secret of {file.name} at "
                            f"characters {secret.start} to {secret.stop}: {reason}; leave that "
                            "text out"
                        )


def _check_savable(subject: Subject) -> None:
    if not hasattr(subject.module, "save_pretrained"):
        raise ValueError(
            f"{subject.name} is not a Hugging Face model, so that it cannot be saved as a model "
            "folder: expected a model folder, a GGUF file or a hub id"
        )


def _checkpoints(out: Path, epochs: int) -> Checkpoints:
    # Two optimizer steps are the longest epoch.
    return Checkpoints(out / "training", every=2 * epochs)


def _batches(subject: Subject, sets: TextSets, recipe: Recipe) -> dict[str, Batch]:
    batches: dict[str, Batch] = {}
    for role, files in sets.files.items():
        batches[role] = mark(subject, files, recipe.length)
    for role, texts in sets.texts.items():
        batches[role] = subject.encode_all(texts, recipe.text_length)
    return batches
