"""``autotimm explain``: show where in an image a score comes from."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from autotimm.cli.json_output import JSON, answering
from autotimm.cli.parser import parse
from autotimm.cli.run_args import CKPT, RUN, TRUST, open_run
from autotimm.cli.verb import Positional, Verb
from autotimm.config import Option
from autotimm.config.value_types import Choice, Flag, Path, Text
from autotimm.errors import missing_extra, printable
from autotimm.runs.output_paths import require_new_folder

__all__ = ["EXPLAIN"]

# As in `autotimm.attribution`, which imports torch; a test compares them.
METHODS = ("auto", "gradcam", "integrated-gradients", "attention-rollout")


def run(argv: Sequence[str]) -> int:
    """Explain; save a picture and a map for each image and a table, or print the table."""
    given = parse(EXPLAIN, argv)
    if given is None:
        return 0
    if find_spec("captum") is None:
        raise missing_extra("The verb explain", "explain")
    out = given.value("out")
    if out is not None:
        require_new_folder(out, "--out", "autotimm explain")
    with answering(given) as answer:
        explained_run, ckpt = open_run(given)
        found = explained_run.explain(
            given.positionals["paths"], out, method=given.value("method"), target=given.value("target"), ckpt=ckpt,
            checks=given.value("checks"),
        )  # fmt: skip
        answer.update(run=explained_run.path, images=len(found), out=out)
        answer["explanations"] = [each.as_plain() for each in found]
        if out is not None:
            print(f"explanations: {printable(out)} ({len(found)} images)")
        elif not given.value("json"):
            from autotimm.runs.explain import explanations_csv

            print(explanations_csv(found), end="")
    return 0


EXPLAIN = Verb(
    name="explain",
    summary="show where in images the scores come from",
    run=run,
    positionals=(RUN, Positional("paths", "PATH", "images, or folders of images", many=True)),
    options={
        "out": Option(
            Path(metavar="DIR"), "save a picture and a map (.npy) per image, and explanations.csv", "Options",
            none="print the table",
        ),
        "method": Option(Choice(METHODS), "how; auto is gradcam wherever there are feature maps", "Options"),
        "target": Option(Text(metavar="CLASS"), "explain this class", "Options", none="the predicted one"),
        "checks": Option(Flag(), "measure how far each map can be believed", "Options"),
        "ckpt": CKPT,
        "trust": TRUST,
        "json": JSON,
    },
    defaults={
        "out": None, "method": "auto", "target": None, "checks": True, "ckpt": "best", "trust": False, "json": False,
    },
    examples=(
        "autotimm explain runs/photos-001 new/ --out explained/",
        "autotimm explain runs/photos-001 one.jpg --target cat --method integrated-gradients --out explained/",
        "autotimm explain runs/cars-001 street.jpg --json",
    ),
    notes=(
        "Explained is the predicted class, the object with the highest score, or the largest region of a class.",
        "The same command writes the same bytes. Needs optional packages: pip install 'autotimm[explain]'.",
    ),
    elsewhere=("gradcam", "attribute", "interpret", "saliency"),
)  # fmt: skip
