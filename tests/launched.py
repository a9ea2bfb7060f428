"""Programs in several processes that find each other, as a launcher such as torchrun starts them."""

import socket
from pathlib import Path

import warm

# As on a machine with at least four cores.
PROGRAM = """
import os, sys
os.cpu_count = lambda: 4
from pytorch_lightning.utilities import rank_zero_only
rank_zero_only.rank = int(os.environ.get("RANK", "0"))
from autotimm.cli.main import main
sys.exit(main())
"""


def start(processes: int, *words: object, cwd: Path, program: str = PROGRAM) -> list[warm.Program]:
    """Start a program in so many processes that find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = []
    for rank in range(processes):
        where = {"TORCHELASTIC_RUN_ID": "test", "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes,
                 "LOCAL_WORLD_SIZE": processes, "GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": port} if processes > 1 else {}  # fmt: skip
        variables = {name: str(value) for name, value in where.items()}
        launched.append(warm.Program(["-c", program, *words], cwd, variables))
    return launched


def autotimm(processes: int, *words: object, cwd: Path, program: str = PROGRAM) -> tuple[str, str]:
    """Run a program in so many processes; return the output of the first."""
    started = start(processes, *words, cwd=cwd, program=program)
    outputs = [process.communicate() for process in started]
    assert not any(process.returncode for process in started), outputs
    return outputs[0]
