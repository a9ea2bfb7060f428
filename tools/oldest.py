"""Print the oldest versions that pyproject.toml allows, as constraints for pip.

    python tools/oldest.py > oldest.txt

Runtime dependencies and the extras that `dev` takes in are pinned to their lower bounds; the tools of `dev` itself are
not, since nobody who installs autotimm gets them. It runs with Python 3.10 too, which has no tomllib.
"""

import re
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
REQUIREMENT = r'"([\w.-]+)(?:\[[\w,]+\])?>=([\d.]+)"'


def lower_bounds(text: str) -> dict[str, str]:
    """Names and lower bounds of the dependencies and of the extras in ``dev``."""
    dependencies = re.search(r"^dependencies = \[\n(.*?)^\]", text, flags=re.MULTILINE | re.DOTALL)
    tested = re.search(r'^dev = \[\n    "autotimm\[([\w,]+)\]"', text, flags=re.MULTILINE)
    if dependencies is None or tested is None:
        raise SystemExit(f"{PYPROJECT.name} has no `dependencies`, or `dev` takes in no extras.")
    lines = [dependencies[1]]
    for extra in tested[1].split(","):
        # The bracket that ends a line: an extra may take in another, and a requirement may have extras of its own.
        lines += re.findall(rf"^{extra} = (\[.*?\]) *(?:#[^\n]*)?$", text, flags=re.MULTILINE | re.DOTALL)
    return dict(re.findall(REQUIREMENT, "\n".join(lines)))


if __name__ == "__main__":
    for name, version in lower_bounds(PYPROJECT.read_text(encoding="utf-8")).items():
        print(f"{name}=={version}")
