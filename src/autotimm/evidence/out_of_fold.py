"""Out-of-fold evidence: each training sample, as the network predicts it that was validated on its fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from autotimm.errors import ModelError
from autotimm.evidence.collector import joined
from autotimm.evidence.evidence_file import Evidence
from autotimm.records.run_folder import FOLDS

__all__ = ["join_folds"]


def join_folds(parts: Sequence[Evidence]) -> Evidence:
    """Join the evidence of the validation samples of each fold into one table, the first fold in front.

    Its array ``folds`` (N,) has the fold of each sample, counted from 1. Features are those of as many networks as
    there are folds: they can be compared within a fold, and not across folds.

    Args:
        parts: The evidence of each fold, in the order of the folds.

    Raises:
        ModelError: If they are of different kinds or classes, or a sample is in two of them.
    """
    first = parts[0]
    ids = tuple(id for part in parts for id in part.ids)
    alike = {(part.kind, part.multi_label, part.threshold, part.class_names) for part in parts}
    if len(alike) > 1 or len({*ids}) < len(ids):
        raise ModelError(
            "The folds of a run must be of the same task and classes, and have each image once. They are not: train "
            "again in a new folder."
        )
    names = sorted(set.intersection(*({*part.arrays} for part in parts)))
    arrays = {name: joined(name, [part.arrays[name] for part in parts]) for name in names}
    arrays["folds"] = np.repeat(np.arange(1, len(parts) + 1), [len(part) for part in parts]).astype(np.int64)
    return replace(first, split=FOLDS, ids=ids, arrays=arrays)
