"""Formats of annotation tools that are not read: named when they are seen, with the export to choose.

Readers for some of them exist in supervision and datumaro. We do not depend on these: both are large, with OpenCV in
their requirements.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import NamedTuple

from autotimm.data.formats.json_files import contains
from autotimm.data.formats.listing import Listing, relative

__all__ = ["name_other_format"]

_MOST_FILES = 200  # of a kind that are looked at: a folder has one file per image, or one for all


class _OtherFormat(NamedTuple):
    """A format that is not read.

    Attributes:
        name: What people call it.
        suffix: Of its files.
        marks: Each of these occurs in a file of the format.
        cure: What to choose instead, as a sentence.
    """

    name: str
    suffix: str
    marks: tuple[re.Pattern[bytes], ...]
    cure: str


def _key(name: str) -> re.Pattern[bytes]:
    return re.compile(rb'"(?:%s)"\s*:' % name.encode())


_VIA_CURE = "In VIA choose Annotation, then Export Annotations (COCO format)."
_LABEL_STUDIO_CURE = "In Label Studio choose the export COCO."
_OTHERS = (
    _OtherFormat(
        "Darwin JSON of V7", ".json", (re.compile(rb"darwin", re.IGNORECASE), _key("annotations"), _key("item|image")),
        "In V7 choose the export COCO, or run `darwin convert coco`.",
    ),
    _OtherFormat("VIA (VGG Image Annotator)", ".json", (_key("shape_attributes"), _key("regions")), _VIA_CURE),
    _OtherFormat("VIA (VGG Image Annotator)", ".csv", (re.compile(rb"region_shape_attributes"),), _VIA_CURE),
    _OtherFormat(
        "CreateML", ".json", (_key("coordinates"), _key("annotations?"), _key("image(?:filename)?")),
        "Export as COCO or Pascal VOC.",
    ),
    _OtherFormat("Label Studio JSON", ".json", (_key("from_name"), _key("to_name")), _LABEL_STUDIO_CURE),
    _OtherFormat("Label Studio JSON-MIN", ".json", (_key("annotation_id"), _key("lead_time")), _LABEL_STUDIO_CURE),
    _OtherFormat(
        "Supervisely JSON", ".json", (_key("classTitle"), _key("objects")),
        "In Supervisely run the app Export to COCO.",
    ),
    _OtherFormat(
        "Datumaro JSON", ".json", (_key("dm_format_version|media_type"), _key("items")), "Export as COCO, or as YOLO."
    ),
)  # fmt: skip


def name_other_format(listing: Listing) -> str:
    """A sentence on files of a format that is not read, and what to do; empty if there are none."""
    for suffix in dict.fromkeys(other.suffix for other in _OTHERS):
        files = listing.files_below((suffix,)) if listing.file is None else [listing.file]
        for path in islice(files, _MOST_FILES):
            for other in _OTHERS:
                if other.suffix == suffix == path.suffix.lower() and contains(path, *other.marks):
                    return f"{relative(path, listing.base)} is {other.name}, which is not read. {other.cure}"
    return ""
