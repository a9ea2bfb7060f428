"""``autotimm backbones``: list the available backbones."""

from __future__ import annotations

from collections.abc import Sequence

from autotimm.cli.json_output import JSON, answering
from autotimm.cli.parser import parse
from autotimm.cli.verb import Positional, Verb
from autotimm.config import Option
from autotimm.config.value_types import Flag
from autotimm.errors import ModelError, nearest

__all__ = ["BACKBONES"]


def run(argv: Sequence[str]) -> int:
    """Print one name per line."""
    given = parse(BACKBONES, argv)
    if given is None:
        return 0
    with answering(given) as answer:
        names = _matching(given.positionals["pattern"] or "*", given.value("pretrained"), given.value("portable"))
        print("\n".join(names))
        answer["backbones"] = names
    return 0


def _matching(pattern: str, pretrained: bool, portable: bool) -> list[str]:
    from autotimm.models.backbone.pooled import list_backbones

    # A bare `vit` means `*vit*`.
    names = list_backbones(
        pattern if set("*?[") & set(pattern) else f"*{pattern}*", pretrained=pretrained, portable=portable
    )
    if not names:
        hint = nearest(pattern, list_backbones("*")) or "Try a shorter part of the name, like autotimm backbones vit."
        raise ModelError(f"No backbone name matches '{pattern}'. {hint}")
    return names


BACKBONES = Verb(
    name="backbones",
    summary="list the available backbones",
    run=run,
    positionals=(Positional("pattern", "PATTERN", "part of a name, or a pattern with * and ?", required=False),),
    options={
        "pretrained": Option(Flag(), "only backbones with pretrained weights", "Options"),
        "portable": Option(Flag(), "only families that were measured to hold in a run with --portable", "Options"),
        "json": JSON,
    },
    defaults={"pretrained": False, "portable": False, "json": False},
    examples=("autotimm backbones resnet", 'autotimm backbones "vit_*_patch16_224" --pretrained'),
)
