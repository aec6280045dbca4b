"""Peak memory over 200 and over 2,000 sequences, each in a fresh process, on a small random model:
of `record`, and of UnitMem."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.timing import Row

PROGRAM = """
import resource, sys, torch, interp
from interp.localization import localize
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 512, "vocab_size": 256}
config = LlamaConfig(**sizes, num_hidden_layers=4, num_attention_heads=4)
subject = interp.load(LlamaForCausalLM(config))
stream = (interp.Batch(torch.randint(256, (10, 64))) for _ in range(int(sys.argv[1]) // 10))
{work}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
# name: what is run on the stream, and what 2,000 sequences may cost of the memory that 200 need
WORK = {
    "memory of record": ('interp.record(subject, stream, "neurons", reduce="mean_abs")', 1.05),
    "memory of UnitMem": ('localize(subject, stream, method="unitmem")', 1.2),
}


def run() -> list[Row]:
    """All activations of 2,000 sequences would be 1,000 MB; what a process needs anyway is in both
    figures."""
    rows: list[Row] = []
    for name, (work, bar) in WORK.items():
        few, many = _peak(work, 200), _peak(work, 2000)
        rows += [
            Row(name, "200 sequences", few, "MB", 1.0),
            Row(name, "2,000 sequences", many, "MB", many / few, bar=bar),
        ]
    return rows


def _peak(work: str, sequences: int) -> float:
    program = PROGRAM.replace("{work}", work)
    found = subprocess.run(
        [sys.executable, "-c", program, str(sequences)], capture_output=True, text=True, check=True
    )
    return float(found.stdout)
