"""``autotimm study``: several seeds, and what can be said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autotimm.cli.fit import FIT, configure
from autotimm.cli.loading import loading_torch
from autotimm.cli.parser import Given, parse
from autotimm.cli.verb import Verb
from autotimm.config import FitConfig, Option
from autotimm.config.value_types import Choice, Flag, Path, Seeds, Text, Whole, Words
from autotimm.constants import STREAMS
from autotimm.errors import UsageError

__all__ = ["STUDY"]


def run(argv: Sequence[str]) -> int:
    """Make the study, print its table; the last line is its folder."""
    given = parse(STUDY, argv)
    if given is None:
        return 0
    asked = {name: given.value(name) for name in _OWN}
    theirs = {name: value for name, value in given.options.items() if name not in _OWN}
    config = configure(Given(FIT, given.positionals, theirs))
    if not isinstance(config, FitConfig):
        raise UsageError(
            f"A study needs options of fit. {theirs['config']} names classes instead. Write lines like `lr: 0.01`."
        )
    with loading_torch(config.progress):
        from autotimm.studies.run_study import compared_with, study_configs
    vs = asked.pop("vs")
    made = study_configs(config, None if vs is None else compared_with(config, vs), **asked)
    print(made)
    print(f"study: {made.path}")
    return 0


_GROUP = "Study"
_OWN = {
    "seeds": Option(Seeds(), "how many seeds, from --seed on, or which", _GROUP, common=True),
    "vary": Option(Words(("all", *STREAMS[:-1])), "what they are given to; all else keeps --seed", _GROUP, common=True),
    "vs": Option(Path(metavar="FILE"), "what is different in a configuration to compare with", _GROUP, common=True),
    "decompose": Option(Flag(), "vary each stream alone too, for its share of the variance", _GROUP, common=True),
    "jobs": Option(Whole(1), "runs at a time; they share the cores", _GROUP, common=True),
    "launcher": Option(Choice(("local", "ray")), "processes of this machine, or a Ray cluster", _GROUP),
    "out": Option(Path(metavar="DIR"), "folder that studies are made in", _GROUP),
    "name": Option(Text(), "name of the study's folder", _GROUP, none="auto", common=True),
}
_FIT = {
    name: replace(one, common=name in ("config", "backbone", "epochs", "seed"))
    for name, one in FIT.options.items()
    if name not in _OWN
}

STUDY = Verb(
    name="study",
    summary="train with several seeds: mean, spread, and whether a difference is one",
    run=run,
    positionals=FIT.positionals,
    options={**_OWN, **_FIT},
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
        "The same command goes on with a study that was stopped. All options of fit are options of every run.",
        "The file of --vs needs to hold only what is different.",
    ),
    elsewhere=("seeds", "sweep"),
)  # fmt: skip
