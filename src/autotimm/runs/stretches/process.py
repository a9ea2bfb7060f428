"""Processes that replay stretches: with other environment variables, or several at a time.

``python -m autotimm.runs.stretches.process JOB.json`` does one job, and writes its answer beside the file.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from autotimm.errors import AutotimmError, error_of, printable
from autotimm.records.imports import RecordedNames
from autotimm.records.own_modules import search_also, search_path
from autotimm.records.trust import OfRun
from autotimm.runs.recorded_run import read_recorded
from autotimm.runs.stretches.choice import Stretch
from autotimm.runs.stretches.measure import Elsewhere, Measured, Measurement
from autotimm.runs.stretches.replay import Variant

__all__ = ["Processes", "main", "other_instructions"]


def other_instructions(recorded: str, device: str) -> tuple[dict[str, str], str]:
    """The environment variables of a process that adds up in another order, and what they change in words.

    If the instruction set is not the recorded one, it is that: resizing and other transforms of images depend on it, so
    that such a process makes the recorded pixels, if the processor has these instructions. Empty if there is nothing to
    change.
    """
    here = torch.backends.cpu.get_cpu_capability()
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return {}, ""
    if recorded != here and recorded in ("DEFAULT", "AVX2", "AVX512"):
        return {"ATEN_CPU_CAPABILITY": recorded.lower()}, f"instructions as recorded ({recorded})"
    if device != "cpu":
        return {}, ""
    return {"ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}, "libraries without AVX"


@dataclass(frozen=True)
class Processes:
    """Starts processes for a measurement.

    Attributes:
        asked: What is measured.
        jobs: How many processes run at a time.
        trust: Whether classes that the run names may be imported.
    """

    asked: Measurement
    jobs: int
    trust: bool

    def elsewhere(self, stretches: Sequence[Stretch], variables: Mapping[str, str], name: str) -> list[Elsewhere]:
        """Replay stretches with other environment variables; nothing if that process fails, which only adds a view."""
        parts = [*enumerate(stretches[start :: self.jobs] for start in range(min(self.jobs, len(stretches))))]
        with ThreadPoolExecutor(self.jobs) as pool:
            answers = pool.map(lambda part: self._one(f"other-{part[0]}", part[1], (), variables), parts)
        try:
            found = {answer["first"]: answer["lines"] for each in answers for answer in each}
        except AutotimmError:
            return []
        return [Elsewhere(name, found[stretch.first]) for stretch in stretches]

    def measure(
        self, stretches: Sequence[Stretch], variants: Sequence[Variant], elsewhere: Sequence[Elsewhere]
    ) -> list[Measured]:
        """Measure stretches, several at a time.

        Raises:
            AutotimmError: If one of the processes fails.
        """
        others = {id(stretch): other for stretch, other in zip(stretches, elsewhere, strict=False)}
        first = {stretch.first for stretch in stretches[:1]}

        def one(stretch: Stretch) -> Measured:
            other = others.get(id(stretch))
            job = {"other": None if other is None else asdict(other), "every": stretch.first in first}
            answer = self._one(f"stretch-{stretch.first}", [stretch], variants, {}, job)[0]
            return Measured(**answer["measured"])

        with ThreadPoolExecutor(self.jobs) as pool:
            return [*pool.map(one, stretches)]

    def _one(
        self, name: str, stretches: Sequence[Stretch], variants: Sequence[Variant], variables: Mapping[str, str],
        more: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Run one process to its end."""
        file = self.asked.scratch / f"{name}.json"
        job: dict[str, Any] = {
            "folder": str(self.asked.run.folder.absolute()), "scratch": str(self.asked.scratch),
            "data": self.asked.data, "workers": self.asked.workers, "same_pixels": self.asked.same_pixels,
            "trust": self.trust, "path": [os.path.abspath(entry) for entry in search_path()],
            "stretches": [asdict(stretch) for stretch in stretches], "variants": [asdict(each) for each in variants],
            **(more or {}),
        }  # fmt: skip
        file.write_text(json.dumps(job), encoding="utf-8")
        # Named, not imported: runpy warns about a program that the package has imported already. Without the safe path
        # the working directory would come before all packages.
        command = [sys.executable, "-m", "autotimm.runs.stretches.process", str(file)]
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONSAFEPATH": "1", **variables},
        )  # fmt: skip
        if ended.returncode:
            last = (ended.stderr.strip().splitlines() or ["it has said nothing"])[-1]
            raise error_of(ended.returncode)(f"A process that replays stretches has failed: {printable(last)}")
        answers: list[dict[str, Any]] = json.loads(file.with_suffix(".answer").read_text(encoding="utf-8"))
        return answers


def main(file: Path) -> int:
    """Do the job that a file describes; returns the exit code."""
    job = json.loads(file.read_text(encoding="utf-8"))
    for place in job["path"]:
        search_also(place)
    folder = Path(job["folder"])
    stretches = [Stretch(**each) for each in job["stretches"]]
    variants = [Variant(**each) for each in job["variants"]]
    try:
        with RecordedNames(OfRun(folder, job["trust"])):
            run = read_recorded(folder)
            asked = Measurement(run, Path(job["scratch"]), job["data"], job["workers"], job["same_pixels"])
            answers: list[dict[str, Any]] = []
            for stretch in stretches:
                if not variants:
                    answers.append({"first": stretch.first, "lines": asked.elsewhere(stretch)})
                    continue
                other = None if job["other"] is None else Elsewhere(**job["other"])
                measured = asked.measure(stretch, variants, other, every=job["every"])
                answers.append({"measured": asdict(measured)})
    except AutotimmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    file.with_suffix(".answer").write_text(json.dumps(answers), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
