"""Evidence of a run: what its best weights predict for held-out samples, the truth, and the features in between.

It is computed once, at the end of a fit or a test, and stored without code; reports and other readers start from it.
"""

from autotimm.evidence.collector import EvidenceCollector, collecting, join_folds
from autotimm.evidence.evidence_file import (
    EVIDENCE,
    Evidence,
    evidence_bytes,
    evidence_path,
    read_evidence,
    write_evidence,
)

__all__ = [
    "EVIDENCE",
    "Evidence",
    "EvidenceCollector",
    "collecting",
    "evidence_bytes",
    "evidence_path",
    "join_folds",
    "read_evidence",
    "write_evidence",
]
