"""Python blocks of a Markdown page, run as one program in a process of its own."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import warm

# Lightning's own way of shrinking a run. Arguments that a page gives still win, so that its code runs as written.
SHRINK = {
    "PL_TRAINER_MAX_STEPS": "1",
    "PL_TRAINER_LIMIT_TRAIN_BATCHES": "1",
    "PL_TRAINER_LIMIT_VAL_BATCHES": "1",
    "PL_TRAINER_LIMIT_TEST_BATCHES": "1",
    "PL_TRAINER_NUM_SANITY_VAL_STEPS": "0",
    "PL_TRAINER_ENABLE_PROGRESS_BAR": "False",
}


class Block(NamedTuple):
    """One ```python block: the line of its fence, the heading above it, its text."""

    line: int
    heading: str
    code: str


def python_blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    heading, start = "", 0
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if start and line == "```":
            found.append(Block(start, heading, "\n".join(lines[start : number - 1])))
            start = 0
        elif line == "```python":
            start = number
        elif not start and re.match(r"#+ |\*\*.+:\*\*$", line):
            heading = line.strip("#* :")
    return found


def run_blocks(page: Path, cwd: Path, fill: Callable[[str], str] = str, shrink: bool = True) -> warm.Completed:
    """Run the blocks in order as one program, saying which one is running, so that a failure has a heading.

    Line numbers in a traceback are those of the page.
    """
    program = ["if __name__ == '__main__':"]  # data workers may import the program again
    for line, heading, code in python_blocks(page):
        program.append(f"    print({f'-- {page.name}, line {line}: {heading}'!r}, flush=True)")
        program.append(f"    exec(compile({chr(10) * line + fill(code)!r}, {page.name!r}, 'exec'), globals())")
    script = cwd / f"{page.stem}_blocks.py"
    script.write_text("\n".join(program), encoding="utf-8")
    return warm.run([script.name], cwd, SHRINK if shrink else {}, timeout=480)


def assert_ran(run: warm.Completed, page: Path) -> None:
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
    assert run.stdout.count(f"-- {page.name}, line ") == len(python_blocks(page))
