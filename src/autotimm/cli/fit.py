"""``autotimm fit``: train a model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from autotimm.cli.json_output import JSON, answering
from autotimm.cli.parser import Given, parse
from autotimm.cli.run_args import print_run, run_answer
from autotimm.cli.verb import Positional, Verb, loading_torch
from autotimm.config import COMMAND_LINE, FitConfig, Option, defaults, options, read_yaml
from autotimm.config.record import RECORD
from autotimm.config.value_types import Flag, Path
from autotimm.errors import UsageError

if TYPE_CHECKING:
    from autotimm.runs.run import Run

__all__ = ["FIT", "configure", "train"]

_CONFIG = Option(
    Path(metavar="FILE"), "YAML file with these options, or in Lightning's style", "Configuration", common=True
)
_COMMIT = Option(
    Flag(), "before the first step write and print a digest of data, code, options and seeds", "Reproducibility"
)


def run(argv: Sequence[str]) -> int:
    """Train; the last line printed is the run folder."""
    given = parse(FIT, argv)
    if given is None:
        return 0
    with answering(given) as answer:
        finished_run = train(given)
        print_run(finished_run)
        answer.update(run_answer(finished_run))
    return 0


def train(given: Given) -> Run:
    """Train with command-line arguments."""
    resolved = configure(given, own=("commit",))
    # Imported late on purpose: help and mistakes in the command are answered without loading torch.
    if isinstance(resolved, FitConfig):
        with loading_torch(resolved.progress):
            from autotimm.runs.names_of_file import names_of_file
            from autotimm.runs.run import fit_config
        with names_of_file(given.options.get("config")):
            return fit_config(resolved, commit=given.value("commit"))
    with loading_torch():
        from autotimm.cli.lightning_yaml import build
        from autotimm.runs.names_of_file import names_of_file
        from autotimm.runs.run import fit_objects
    with names_of_file(given.options["config"]):
        return fit_objects(*build(resolved, given.options["config"]), commit=given.value("commit"))


def configure(given: Given, own: Collection[str] = (), **fixed: str) -> FitConfig | dict[str, object]:
    """Merge the file and the command line, which wins; a file in Lightning's style is returned as it is.

    Args:
        given: The arguments of a verb that takes options of fit.
        own: The options of the verb that are none of fit.
        fixed: Options of fit that the verb itself decides.

    Raises:
        UsageError: If a key or a value is wrong, or if a file in Lightning's style is combined with other options.
    """
    names = [name for name in given.options if name not in ("config", "json", *own)]
    for name in names:
        given.value(name)  # here, where an error names the verb
    typed = {name: given.options[name] for name in names} | fixed
    if given.positionals["path"] is not None:
        typed["path"] = given.positionals["path"]
    if "config" not in given.options:
        return FitConfig.layered([(COMMAND_LINE, typed)])
    file = given.options["config"]
    values, nested = read_yaml(file)
    if not nested:
        if RECORD in values:  # it says how to train; where its run went is a folder of whoever made it
            values = {name: value for name, value in values.items() if name not in ("out", "name")}
        return FitConfig.layered([(f"file {file}", values), (COMMAND_LINE, typed)])
    if typed:
        first = next(iter(typed))
        shown = "PATH" if first == "path" else f"--{first.replace('_', '-')}"
        raise UsageError(
            f"{file} sets model, data and trainer, so that {shown} would have no effect. Write it into the file as an "
            "argument of one of the three classes."
        )
    return values


FIT = Verb(
    name="fit",
    summary="train a model on a folder of images",
    run=run,
    positionals=(Positional("path", "PATH", options()["path"].help, required=False),),
    options={
        "config": _CONFIG,
        **{name: option for name, option in options().items() if name != "path"},
        "commit": _COMMIT,
        "json": replace(JSON, group=_CONFIG.group, common=True),
    },
    defaults={**defaults(), "commit": False, "json": False},
    examples=(
        "autotimm fit photos/ --backbone resnet18 --epochs 10",
        "autotimm fit photos/ --pretrained false --image-size 64 --seed 7 --name small",
        "autotimm fit --config photos.yaml --epochs 3",
    ),
    notes=(
        "Every option can also be set in the file, as in `batch_size: 64`. The command line overrides the file.",
        "The last line printed is the run folder.",
    ),
    elsewhere=("train",),
)
