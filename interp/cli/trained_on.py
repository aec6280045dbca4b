"""The commands that ask what a model was trained on: `interp membership` of single texts,
`interp entropy-law` of a corpus and `interp dataset-inference` of a data set."""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli.options import (
    AsJson,
    BatchSize,
    Bos,
    Column,
    Dtype,
    Model,
    Sources,
)
from interp.cli.steps import (
    advise,
    load_subject,
    plain_errors,
    print_result,
    texts_and_notes,
)
from interp.experiment.options import Device

_Prefix = Annotated[
    int,
    typer.Option(
        help="Number of tokens at the start of each window that the model is given.", min=1
    ),
]
_Length = Annotated[
    int, typer.Option(help="Number of tokens after them that it should generate.", min=1)
]
_Stride = Annotated[
    int | None,
    typer.Option(
        help="Number of tokens from the start of one window to the start of the next; by default "
        "the value of `--length`.",
        min=1,
    ),
]
_Trivial = Annotated[
    bool,
    typer.Option(
        "--trivial/--no-trivial",
        help="Whether windows stay whose suffix can be copied from their prompt.",
    ),
]


@plain_errors
def membership(
    model: Model,
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="What the model may have been trained on: text files; .jsonl, .ndjson, .json, "
            ".csv, .tsv or .parquet files with a `text` field or column; any of them as .gz, .bz2 "
            "or .zst; folders of them; patterns in quotes, such as 'corpus/*.parquet'; or data "
            "sets on the hub, as user/name, user/name:configuration or user/name@split."
        ),
    ],
    reference: Annotated[
        list[str] | None,
        typer.Option(
            help="A model with the same tokenizer that was not trained on the texts, such as the "
            "model before it was fine-tuned. May be given several times. Without one, scores "
            "mostly say how predictable a text is."
        ),
    ] = None,
    non_members: Annotated[
        list[Path] | None,
        typer.Option(
            "--nonmembers",
            help="Texts like the others that the model was certainly not trained on, to measure "
            "how well each score tells the two apart. May be given several times.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for table and figure; those in it are replaced.")
    ] = Path("out/membership"),
    length: Annotated[
        int | None,
        typer.Option(help="Number of tokens to measure of each text; all by default.", min=1),
    ] = None,
    column: Column = "text",
    dtype: Dtype = None,
    device: Device = None,
    batch_size: BatchSize = 8,
    bos: Bos = True,  # noqa: FBT002
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Score how likely texts are ones that a model was trained on.

    In every score, higher means more likely. `ratio` is how much better the model predicts a text
    than the reference models do, in nats per token; `informia` is the same token by token. With
    --nonmembers the scores are judged: `auc` is how often one of the texts scores above a
    non-member, and `tpr at 1%` the share of the texts that is found when 1% of the non-members are
    taken for members.

    Writes membership.parquet, with one row per text, and membership.png.

    Example: `interp membership fine-tuned/ texts/ --reference before/ --nonmembers others/
    --out out/membership`
    """
    from interp.cli.membership import judged, score_texts
    from interp.files import writable
    from interp.loading.load import load

    # Loading a model can take minutes, so folder and files are checked first.
    writable(out)
    texts, notes = texts_and_notes(sources, column)
    others, notes_of_others = texts_and_notes(non_members or [], column)
    subject = load_subject(model, [*notes, *notes_of_others], dtype=dtype, device=device)
    references = [load(each, dtype=dtype, device=device) for each in reference or ()]
    frame = score_texts(
        subject,
        references,
        texts,
        others if non_members else None,
        out,
        length=length,
        batch_size=batch_size,
        bos=bos,
    )
    summary = {
        "texts": len(frame),
        "skipped": frame.attrs["skipped"],
        "references": len(references),
        "device": str(subject.device),
        "out": str(out),
    }
    if non_members:
        print_result(as_json, summary, judged(frame), "how well each score tells members")
    else:
        score = "ratio" if references else "loss"
        best = frame.sort_values(score, ascending=False).head(10)
        shown = best.filter(["text", "tokens", score, "beginning"])
        print_result(as_json, summary, shown, f"most likely members, by {score}")
    if not references and not as_json:
        advise("without --reference, a text that anyone can predict scores as high as a member")


@plain_errors
def entropy_law(
    model: Model,
    sources: Sources,
    out: Annotated[
        Path, typer.Option(help="Folder for tables and figure; those in it are replaced.")
    ] = Path("out/entropy-law"),
    prefix: _Prefix = 32,
    length: _Length = 32,
    stride: _Stride = None,
    column: Column = "text",
    min_windows: Annotated[
        int, typer.Option(help="Levels with fewer windows are left out.", min=1)
    ] = 5,
    rarefied_to: Annotated[
        int,
        typer.Option(help="Number of windows in the bags that are compared at equal size.", min=1),
    ] = 5,
    shuffles: Annotated[
        int, typer.Option(help="How often scores are shuffled, for the p-values.", min=1)
    ] = 200,
    trivial: _Trivial = True,  # noqa: FBT002
    seed: Annotated[int, typer.Option(help="Seed of shuffles and samples.", min=0)] = 0,
    dtype: Dtype = None,
    device: Device = None,
    batch_size: BatchSize = 16,
    bos: Bos = True,  # noqa: FBT002
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Measure how the entropy of texts depends on how well the model reproduces them.

    The score of a window is the token edit distance between its suffix and what the model generates
    from its prompt; windows with one score are a level. `rarefied` is the entropy of levels in bags
    of equal size: read its r, and hold the r of `entropy` against that of shuffled scores. A high r
    says that predictable texts have little entropy. It is high for texts that the model has never
    seen, too.

    Writes levels.parquet, fits.parquet, baselines.parquet, entropy_law.json and entropy_law.png.

    Example: `interp entropy-law path/to/model texts/ --out out/entropy-law`
    """
    from interp.files import writable
    from interp.memorization.entropy.law import entropy_law as measure

    writable(out)
    texts, notes = texts_and_notes(sources, column)
    subject = load_subject(model, notes, dtype=dtype, device=device)
    law = measure(
        subject,
        texts,
        prefix,
        length,
        stride=stride,
        batch_size=batch_size,
        bos=bos,
        keep_trivial=trivial,
        min_windows=min_windows,
        rarefied_to=rarefied_to,
        shuffles=shuffles,
        seed=seed,
    )
    law.save(out)
    names = ("windows", "texts", "skipped", "repeated", "trivial")
    fit: Any = law.fit("rarefied")
    summary = {name: int(law.about[name]) for name in names}
    summary |= {"rarefied r": _number(fit["r"]), "p": _number(fit["p"]), "out": str(out)}
    shown: Any = law.fits[["quantity", "r", "low", "high", "null_mean", "p", "levels", "reason"]]
    print_result(as_json, summary, shown, "correlation with the memorization score")


@plain_errors
def dataset_inference(
    model: Model,
    candidate: Annotated[
        list[Path],
        typer.Option(help="Texts of which you ask whether the model was trained on them."),
    ],
    reference: Annotated[list[Path], typer.Option(help="Texts that it was certainly trained on.")],
    unseen: Annotated[
        list[Path] | None,
        typer.Option(
            help="Texts of the same kind that it was certainly not trained on. Without them the "
            "verdict only says whether the candidate is like the reference."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for tables and figure; those in it are replaced.")
    ] = Path("out/dataset-inference"),
    prefix: _Prefix = 32,
    length: _Length = 32,
    stride: _Stride = None,
    column: Column = "text",
    windows_per_set: Annotated[
        int, typer.Option(help="Windows in each of the random sets that are compared.", min=3)
    ] = 300,
    sets: Annotated[int, typer.Option(help="Number of random sets.", min=2)] = 60,
    seed: Annotated[int, typer.Option(help="Seed of the sets.", min=0)] = 0,
    dtype: Dtype = None,
    device: Device = None,
    batch_size: BatchSize = 16,
    bos: Bos = True,  # noqa: FBT002
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Tell whether a model was trained on a data set.

    Random sets of windows are compared by the intercept of the entropy law, and by two plain means
    that it has to beat: the edit distance and the loss. Each gets its own verdict; "cannot tell"
    where it does not tell --reference and --unseen apart, and where there are fewer than 20 texts.

    Writes sets.parquet, statistics.parquet, dataset_inference.json and dataset_inference.png.

    Example: `interp dataset-inference path/to/model --candidate new/ --reference old/ --unseen
    later/ --out out/dataset-inference`
    """
    from interp.files import writable
    from interp.memorization.entropy.dataset_inference import dataset_inference as infer
    from interp.memorization.entropy.scored_windows import score_all

    writable(out)
    given = {"reference": reference, "candidate": candidate}
    if unseen:
        given["unseen"] = unseen
    read = {role: texts_and_notes(paths, column) for role, paths in given.items()}
    notes = chain.from_iterable(of_role for _, of_role in read.values())
    subject = load_subject(model, notes, dtype=dtype, device=device)
    scored = {
        role: score_all(
            subject, texts, prefix, length, stride=stride, batch_size=batch_size, bos=bos
        )
        for role, (texts, _) in read.items()
    }
    found = infer(**scored, windows_per_set=windows_per_set, sets=sets, seed=seed)
    found.save(out)
    windows = {f"{role} windows": len(part) for role, part in scored.items()}
    summary = {"verdict": found.verdict, **windows, "out": str(out)}
    print_result(as_json, summary, found.table, "what each statistic says")
    if not unseen and not as_json:
        advise("without --unseen it is not known whether the statistics tell seen from unseen data")


def _number(value: float) -> float | None:
    """A number as JSON can hold it: NaN as null."""
    return None if math.isnan(value) else float(value)
