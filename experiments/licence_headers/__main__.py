"""Writes the corpus: licences and headers from the installed packages, in several formats, and code and prose of the same packages.

python -m experiments.licence_headers --out out/licences/corpus
interp scan     PATH/Qwen2.5-Coder-0.5B-Instruct out/licences/corpus --out out/licences --dtype bfloat16

and then, with the same arguments and `--method absolute_gradient_x_activation`, `interp localize` and
`interp ablate --fractions 0.001 --at 0.001`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import distributions
from itertools import islice
from pathlib import Path

import typer

from interp.data.planted import background
from interp.files import replaced

_LICENCE = re.compile(r"(^|/)(LICEN[CS]E|COPYING)(\.\w+)?$", re.IGNORECASE)
_HEADER = re.compile(r"(?:^#[^\n]*\n){6,}", re.MULTILINE)
_CHARACTERS = 900  # of each text: about 200 tokens, a handful of windows
_WRAP = {"hash": ("", "# ", ""), "star": ("/*\n", " * ", " */\n"), "plain": ("", "", "")}


def licences() -> Iterator[str]:
    """The licence of each installed distribution, once per wording, cut to the length of a header."""
    seen: set[str] = set()
    for distribution in sorted(distributions(), key=lambda d: d.name.lower()):
        for file in sorted(str(f) for f in distribution.files or () if _LICENCE.search(str(f))):
            path = Path(str(distribution.locate_file(file)))
            text = path.read_text(encoding="utf-8", errors="ignore")[:_CHARACTERS] if path.is_file() else ""
            wording = re.sub(r"copyright[^\n]*|\W+", " ", text.lower())[:400]
            if len(text) > 600 and wording not in seen:
                seen.add(wording)
                yield text


def headers(packages: Iterable[str] = ("transformers", "accelerate", "torch", "huggingface_hub", "sklearn")) -> Iterator[str]:
    """The comment blocks that open source files and speak of a licence, once per wording, without their comment marks."""
    seen: set[str] = set()
    for path in sources(packages):
        found = _HEADER.match(path.read_text(encoding="utf-8", errors="ignore"))
        text = re.sub(r"^# ?", "", found[0], flags=re.MULTILINE) if found else ""
        words = re.sub(r"\W+", " ", text.lower())
        wording = words[words.find("licen") :][:160]
        if "licen" in words and wording not in seen:
            seen.add(wording)
            yield text[:_CHARACTERS]


def sources(packages: Iterable[str]) -> Iterator[Path]:
    """Python files of installed packages, in name order."""
    from importlib.util import find_spec

    for package in packages:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            yield from sorted(Path(folder).rglob("*.py"))


def as_comment(text: str, style: str) -> str:
    """The same words as a `#` comment, as a `/* */` comment, or plain."""
    opening, mark, closing = _WRAP[style]
    return opening + "".join(f"{mark}{line}".rstrip() + "\n" for line in text.strip().splitlines()) + closing


def code(packages: Iterable[str] = ("nnsight", "transformer_lens"), count: int = 30) -> Iterator[str]:
    """Function bodies of recent packages: text of the same kind that the model has hardly seen."""
    bodies = (re.search(r"\n    def .*", path.read_text(encoding="utf-8", errors="ignore"), re.DOTALL) for path in sources(packages))
    yield from islice((body[0][:_CHARACTERS] for body in bodies if body and len(body[0]) > 800), count)


def write_corpus(out: Path) -> int:
    """One .jsonl a kind of text; returns how many texts there are."""
    short, notices = list(islice(licences(), 40)), list(headers())
    kinds = {
        "1-headers": [as_comment(text, style) for text in notices for style in ("hash", "star")],
        "2-licences": [as_comment(text, style) for text in short for style in ("plain", "hash")],
        "3-code": list(code()),
        "4-prose": list(background(0).control[:40]),
    }
    for name, texts in kinds.items():
        with replaced(out / f"{name}.jsonl") as temporary:
            temporary.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return sum(map(len, kinds.values()))


def main(out: Path = Path("out/licences/corpus")) -> None:
    """Write the corpus of licence texts and of code and prose beside them.

    Example: `python -m experiments.licence_headers --out out/licences/corpus`
    """
    typer.echo(f"{write_corpus(out)} texts in {out}")


if __name__ == "__main__":
    typer.run(main)
