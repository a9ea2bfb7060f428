"""``autotimm test``: evaluate a run on its test images."""

from __future__ import annotations

from autotimm.cli.run_args import measuring

__all__ = ["TEST"]

TEST = measuring("test", "test", lambda run, path, ckpt, out, tta: run.test(path, ckpt=ckpt, out=out, tta=tta),
                 keeps=True)  # fmt: skip
