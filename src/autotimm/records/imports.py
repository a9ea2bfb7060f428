"""Import the classes and functions that options and records name, each of its kind.

A name has one of two origins. Whoever writes an option names a class of their own: giving the name is the trust. A run
folder or a checkpoint may come from a stranger, so that its names are data: inside :class:`RecordedNames` a name is
imported only if the kind's libraries have it, or if the run's owner is trusted (:mod:`autotimm.records.trust`).

Wherever a name comes from, the standard library is never imported for it, nothing is imported from inside a run folder,
and a class is checked to be of its kind before anybody can call it. A module runs code when it is imported: the checks
therefore come first, and look at names and paths alone.
"""

from __future__ import annotations

import importlib.machinery
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from autotimm.errors import AutotimmError, ModelError, UsageError
from autotimm.records.own_modules import search_path, use_own_modules
from autotimm.serialization import current_path, import_object

__all__ = [
    "Admission", "Kind", "RecordedNames", "admission", "import_named", "names_in", "require_admitted",
    "require_importable",
]  # fmt: skip

# A run folder that is not the opened one is known by its files: many projects have a manifest.json of another kind.
_RUN_FILES = (("ledger.jsonl",), ("manifest.json", "config.yaml"))


@dataclass(frozen=True)
class Kind:
    """What a name must be.

    Attributes:
        noun: What it is called in errors, such as ``optimizer``.
        must: What its import path must lead to, such as ``a subclass of torch.optim.Optimizer``.
        base: The class that a class must inherit from; ``None`` if a class will not do.
        libraries: Packages whose members, and those of the modules below, a stranger's record may name.
        modules: Modules whose members it may name, without those below.
        function: Whether a function will do; ``None`` if none does.
    """

    noun: str
    must: str
    base: type | None
    libraries: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    function: Callable[[Any], bool] | None = None

    def fits(self, value: Any) -> bool:
        """Whether an imported value is of this kind."""
        if inspect.isclass(value):
            return self.base is not None and issubclass(value, self.base)
        # A function that a module merely imports, such as `system` of `os`, is none of that module's.
        own = inspect.isroutine(value) and not _is_standard(str(value.__module__))
        return own and self.function is not None and self.function(value)

    def in_libraries(self, path: str) -> bool:
        """Whether an import path leads into one of the libraries."""
        module = path.rpartition(".")[0]
        return module in self.modules or any(
            module == library or module.startswith(f"{library}.") for library in self.libraries
        )


class Admission(Protocol):
    """Says which names of a record are trusted."""

    def refusal(self, path: str) -> str:
        """Why a name outside of the libraries is not admitted, as sentences; empty if it is."""

    @property
    def folder(self) -> Path | None:
        """The run's folder, if there is one."""


class RecordedNames:
    """While this context lasts, all names come from a record.

    Contexts may be nested: the inner one counts.

    Args:
        admission: Says which names outside of the libraries are admitted.
    """

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self._tokens: list[Token[Admission | None]] = []

    def __enter__(self) -> RecordedNames:
        self._tokens.append(_ADMISSION.set(self.admission))
        return self

    def __exit__(self, *exception: object) -> None:
        _ADMISSION.reset(self._tokens.pop())


_ADMISSION: ContextVar[Admission | None] = ContextVar("autotimm_admission", default=None)


def admission() -> Admission | None:
    """Who says which names are admitted; ``None`` where names are the user's own."""
    return _ADMISSION.get()


def import_named(path: str, kind: Kind) -> Any:
    """Import the class or function that an option or a record names.

    Args:
        path: An import path; one that an earlier version of autotimm recorded will do.
        kind: What it must be.

    Raises:
        UsageError: If there is no such class or function, or if it is of another kind.
        ModelError: If a record names it, in each of these cases, or if the record's names are not admitted.
    """
    require_admitted(path, kind)
    require_importable(path, kind)
    if not kind.in_libraries(current_path(path)):
        use_own_modules()
    try:
        value = import_object(path)
    except ImportError as error:
        raise _error(kind, path, f"It cannot be imported: {error}") from None
    if not kind.fits(value):
        raise _error(kind, path, "It is something else")
    return value


def require_admitted(path: str, kind: Kind) -> None:
    """Refuse a name that a record holds and that is not admitted. Nothing is imported.

    Constructors call it for names that they import later, when the context of the record has ended.

    Raises:
        ModelError: If it is not admitted.
    """
    admission = _ADMISSION.get()
    if admission is None or kind.in_libraries(current_path(path)):
        return
    require_importable(path, kind)  # a name that nobody could import needs no question of trust
    if refusal := admission.refusal(path):
        raise ModelError(f"The record names the {kind.noun} {path}. {refusal}")


def require_importable(path: str, kind: Kind) -> None:
    """Refuse a name of the standard library, of a module inside a run folder, or that is no import path at all.

    Raises:
        UsageError: If it is one of these; :class:`ModelError` if a record names it.
    """
    module = current_path(path).rpartition(".")[0]
    parts = path.split(".")
    if not module or not all(part.isidentifier() for part in parts):
        raise _error(kind, path, "It is no import path")
    if _is_standard(module):
        raise _error(kind, path, f"It cannot be imported: {parts[0]} is a part of Python itself")
    for place in _places(module):
        if run := _run_around(place):
            raise _error(kind, path, f"It cannot be imported: its module lies inside the run folder {run}")


def names_in(value: Any) -> set[str]:
    """All texts in plain data that could be import paths.

    Example:
        >>> sorted(names_in({"loss": "my_losses.Focal", "sizes": [1, "a.b"], "name": "photos"}))
        ['a.b', 'my_losses.Focal']
    """
    if isinstance(value, str):
        parts = value.split(".")
        return {value} if len(parts) > 1 and all(part.isidentifier() for part in parts) else set()
    if isinstance(value, Mapping):
        return set().union(*map(names_in, value.values()), *map(names_in, value))
    return set().union(*map(names_in, value)) if isinstance(value, (list, tuple)) else set()


def _error(kind: Kind, path: str, why: str) -> AutotimmError:
    recorded = _ADMISSION.get() is not None
    text = f"The {kind.noun} {path!r} must be the import path of {kind.must}. {why}. "
    return ModelError(f"{text}The record may be damaged.") if recorded else UsageError(f"{text}Check the path.")


def _is_standard(module: str) -> bool:
    top = module.partition(".")[0]
    return top in sys.stdlib_module_names or top in sys.builtin_module_names


def _places(module: str) -> Iterator[Path]:
    """Files and folders that would be read for a module, without importing one; none for modules that are loaded.

    ``importlib.util.find_spec`` would import the packages above the module.
    """
    search: Sequence[str] = search_path()
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        loaded = sys.modules.get(".".join(parts[:end]))
        if loaded is not None:
            search = [*getattr(loaded, "__path__", ())]
            continue
        places = [*_first_on(search, parts[end - 1])]
        yield from places
        packages = (place.parent if place.stem.partition(".")[0] == "__init__" else place for place in places)
        search = [str(package) for package in packages if package.is_dir()]


def _first_on(search: Iterable[str], name: str) -> Iterator[Path]:
    """The file of a module or package on a search path; several folders for a namespace package."""
    portions = []
    for entry in search:
        package = Path(entry or os.curdir, name)
        for file in (package / "__init__", package):  # the file may be a link to elsewhere, also in a package
            for suffix in importlib.machinery.all_suffixes():
                if (source := file.with_name(f"{file.name}{suffix}")).is_file():
                    yield source
                    return
        if package.is_dir():
            portions.append(package)
    yield from portions


def _run_around(place: Path) -> Path | None:
    """The run folder that holds a file, or is the folder."""
    place = place.resolve()
    admission = _ADMISSION.get()
    opened = admission.folder.resolve() if admission is not None and admission.folder is not None else None
    for folder in (place, *place.parents):
        if folder == opened or any(all((folder / name).is_file() for name in names) for names in _RUN_FILES):
            return folder
    return None
