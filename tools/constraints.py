"""Print constraints.txt for the versions that are installed in this environment.

    python tools/constraints.py > constraints.txt

pip ignores a pin for something that nobody asks for, so pins of one platform do no harm on another. A pin whose release
does not exist for the oldest supported Python gets a marker, and that Python takes the newest release that it can.
"""

from importlib.metadata import distributions

from packaging.specifiers import SpecifierSet

OLDEST = "3.10"
NOT_PINNED = {"autotimm", "pip", "setuptools", "wheel"}
HEADER = """\
# The versions that the tests and benchmarks were run with, for CPython 3.11 and newer. Written by `make constraints`.
# Use them with: pip install -c constraints.txt autotimm
"""


def pins() -> list[str]:
    lines = {}
    for found in distributions():
        name = found.metadata["Name"]
        if name.lower() in NOT_PINNED:
            continue
        too_new = not SpecifierSet(found.metadata["Requires-Python"] or "").contains(f"{OLDEST}.99")
        marker = ' ; python_version >= "3.11"' if too_new else ""
        lines[name.lower()] = f"{name}=={found.version.split('+')[0]}{marker}"
    return [lines[name] for name in sorted(lines)]


if __name__ == "__main__":
    print(HEADER + "\n".join(pins()))
