"""Targets in memory: boxes, outlines, masks and run lengths."""
