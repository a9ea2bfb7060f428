"""The contract of a task as a suite of checks, for the tasks of autotimm and for your own.

Like scikit-learn's ``check_estimator``: a new task should pass these checks before you write tests of its own::

    from autotimm.testing import CHECKS, TaskCase

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_contract(check, tmp_path):
        check(TaskCase.of(MyTask, folder=tmp_path, backbone="test_resnet", num_classes=3))

or all of them in one call: ``check_task(MyTask, backbone="test_resnet", num_classes=3)``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from autotimm.data import DataModule
from autotimm.tasks import Task
from autotimm.testing.case import TaskCase
from autotimm.testing.checks import CHECKS

__all__ = ["CHECKS", "TaskCase", "check_task"]


def check_task(task: type[Task], *, data: Callable[..., DataModule] | None = None, **arguments: Any) -> None:
    """Run every check on a task class.

    Args:
        task: The class.
        data: Builds a data module from options; by default toy images of three classes.
        arguments: What the constructor needs, such as ``backbone="test_resnet"``.

    Raises:
        AssertionError: If the task breaks its contract; the message names the broken part.
    """
    with tempfile.TemporaryDirectory() as folder:
        case = TaskCase.of(task, folder=folder, data=data, **arguments)
        for check in CHECKS:
            check(case)
