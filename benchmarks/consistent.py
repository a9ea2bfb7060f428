"""What `autotimm verify --stretches` says of honest runs on stand-ins for other hardware, and of dishonest ones.

Honest: small networks of eight architectures and four tasks are trained; stretches of them are verified in processes
with other instruction sets, libraries and thread counts. Dishonest: kinds of cheating and mistakes are planted in
steps that are replayed, while the record claims that there was none. Cheating in one of several stretches is found as
often as it is drawn: the rate over many challenges is compared with the stated chance.

Targets: `consistent` for each honest stretch, `different` for at least 95 % of the dishonest ones. The exit code is 1
if one is missed. A long measurement can be stopped and taken up again: with `--folder` each result is kept at once.
With `--python` the honest runs are verified by another Python instead, which has other releases of torch and timm, for
example those of the lower bounds (`make test-oldest` leaves it in `.venv-oldest`).

    python benchmarks/consistent.py [--quick] [--turns N] [--minutes M] [--folder FOLDER] [--python PYTHON]
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from _bench import arguments, done_lines, keep_line, report, table
from _forked import forked
from _stand_ins import ALL_KINDS, BACKBONES, RUNS, STAND_INS, STEPS, cheat, judge, judge_with, train
from scipy.stats import binomtest

from autotimm.runs.recorded_run import read_recorded
from autotimm.runs.stretches.choice import draw, passing_chance, recorded_stretches

QUICK_KINDS = ("learning rate 1 % higher", "one image swapped", "losses invented", "steps and weights invented")
CHALLENGES = 20


def kinds_of(number: int, turn: int, quick: bool) -> list[str]:
    """The kinds that are planted in a run: two thirds of them, others in each turn."""
    kinds = QUICK_KINDS if quick else ALL_KINDS
    return [kind for place, kind in enumerate(kinds) if quick or (place + number + turn) % 3]


def measure(folder: Path, rows: Path, turns: int, end: float, quick: bool) -> None:
    """Measure what is not among the results yet, and write each result down at once, up to some time."""
    names = BACKBONES[:1] if quick else tuple(RUNS)
    stand_ins = [*STAND_INS][:1] if quick else [*STAND_INS]
    list(forked(train, folder, names))
    for turn in range(turns):
        for stand_in in stand_ins:
            done = {("honest", row["run"], row["first"], row["stand_in"])
                    for row in done_lines(rows) if row["kind"] == "honest"}  # fmt: skip
            for number, name in enumerate(names):
                if time.time() > end:
                    return
                list(forked(cheat, folder, turn, [name], kinds_of(number, turn, quick)))
                for row in forked(judge, folder, turn, [name], stand_in, done, variables=STAND_INS[stand_in].variables):
                    keep_line(row, rows)
                    if row["kind"] == "honest" or row["verdict"] != "different":
                        print(*(row[key] for key in ("kind", "run", "stand_in", "verdict", "ratio", "weights_ratio")),
                              row["reason"], file=sys.stderr, flush=True)  # fmt: skip


def share(hits: int, of: int) -> str:
    """A count with its Wilson interval of 95 %."""
    low, high = binomtest(hits, of).proportion_ci(method="wilson")
    return f"{hits} of {of} ({low:.0%} to {high:.0%})"


def honest_rows(rows: Sequence[dict[str, Any]], key: str, verdict: str = "consistent") -> list[tuple[Any, ...]]:
    """Honest stretches by run or stand-in."""
    found = []
    for name in dict.fromkeys(row[key] for row in rows):
        own = [row for row in rows if row[key] == name]
        hits = sum(row["verdict"] == verdict for row in own)
        ratios = [f"{largest(own, each):.1f}" for each in ("ratio", "weights_ratio")]
        found.append((name, share(hits, len(own)), *ratios, sum(row["equal_bits"] for row in own)))
    return found


def largest(rows: Iterable[dict[str, Any]], key: str) -> float:
    """The largest of some numbers that may be missing."""
    return max((row[key] or 0.0 for row in rows), default=math.nan)


def dishonest_rows(rows: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Records of cheating by kind."""
    found = []
    for kind in (kind for kind in ALL_KINDS if any(row["kind"] == kind for row in rows)):
        own = [row for row in rows if row["kind"] == kind]
        hits = sum(row["verdict"] == "different" for row in own)
        planted = len({(row["run"], row["first"]) for row in own})
        stages = Counter(row["stage"] for row in own if row["verdict"] == "different")
        words = ", ".join(f"{stage} {count}" for stage, count in stages.most_common())
        found.append((kind, planted, share(hits, len(own)), words))
    return found


def met(folder: Path, rows: Sequence[dict[str, Any]]) -> tuple[float, float, int]:
    """How often cheating in one stretch is found over challenges that draw two stretches, and the stated chance."""
    found, stated, number = 0, 0.0, 0
    stretches = {row["run"]: recorded_stretches(read_recorded(folder / "runs" / row["run"]), STEPS) for row in rows}
    for place, row in enumerate(rows):
        choices = stretches[row["run"]]
        for challenge in range(place * CHALLENGES, (place + 1) * CHALLENGES):
            drawn = any(stretch.first == row["first"] for stretch in draw(choices, 2, challenge))
            found, number = found + (drawn and row["verdict"] == "different"), number + 1
        stated += CHALLENGES * (1 - passing_chance(choices, 2, 0.01))
    return found / max(number, 1), stated / max(number, 1), number


def measure_with(python: Path, folder: Path, end: float, quick: bool) -> int:
    """Verify honest runs with another Python, up to some time; the exit code."""
    names, rows = BACKBONES[:1] if quick else tuple(RUNS), []
    list(forked(train, folder, names))
    for name in names:
        if time.time() < end:
            rows.append(judge_with(python, folder, name))
            print(*rows[-1].values(), file=sys.stderr, flush=True)
    told = [(row["run"], row["verdict"], f"{row['ratio']:.1f}", "yes" if row["equal_bits"] else "no") for row in rows]
    consistent = sum(row["verdict"] == "consistent" for row in rows)
    report("consistent", ("run", "verdict with another Python", "losses / noise", "all bits equal"), told,
           python=str(python), honest=len(rows), consistent=consistent)  # fmt: skip
    return int(consistent < len(rows))


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--turns", type=int, default=1, help="of all runs and stand-ins, each with other stretches")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin nothing new after so long")
    parser.add_argument("--folder", type=Path, help="what was made and measured, to go on with")
    parser.add_argument("--python", type=Path, help="another Python, which verifies the honest runs instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.folder or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if options.python is not None:
            return measure_with(options.python, folder, time.time() + 60 * options.minutes, options.quick)
        rows = folder / "results.jsonl"
        measure(folder, rows, options.turns, time.time() + 60 * options.minutes, options.quick)
        results = done_lines(rows)
        honest = [row for row in results if row["kind"] == "honest"]
        cheats = [row for row in results if row["kind"] != "honest"]
        consistent = sum(row["verdict"] == "consistent" for row in honest)
        different = sum(row["verdict"] == "different" for row in cheats)
        columns = ("honest", "consistent", "losses / noise", "weights / noise", "all bits equal")
        print(table(columns, [*honest_rows(honest, "run"), *honest_rows(honest, "stand_in")]), end="\n\n")
        print(table(("dishonest", "planted", "different", "stage"), dishonest_rows(cheats)), end="\n\n")
        found, stated, number = met(folder, cheats)
    summary = [
        ("honest stretches consistent", share(consistent, len(honest))),
        ("planted inside a stretch, different", share(different, len(cheats))),
        (f"planted in one stretch, two drawn, found ({number} challenges)", f"{found:.1%}; stated {stated:.1%}"),
    ]
    report("consistent", ("what", "found"), summary, honest=len(honest), consistent=consistent,
           dishonest=len(cheats), different=different, found=found, stated=stated)  # fmt: skip
    return int(consistent < len(honest) or different < 0.95 * len(cheats))


if __name__ == "__main__":
    sys.exit(main())
