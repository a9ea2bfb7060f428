"""Descriptions of an archive for machines: an RO-Crate (Process Run Crate) and a bill of materials (CycloneDX)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import autotimm
from autotimm.errors import number
from autotimm.records.digest import file_digest
from autotimm.report.run_facts import RunFacts

__all__ = ["BOM", "CRATE", "bill_of_materials", "crate_metadata"]

BOM = "bom.cdx.json"
CRATE = "ro-crate-metadata.json"

_PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
_UNKNOWN_LICENSE = "The license of the model and of its record was not given."
_TASKS = {"classes": "image classification", "boxes": "object detection", "instances": "instance segmentation",
          "pixels": "semantic segmentation"}  # fmt: skip


def _ended(facts: RunFacts) -> str:
    """When the run ended; equal archives have equal bytes, so that no other time is in them."""
    ended = facts.manifest.volatile.get("ended")
    try:
        datetime.fromisoformat(str(ended).replace("Z", "+00:00"))
    except ValueError:
        return "1980-01-01T00:00:00+00:00"
    return str(ended).replace("Z", "+00:00")


def crate_metadata(facts: RunFacts, files: Mapping[str, Path], license_id: str | None) -> str:
    """The metadata of an RO-Crate: the files, and the training as an action from the splits to the weights.

    Args:
        facts: The run.
        files: The files by their path in the archive.
        license_id: The license, as the hub writes it; ``None`` if nobody said it.
    """
    from rocrate.model.contextentity import ContextEntity
    from rocrate.model.softwareapplication import SoftwareApplication
    from rocrate.rocrate import ROCrate

    crate = ROCrate(version="1.1")
    run_id, ended = facts.manifest.run_id, _ended(facts)
    profile = {"@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"}
    crate.add(ContextEntity(crate, _PROFILE, properties=profile))
    crate.name = f"A run of autotimm, {run_id}"
    crate.description = "Record, weights and environment of the training of a vision model, to be verified bit for bit."
    crate.datePublished = ended
    crate.license = license_id or _UNKNOWN_LICENSE
    crate.root_dataset["conformsTo"] = {"@id": _PROFILE}
    added = {
        name: crate.add_file(dest_path=name, properties={
            "name": name, "encodingFormat": _format(name), "contentSize": str(path.stat().st_size),
            "sha256": file_digest(path),
        })
        for name, path in sorted(files.items())
    }  # fmt: skip
    software = {
        "@type": "SoftwareApplication", "name": "autotimm",
        "softwareVersion": autotimm.__version__,
        "description": "Trains vision models in runs that can be verified bit for bit.",
    }  # fmt: skip
    instrument = crate.add(SoftwareApplication(crate, f"urn:autotimm:{autotimm.__version__}", properties=software))
    began = str(facts.manifest.volatile.get("started", ended)).replace("Z", "+00:00")
    sources = [added[name] for name in ("run/config.yaml", "run/files.csv", "run/splits.csv") if name in added]
    results = [
        entity for name, entity in added.items() if name.startswith(("run/", "evidence/")) and entity not in sources
    ]
    action = {"name": f"Training of the run {run_id}", "startTime": str(began), "endTime": ended,
              "actionStatus": "http://schema.org/CompletedActionStatus",
              "description": "autotimm fit, with the options in run/config.yaml"}  # fmt: skip
    training = crate.add_action(
        instrument, identifier=f"#run-{run_id}", object=sources, result=results, properties=action
    )
    crate.root_dataset["mentions"] = training
    content = crate.metadata.generate()
    content["@graph"].sort(key=lambda entity: str(entity["@id"]))
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _format(name: str) -> str:
    formats = {".json": "application/json", ".csv": "text/csv", ".yaml": "application/yaml", ".html": "text/html",
               ".md": "text/markdown", ".txt": "text/plain", ".diff": "text/x-diff", ".jsonl": "application/jsonl",
               ".whl": "application/zip"}  # fmt: skip
    return formats.get(Path(name).suffix, "application/octet-stream")


def bill_of_materials(facts: RunFacts, versions: Mapping[str, str], kind: str | None, classes: Iterable[str]) -> str:
    """What a model is made of, as CycloneDX: the model with its results, the data by its digest, and the libraries.

    Args:
        facts: The run.
        versions: The versions of the libraries.
        kind: The kind of targets; ``None`` if it is not known.
        classes: The names of the classes.
    """
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    manifest = facts.manifest
    weights = facts.folder / "model.safetensors"
    hashes = [HashType(alg=HashAlgorithm.SHA_256, content=file_digest(weights))] if weights.is_file() else []
    model = Component(
        name=facts.value("backbone") or "model", version=manifest.run_id, type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="model", hashes=hashes, properties=[Property(name="autotimm:manifest", value=manifest.digest)],
    )  # fmt: skip
    digest = manifest.inputs.get("data", {}).get("digest")
    data = Component(
        name="data", version=str(digest or "unknown")[:16], type=ComponentType.DATA, bom_ref="data",
        properties=[Property(name="autotimm:data-digest", value=str(digest))],
    )  # fmt: skip
    # No package URL of autotimm: an index may have another project of that name.
    libraries = [
        Component(name=name, version=version, type=ComponentType.LIBRARY, bom_ref=f"{name}=={version}",
                  purl=None if name == "autotimm" else PackageURL("pypi", None, name, version))
        for name, version in {**versions, "autotimm": autotimm.__version__}.items()
    ]  # fmt: skip
    bom = Bom(
        components=[data, *libraries], serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"autotimm:{manifest.digest}")
    )
    bom.metadata.component = model
    bom.metadata.timestamp = datetime.fromisoformat(_ended(facts)).astimezone(timezone.utc)
    bom.register_dependency(model, [data, *libraries])
    content = json.loads(JsonV1Dot6(bom).output_as_string())
    # The library has no class for it, and its schema has.
    content["metadata"]["component"]["modelCard"] = _model_card(facts, kind, list(classes))
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _model_card(facts: RunFacts, kind: str | None, classes: list[str]) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "approach": {"type": "supervised"}, "datasets": [{"ref": "data"}], "inputs": [{"format": "image"}],
        "outputs": [{"format": f"scores of {len(classes)} classes" if classes else "predictions"}],
    }  # fmt: skip
    if backbone := facts.value("backbone"):
        parameters["modelArchitecture"] = backbone
    if kind in _TASKS:
        parameters["task"] = _TASKS[kind]
    metrics = [
        {"type": name, "value": f"{number(value):.6g}", "slice": {"best": "validation", "test": "test"}[group]}
        for group in ("best", "test")
        for name, value in sorted((facts.results.get(group) or {}).items())
        if name.startswith(("val/", "test/"))
    ]
    return {"modelParameters": parameters, "quantitativeAnalysis": {"performanceMetrics": metrics}}
