"""The report of a run: one page for people, made of the files of the run."""
