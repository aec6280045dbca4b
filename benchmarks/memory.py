"""Peak memory of `record`, of `membership` and of UnitMem over 200 and 2,000 sequences, each in a
fresh process, on a small random model."""

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
# By name: what is run on the stream, and how much memory 2,000 sequences may need, as a ratio to
# the memory that 200 need.
WORK = {
    "memory of record": ('interp.record(subject, stream, "neurons", reduce="mean_abs")', 1.05),
    "memory of membership": (
        "interp.membership(subject, (row for batch in stream for row in batch.tokens), subject)",
        1.05,
    ),
    "memory of UnitMem": ('localize(subject, stream, method="unitmem")', 1.2),
}


def run() -> list[Row]:
    """The peak memory of each process in MB. All activations of 2,000 sequences would be 1,000 MB;
    what the process needs without any is part of both figures."""
    rows: list[Row] = []
    for name, (work, bar) in WORK.items():
        few = _peak(work, 200)
        many = _peak(work, 2000)
        rows += [
            Row(name, "200 sequences", few, "MB", 1.0),
            Row(name, "2,000 sequences", many, "MB", many / few, bar=bar),
        ]
    return rows


def _peak(work: str, sequences: int) -> float:
    """The peak memory in MB of a new process that runs the work."""
    program = PROGRAM.replace("{work}", work)
    command = [sys.executable, "-c", program, str(sequences)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(ended.stdout)
