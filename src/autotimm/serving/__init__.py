"""Predictions of a run over HTTP, with the bits of ``autotimm predict``."""
