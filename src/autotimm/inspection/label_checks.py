"""Labels that are probably wrong, by the predictions of a run for images that it did not learn from.

The extra ``inspect`` installs cleanlab, which does the work: confident learning (Northcutt, Jiang and Chuang,
"Confident learning: estimating uncertainty in dataset labels", JAIR 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np

from autotimm.data.splits import own_sides
from autotimm.data.table import Table
from autotimm.errors import UsageError, missing_extra
from autotimm.evidence import Evidence
from autotimm.inspection.data_finding import Case, Finding, finding_of
from autotimm.records.run_folder import FOLDS

__all__ = ["check_labels", "require_cleanlab"]


def require_cleanlab() -> None:
    """Refuse to look for wrong labels without the extra.

    Raises:
        UsageError: If cleanlab is not installed.
    """
    if find_spec("cleanlab") is None:
        raise missing_extra("The option run of inspect", "inspect")


def check_labels(evidence: Evidence, tables: Mapping[str, Table]) -> list[Finding]:
    """Find samples whose label is probably wrong, the least plausible first.

    Args:
        evidence: The predictions of a run for held-out images.
        tables: The samples that are inspected.

    Raises:
        UsageError: If the run has another task than classification, or other images or classes.
    """
    from cleanlab.filter import find_label_issues  # an optional extra

    splits = _splits_of(evidence, tables)
    places = {id: (split, row) for split in splits for row, id in enumerate(tables[split].ids)}
    known = [row for row, id in enumerate(evidence.ids) if id in places]
    word = "training" if evidence.split == FOLDS else evidence.split
    if evidence.kind != "classes":
        raise UsageError("The `run` of inspect must be one of classification. Leave it out.")
    if not known or tables[splits[0]].class_names != evidence.class_names:
        raise UsageError(
            f"The `run` of inspect must be validated on images that are inspected. None of its {len(evidence)} "
            f"{word} images is. Give the data and the options that it was trained with."
        )
    labels: Any
    names, scores = evidence.class_names, evidence.scores[known].astype(np.float64)
    if evidence.multi_label:
        labels = [np.flatnonzero(row).tolist() for row in evidence.targets[known]]
    else:
        # Cleanlab wants a sum of 1, which scores of 32 bits have nearly.
        labels, scores = evidence.targets[known].astype(np.int64), scores / scores.sum(1, keepdims=True)
    ranked = find_label_issues(
        labels, scores, return_indices_ranked_by="self_confidence", multi_label=evidence.multi_label, n_jobs=1
    )
    cases = []
    for at in ranked.tolist():
        id, best = evidence.ids[known[at]], int(scores[at].argmax())
        split, row = places[id]
        label = ", ".join(tables[split].labels(row)) or "nothing"
        cases.append(Case(id, split, f"is {label}, looks like {names[best]} ({scores[at, best]:.0%})"))
    sentence = f"{len(cases)} of {len(known):,} {word} labels are probably wrong, as the run predicts."
    cure = "Look at them, the least plausible first, and correct those that are wrong."
    return finding_of("label_errors", "warning", sentence, cure, cases)


def _splits_of(evidence: Evidence, tables: Mapping[str, Table]) -> list[str]:
    """The splits that samples of evidence may be in."""
    if evidence.split != FOLDS:
        return [split for split in tables if split == evidence.split]
    # Without the options of the folds, some of their samples are split off here.
    return [split for split in tables if split not in own_sides(tables)]
