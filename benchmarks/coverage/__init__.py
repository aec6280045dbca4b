"""Every architecture of transformers, as a tiny random model: can it be loaded, and is what
`interp` says of it right?

Nothing is compared with `interp`'s own laws. Where a part is, the names in the model say, which
`interp` never reads; what a site holds and what an intervention does is repeated with torch's own
hooks; decoding and scans are repeated with whole forwards.

This is not part of a whole run. It takes a few minutes, writes `results.json` here, and
`docs/models.md`.
"""

from __future__ import annotations

import importlib
import os

from tqdm.auto import tqdm

from benchmarks.timing import Row


def run() -> list[Row]:
    """Examines all architectures; writes the results and the page of supported models.

    Raises:
        SystemExit: some number or token is wrong, or an architecture crashes.
    """
    from benchmarks.coverage import architectures, report
    from benchmarks.coverage.census import KINDS, Entry, census

    for shared in ("transformers.models.llama.modeling_llama", "interp.loading.load"):
        importlib.import_module(shared)  # once here rather than in every process
    names = [(name, kind) for kind in KINDS for name in architectures.names(kind)]
    found: dict[tuple[str, str], Entry] = {}
    running = census(names, jobs=os.cpu_count() or 1)
    for entry in tqdm(running, total=len(names), desc="architectures", unit=""):
        found[entry.name, entry.kind] = entry
    entries = [found[name] for name in names]
    report.save(entries)
    print(report.summary(entries))
    wrong = [entry.name for entry in entries if entry.is_wrong]
    if wrong:
        raise SystemExit(f"wrong, or crashed: {', '.join(wrong)}; see {report.RESULTS}")
    return []
