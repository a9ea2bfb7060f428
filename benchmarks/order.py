"""What the order of a shuffled epoch costs: time and memory to the first batch, and CPU time per batch.

A loader over a simulated index (``range(size)``, batch 32, no loading process) is made and asked for its first batch,
at the start of an epoch and as a run does that is resumed in its middle. Memory is the peak of what Python and NumPy
allocate meanwhile. The time per batch is that of the batch sampler alone. Beside it, for as many samples as fit, what a
list costs that is shuffled at the start of the epoch: ``torch.randperm(size).tolist()``.

Target: under 1 s and under 50 MB to the first batch of 10^9 samples, and under 100 µs of CPU time per batch.

    python benchmarks/order.py [--quick]
"""

from __future__ import annotations

import tracemalloc
from itertools import islice

import torch
from _bench import CLOCKS, arguments, report, seconds

from autotimm.data import KeyedDataset, KeyedLoader
from autotimm.repro import KeyedBatchSampler

BATCH_SIZE = 32
LISTED = 10**7  # a list of more takes longer than the rest of this program


def loader(size: int, batch: int) -> KeyedLoader:
    """A loader over ``range(size)`` that begins with a batch of its first epoch."""
    made = KeyedLoader(KeyedDataset(range(size), seed=42), KeyedBatchSampler(size, BATCH_SIZE, 42))
    made.load_state_dict({"epoch": 0, "batch": batch})
    return made


def first_batch(size: int, batch: int) -> tuple[float, float]:
    """Seconds and megabytes from nothing to a batch."""
    took = seconds(lambda: next(iter(loader(size, batch))))
    tracemalloc.start()
    next(iter(loader(size, batch)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return took, peak / 1e6


def per_batch(size: int, batches: int) -> float:
    """Microseconds of CPU time per batch."""
    source = islice(KeyedBatchSampler(size, BATCH_SIZE, 42), batches)
    start, count = CLOCKS["cpu"](), sum(1 for _ in source)
    return (CLOCKS["cpu"]() - start) / count * 1e6


def listed(size: int) -> str:
    """Milliseconds to shuffle a list, if it is not too long."""
    return f"{1e3 * seconds(lambda: torch.randperm(size).tolist()):.1f}" if size <= LISTED else "-"


def main() -> None:
    """Measure every size and print the table."""
    options = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    first_batch(1000, 0)  # torch imports parts of itself when a loader is first used
    rows, figures = [], {}
    for size in (10**3, 10**4) if options.quick else (10**5, 10**7, 10**9):
        start, memory = first_batch(size, 0)
        resumed = first_batch(size, size // BATCH_SIZE // 2)[0]
        batch = per_batch(size, 100 if options.quick else 3000)
        cells = (f"{1e3 * start:.1f}", f"{1e3 * resumed:.1f}", f"{memory:.2f}", f"{batch:.0f}", listed(size))
        rows.append((f"{size:,}", *cells))
        figures[str(size)] = {"start_s": start, "resumed_s": resumed, "peak_mb": memory, "batch_cpu_us": batch}
    columns = ("samples", "first batch, ms", "a batch of the middle, ms", "memory, MB", "a batch, CPU µs",
               "a shuffled list, ms")  # fmt: skip
    report("order", columns, rows, figures=figures)


if __name__ == "__main__":
    main()
