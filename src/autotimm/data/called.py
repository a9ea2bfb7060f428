"""What a data module was called with, for a run's ``config.yaml``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from autotimm.plain import constructor_arguments

__all__ = ["Called"]

_Made = TypeVar("_Made", bound="Called")


class Called:
    """Notes what the class that is made was called with: a constructor sees only what subclasses passed on to it.

    Lightning's ``save_hyperparameters`` would collect the arguments of every constructor on the way, also those that a
    subclass fixes and its caller cannot give; and it would put paths into checkpoints.
    """

    _call: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls: type[_Made], *args: Any, **kwargs: Any) -> _Made:
        """Make an object that remembers its call; a copy of one has the original's."""
        made = super().__new__(cls)
        made._call = (args, kwargs)
        return made

    def _called_with(self, base: Callable[..., None]) -> dict[str, Any]:
        """The arguments of the call by name, with the defaults of those that are passed on as ``**options`` to a base.

        Args:
            base: The constructor whose options a subclass passes on.
        """
        args, kwargs = self.__dict__.pop("_call")
        given = constructor_arguments(type(self), args, kwargs)
        kinds = [one.kind for one in inspect.signature(type(self)).parameters.values()]
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            return given
        shared = inspect.signature(base).parameters.values()
        return {one.name: one.default for one in shared if one.default is not inspect.Parameter.empty} | given
