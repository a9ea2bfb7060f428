"""Processes that replay stretches: with other environment variables, or several at a time.

``python -m autotimm.runs.stretches.process JOB.json`` does one job, and writes its answer beside the file.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
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

__all__ = ["Launch", "Processes", "main", "other_instructions", "run_process"]


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


Launch = Callable[[Path, Mapping[str, str]], tuple[int, str]]
"""Runs the job of a file with environment variables; returns the exit code and the last line of what it has said."""


def run_process(job: Path, variables: Mapping[str, str]) -> tuple[int, str]:
    """Do a job in a process of its own on this machine."""
    # Named, not imported: runpy warns about a program that the package has imported already. Without the safe path
    # the working directory would come before all packages.
    command = [sys.executable, "-m", "autotimm.runs.stretches.process", str(job)]
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONSAFEPATH": "1", **variables},
    )  # fmt: skip
    return ended.returncode, (ended.stderr.strip().splitlines() or [""])[-1]


@dataclass(frozen=True)
class Processes:
    """Has stretches replayed by other processes.

    Attributes:
        asked: What is measured.
        jobs: How many processes run at a time.
        trust: Whether classes that the run names may be imported.
        launch: What starts a process.
    """

    asked: Measurement
    jobs: int
    trust: bool
    launch: Launch = run_process

    def elsewhere(self, stretches: Sequence[Stretch], variables: Mapping[str, str], name: str) -> list[Elsewhere]:
        """Replay stretches with other environment variables; nothing if that process fails, which only adds a view."""
        try:
            answers = self._share("other", stretches, lambda part: {"variants": [], "elsewhere": True}, variables)
        except AutotimmError:
            return []
        return [Elsewhere(name, answer["lines"]) for answer in answers]

    def measure(
        self, stretches: Sequence[Stretch], variants: Sequence[Variant], elsewhere: Sequence[Elsewhere]
    ) -> list[Measured]:
        """Measure stretches, several at a time.

        Raises:
            AutotimmError: If one of the processes fails.
        """
        others = dict(zip(stretches, elsewhere, strict=False))
        given = {"variants": [asdict(each) for each in variants]}

        def job(part: Sequence[Stretch]) -> dict[str, Any]:
            known = [asdict(others[stretch]) if stretch in others else None for stretch in part]
            return {**given, "others": known, "every": stretches[0] in part[:1]}

        return [Measured(**answer["measured"]) for answer in self._share("stretches", stretches, job, {})]

    def _share(
        self, name: str, stretches: Sequence[Stretch], job: Callable[[Sequence[Stretch]], dict[str, Any]],
        variables: Mapping[str, str],
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Share stretches out among processes; the answers come in the order of the stretches."""
        parts = [stretches[start :: self.jobs] for start in range(min(self.jobs, len(stretches)))]
        with ThreadPoolExecutor(self.jobs) as pool:
            numbers = range(len(parts))
            found = pool.map(lambda number: self._one(f"{name}-{number}", parts[number], job, variables), numbers)
            answers = {
                stretch: answer for part, each in zip(parts, found, strict=True)
                for stretch, answer in zip(part, each, strict=True)
            }  # fmt: skip
        return [answers[stretch] for stretch in stretches]

    def _one(
        self, name: str, part: Sequence[Stretch], job: Callable[[Sequence[Stretch]], dict[str, Any]],
        variables: Mapping[str, str],
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Have one process do its part."""
        file = self.asked.scratch / f"{name}.json"
        content: dict[str, Any] = {
            "folder": str(self.asked.run.folder.absolute()), "scratch": str(self.asked.scratch),
            "data": self.asked.data, "workers": self.asked.workers, "same_pixels": self.asked.same_pixels,
            "trust": self.trust, "path": [os.path.abspath(entry) for entry in search_path()],
            "stretches": [asdict(stretch) for stretch in part], **job(part),
        }  # fmt: skip
        file.write_text(json.dumps(content), encoding="utf-8")
        code, last = self.launch(file, variables)
        if code:
            raise error_of(code)(
                f"A process that replays stretches has failed: {printable(last or 'it has said nothing')}"
            )
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
            for index, stretch in enumerate(stretches):
                if job.get("elsewhere"):
                    answers.append({"lines": asked.elsewhere(stretch)})
                    continue
                known = job["others"][index]
                other = None if known is None else Elsewhere(**known)
                measured = asked.measure(stretch, variants, other, every=job["every"] and index == 0)
                answers.append({"measured": asdict(measured)})
    except AutotimmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    file.with_suffix(".answer").write_text(json.dumps(answers), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
