"""Check the versions of Python and the dependencies.

Imports as little of autotimm as possible, so that it works with incompatible versions, see :mod:`autotimm.doctor`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from importlib import import_module, metadata

from autotimm.doctor.finding import Finding, note, ok, problem

__all__ = ["check_versions"]

_PACKAGE = "autotimm"
# torchvision 0.N is released with torch 2.(N - 15): 0.26 with 2.11, 0.29 with 2.14.
_TORCHVISION_AHEAD = 15


def check_versions() -> list[Finding]:
    """Check Python, every runtime dependency, and that torch and torchvision belong together."""
    if _installed(_PACKAGE) is None:
        return [note("autotimm is not installed, so its requirements are unknown", "Install it with pip.")]
    package = metadata.metadata(_PACKAGE)
    installed = {name: version for name in _minimums() if (version := _installed(name)) is not None}
    findings = [_python(package["Requires-Python"] or "", sys.version_info[:3]), *_dependencies(_minimums(), installed)]
    if {"torch", "torchvision"} <= installed.keys():
        needs = next((line for line in metadata.requires("torchvision") or [] if re.match(r"torch\b", line)), "")
        findings.append(_pair(installed["torch"], installed["torchvision"], needs))
        findings += _builds()
    return findings


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _minimums() -> dict[str, str]:
    """The lowest version of each runtime dependency, from the package's metadata."""
    lines = [line for line in metadata.requires(_PACKAGE) or [] if "extra ==" not in line]
    matches = [re.match(r"([\w.-]+)(?:\[.*?\])?\s*\(?>=\s*([\w.]+)", line) for line in lines]
    return {match[1]: match[2] for match in matches if match}


def _release(version: str) -> tuple[int, ...]:
    """The release part of a version: (2, 14, 1) of ``2.14.1+cu130`` and of ``2.14.1rc2``."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _python(needs: str, running: tuple[int, ...]) -> Finding:
    shown = ".".join(map(str, running))
    least = re.search(r">=\s*([\d.]+)", needs)
    if least and running < _release(least[1]):
        return problem(f"Python {shown} is older than {least[1]}", f"Install Python {least[1]} or newer.")
    return ok(f"Python {shown}")


def _dependencies(minimums: Mapping[str, str], installed: Mapping[str, str]) -> list[Finding]:
    """A finding for each dependency that is missing or too old, and one for all others."""
    findings, good = [], []
    for name, least in minimums.items():
        cure = f'Install it with: pip install "{name}>={least}"'
        if name not in installed:
            findings.append(problem(f"{name} is not installed", cure))
        elif _release(installed[name]) < _release(least):
            findings.append(
                problem(f"{name} {installed[name]} is older than {least}, the oldest supported version", cure)
            )
        else:
            good.append(f"{name} {installed[name]}")
    return [*findings, ok(", ".join(good))]


def _pair(torch: str, torchvision: str, needs: str) -> Finding:
    """Check that two releases belong together.

    Args:
        torch: Its version.
        torchvision: Its version.
        needs: The requirement in torchvision's metadata: ``torch==2.11.0`` up to 0.28, ``torch (>=2.14.0)`` from 0.29.
    """
    both = f"torch {torch} and torchvision {torchvision}"
    cure = "Install both at once, so that pip finds a matching pair: pip install --upgrade torch torchvision"
    have = _release(torch)
    for sign, version in re.findall(r"(==|>=)\s*([\d.]+)", needs):
        if have < _release(version) or (sign == "==" and have != _release(version)):
            return problem(f"{both} are incompatible: this torchvision needs torch {sign} {version}", cure)
    if _release(torchvision)[1] != (matching := have[1] + _TORCHVISION_AHEAD):
        return note(f"{both} were not released together: torch 2.{have[1]} goes with torchvision 0.{matching}", cure)
    return ok(f"{both} belong together")


def _builds() -> list[Finding]:
    """Check that torchvision's compiled operators load, and were built for the same device as torch."""
    cure = "Install both at once from one index: pip install --upgrade --force-reinstall torch torchvision"
    try:
        torch, torchvision = import_module("torch"), import_module("torchvision")
        import_module("torchvision.ops").nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        # The usual error is "operator torchvision::nms does not exist".
        return [problem(f"torchvision's compiled operators do not load ({str(error).splitlines()[0]})", cure)]
    builds = [module.__version__.partition("+")[2] for module in (torch, torchvision)]
    if all(builds) and builds[0] != builds[1]:
        return [problem(f"torch is built for {builds[0]} and torchvision for {builds[1]}", cure)]
    return [ok("torchvision's compiled operators load")]
