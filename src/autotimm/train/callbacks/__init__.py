"""Lightning callbacks of a training: checkpoints, ledger, metrics table and checks."""
