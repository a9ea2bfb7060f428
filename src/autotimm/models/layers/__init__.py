"""Layers that several networks share: normalization, feature pyramids, operators with deterministic gradients."""
