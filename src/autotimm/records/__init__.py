"""What a run leaves behind, and how it is read: manifest, ledger, digests, sample index, checkpoints, results."""
