"""The speed of the toolkit compared with that of other libraries, on the same work in the same run:
`python -m benchmarks`, or `make bench`.

Each file measures one thing and states what it may cost, mostly on SmolLM2-135M (float32, one
thread). Costs are CPU time and are compared as ratios. The variants of a benchmark take turns, so
that whatever else the machine does slows all of them, and they are checked to give the same result.
Tests do not depend on any of this.
"""

import os

# torch and tqdm read these when they are first imported; the benchmarks set nothing else globally.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
