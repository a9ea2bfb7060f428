"""``python -m autotimm``."""

from autotimm.cli.main import entry

if __name__ == "__main__":
    entry()
