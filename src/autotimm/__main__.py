"""``python -m autotimm``."""

import os
import sys

if __name__ == "__main__":
    if sys.path[:1] in ([os.getcwd()], [""]):
        # Python has put the working directory before all installed packages. It may hold the run of somebody else, and
        # files beside it that are called like a library. Where own classes are looked for is decided by `entry`.
        del sys.path[0]

    from autotimm.cli.main import entry

    entry()
