"""``autotimm validate``: evaluate a run on its validation images."""

from __future__ import annotations

from autotimm.cli.run_args import measuring

__all__ = ["VALIDATE"]

VALIDATE = measuring("validate", "validation", lambda run, path, ckpt, _, tta: run.validate(path, ckpt=ckpt, tta=tta))
