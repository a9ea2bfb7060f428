"""``autotimm study``: train with several seeds, and report the spread and a paired comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autotimm.cli.fit import FIT, configure
from autotimm.cli.json_output import answering
from autotimm.cli.parser import parse
from autotimm.cli.verb import Verb, loading_torch
from autotimm.config import FitConfig, Option
from autotimm.config.value_types import Choice, Flag, Path, Seeds, Text, Whole, Words
from autotimm.constants import LAUNCHERS, STREAMS
from autotimm.errors import UsageError, printable

__all__ = ["STUDY"]


def run(argv: Sequence[str]) -> int:
    """Run the study and print its tables; the last line printed is its folder."""
    given = parse(STUDY, argv)
    if given is None:
        return 0
    study_options = {name: given.value(name) for name in _STUDY}
    config = configure(given, own=_STUDY)
    if not isinstance(config, FitConfig):
        raise UsageError(
            f"A study needs options of fit. {given.options['config']} names classes instead. Write lines like "
            "`lr: 0.01`."
        )
    with answering(given) as answer:
        with loading_torch(config.progress):
            from autotimm.runs.names_of_file import require_known_names
            from autotimm.studies.run_study import compared_with, study_configs
        require_known_names(given.options.get("config"), config)
        vs = study_options.pop("vs")
        study = study_configs(config, None if vs is None else compared_with(config, vs), **study_options)
        print(printable(study, keep="\n"))
        print(f"study: {printable(study.path)}")
        answer.update(study=study.path, **study.as_dict())
    return 0


_GROUP = "Study"
_STUDY = {
    "seeds": Option(Seeds(), "number of seeds, counted from --seed, or a list of seeds", _GROUP, common=True),
    "vary": Option(
        Words(("all", *STREAMS[:-1])), "random streams that get the seeds; the others keep --seed", _GROUP, common=True
    ),
    "vs": Option(Path(metavar="FILE"), "compare with this configuration, on the same seeds", _GROUP, common=True),
    "decompose": Option(Flag(), "also vary each stream alone, for its share of the variance", _GROUP, common=True),
    "jobs": Option(Whole(1), "parallel runs; they share the CPU cores", _GROUP, common=True),
    "launcher": Option(Choice(LAUNCHERS), "processes on this machine, or a Ray cluster", _GROUP),
    "out": Option(Path(metavar="DIR"), "parent folder of studies", _GROUP),
    "name": Option(Text(), "name of the study's folder", _GROUP, none="auto", common=True),
}
_FIT = {
    name: replace(option, common=name in ("config", "backbone", "epochs", "seed"))
    for name, option in FIT.options.items()
    if name not in _STUDY
}

STUDY = Verb(
    name="study",
    summary="train with several seeds: mean, spread, and a paired test of two configurations",
    run=run,
    positionals=FIT.positionals,
    options={**_STUDY, **_FIT},
    defaults={
        **FIT.defaults, "seeds": 5, "vary": ("all",), "vs": None, "decompose": False, "jobs": 1,
        "launcher": "local", "out": "studies", "name": None,
    },
    examples=(
        "autotimm study photos/ --seeds 5 --epochs 10",
        "autotimm study photos/ --seeds 1,2,3 --vary init",
        "autotimm study photos/ --seeds 8 --vs wide.yaml --jobs 2",
        "autotimm study photos/ --decompose",
    ),
    notes=(
        "Repeat the command to resume an interrupted study. Every run takes the options of fit.",
        "The file of --vs lists only the options that differ.",
    ),
    elsewhere=("seeds", "sweep"),
)  # fmt: skip
