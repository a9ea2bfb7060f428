"""Processes that replay stretches: with other environment variables, or several at a time.

``python -m autotimm.runs.stretches.process JOB.json`` does one job, and writes its answer beside the file.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from autotimm.errors import AutotimmError, ModelError, error_of, printable, sentence
from autotimm.records.imports import RecordedNames
from autotimm.records.own_modules import search_also, search_path
from autotimm.records.trust import OfRun
from autotimm.runs.ray_cluster import ClusterTask, on_cluster
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


_Answers = list[dict[str, Any]]
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
        jobs: How many of them run at a time.
        trust: Whether classes that the run names may be imported.
        launch: What starts a process on this machine.
        launcher: ``"local"``, or ``"ray"`` for the machines of a cluster.
    """

    asked: Measurement
    jobs: int
    trust: bool
    launch: Launch = run_process
    launcher: str = "local"

    def elsewhere(self, stretches: Sequence[Stretch], variables: Mapping[str, str], name: str) -> list[Elsewhere]:
        """Replay stretches with other environment variables; nothing if that process fails, which only adds a view."""
        try:
            answers = _answers(self._job(stretches, self.asked.scratch, elsewhere=True), variables, self.launch)
        except AutotimmError:
            return []
        return [Elsewhere(name, answer["lines"]) for answer in answers]

    def measure(
        self, stretches: Sequence[Stretch], variants: Sequence[Variant], variables: Mapping[str, str], name: str
    ) -> list[Measured]:
        """Measure stretches, several at a time.

        Args:
            stretches: The stretches; those of one process are ``jobs`` apart.
            variants: The other roundings that each is replayed with.
            variables: The environment variables of one more replay; without any it is left out.
            name: What these change, in words.

        Raises:
            AutotimmError: If one of the processes fails.
        """
        parts = {str(start): stretches[start :: self.jobs] for start in range(min(self.jobs, len(stretches)))}
        more = {"variants": [asdict(each) for each in variants], "variables": dict(variables), "name": name}
        jobs = {
            part: self._job(each, self.asked.scratch / part, every=stretches[0] in each, **more)
            for part, each in parts.items()
        }
        found: dict[Stretch, dict[str, Any]] = {}
        for part, answers in self._on_cluster(jobs) if self.launcher == "ray" else self._here(jobs):
            found |= dict(zip(parts[part], answers, strict=True))
        return [Measured(**found[stretch]["measured"]) for stretch in stretches]

    def _here(self, jobs: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, _Answers]]:
        with ThreadPoolExecutor(self.jobs) as pool:
            yield from zip(jobs, pool.map(lambda job: _in_two_processes(job, self.launch), jobs.values()), strict=True)

    def _on_cluster(self, jobs: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, _Answers]]:
        threads = self.asked.run.manifest.environment.get("threads")
        threads = threads if isinstance(threads, int) else 1
        tasks = {part: ClusterTask(_on_node, (job,), threads, self.asked.gpus) for part, job in jobs.items()}
        for part, (code, text, answers) in on_cluster(tasks):
            if code:
                raise error_of(code)(text)
            yield part, answers

    def _job(self, stretches: Sequence[Stretch], scratch: Path, **more: Any) -> dict[str, Any]:
        """The job of one process as plain data."""
        return {
            "folder": str(self.asked.run.folder.absolute()), "scratch": str(scratch),
            "data": None if self.asked.data is None else os.path.abspath(self.asked.data),
            "workers": self.asked.workers, "same_pixels": self.asked.same_pixels, "trust": self.trust,
            "path": [os.path.abspath(entry) for entry in search_path()],
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "stretches": [asdict(stretch) for stretch in stretches], **more,
        }  # fmt: skip


def _in_two_processes(job: dict[str, Any], launch: Launch) -> _Answers:
    """Measure stretches in a process, after another one that has other environment variables."""
    others: list[Any] = [None] * len(job["stretches"])
    if job["variables"]:
        with suppress(AutotimmError):  # which only takes away a view
            answers = _answers({**job, "elsewhere": True}, job["variables"], launch)
            others = [{"name": job["name"], "lines": answer["lines"]} for answer in answers]
    return _answers({**job, "others": others}, {}, launch)


def _on_node(job: dict[str, Any]) -> tuple[int, str, _Answers]:
    """Do the same on a machine of a cluster, of which nothing but the answer comes back."""
    with tempfile.TemporaryDirectory(prefix="autotimm-verify-") as scratch:
        try:
            return 0, "", _in_two_processes({**job, "scratch": scratch}, run_process)
        except AutotimmError as error:
            return error.exit_code, str(error), []


def _answers(job: dict[str, Any], variables: Mapping[str, str], launch: Launch) -> _Answers:
    """Have a job done by a process."""
    file = Path(job["scratch"]) / ("elsewhere.json" if job.get("elsewhere") else "measure.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(job), encoding="utf-8")
    code, last = launch(file, variables)
    if code:
        last = printable(last or "it has said nothing")
        raise error_of(code)(f"A process that replays stretches has failed: {last}")
    answers: _Answers = json.loads(file.with_suffix(".answer").read_text(encoding="utf-8"))
    return answers


def main(file: Path) -> int:
    """Do the job that a file describes; returns the exit code."""
    job = json.loads(file.read_text(encoding="utf-8"))
    for place in job["path"]:
        search_also(place)
    folder = Path(job["folder"])
    stretches = [Stretch(**each) for each in job["stretches"]]
    variants = [Variant(**each) for each in job.get("variants", ())]
    try:
        if not job.get("elsewhere"):
            _require_instructions(job["instructions"])
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


def _require_instructions(expected: str) -> None:
    here = torch.backends.cpu.get_cpu_capability()
    if here != expected:
        must = f"the instruction set of the one that verifies ({expected})"
        raise ModelError(sentence("machine of the cluster", "verify", must, here, "Use machines of one kind."))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
