"""Packed data sets: the files and the targets of a folder as rows of Lance or litData, read by random access."""
