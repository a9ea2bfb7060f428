"""Formats that are not read are named, with the export to choose."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from autotimm.data.formats import recognize
from autotimm.errors import DataError

Picture = Callable[..., Path]

BOX = {"x": 1, "y": 2, "w": 3, "h": 4}
DARWIN = {
    "version": "2.0",
    "schema_ref": "https://darwin-public.s3.eu-west-1.amazonaws.com/darwin_json/2.0/schema.json",
    "item": {"name": "a.png", "path": "/", "slots": [{"slot_name": "0", "width": 20, "height": 16}]},
    "annotations": [{"name": "dog", "bounding_box": BOX, "slot_names": ["0"]}],
}
DARWIN_1 = {
    "dataset": "pets",
    "image": {"filename": "a.png", "url": "https://darwin.v7labs.com/api/images/1/original"},
    "annotations": [{"name": "dog", "bounding_box": BOX}],
}
REGION = {
    "shape_attributes": {"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4},
    "region_attributes": {"type": 1},
}
VIA_IMAGES = {"a.png123": {"filename": "a.png", "size": 123, "regions": [REGION], "file_attributes": {}}}
VIA_CSV = (
    "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
    'a.png,123,"{}",1,0,"{""name"":""rect"",""x"":1,""y"":2,""width"":3,""height"":4}","{}"\n'
)
CREATE_ML = [
    {"image": "a.png", "annotations": [{"label": "dog", "coordinates": {"x": 1, "y": 2, "width": 3, "height": 4}}]}
]
VALUE = {"x": 1, "y": 2, "width": 3, "height": 4, "rectanglelabels": ["dog"]}
RESULT = {"from_name": "label", "to_name": "image", "type": "rectanglelabels", "value": VALUE}
LABEL_STUDIO = [{"id": 1, "data": {"image": "/data/upload/1/a.png"}, "annotations": [{"id": 1, "result": [RESULT]}]}]
LABEL_STUDIO_MIN = [{"image": "/data/a.png", "id": 1, "label": [VALUE], "annotation_id": 1, "lead_time": 2.5}]
POINTS = {"exterior": [[1, 2], [4, 6]], "interior": []}
SUPERVISELY = {
    "description": "",
    "size": {"height": 16, "width": 20},
    "objects": [{"classTitle": "dog", "geometryType": "rectangle", "points": POINTS}],
}
DATUMARO = {"dm_format_version": "1.0", "media_type": 2, "info": {}, "categories": {}, "items": [{"id": "a"}]}

CASES = [
    ("a.json", DARWIN, "Darwin JSON of V7, which is not read. In V7 choose the export COCO"),
    ("a.json", DARWIN_1, "Darwin JSON of V7, which is not read. In V7 choose the export COCO"),
    ("via.json", VIA_IMAGES, "VIA .VGG Image Annotator., which is not read. In VIA choose Annotation, then Export"),
    ("via.json", {"_via_settings": {}, "_via_img_metadata": VIA_IMAGES}, "VIA .VGG Image Annotator., which is not"),
    ("via.csv", VIA_CSV, "VIA .VGG Image Annotator., which is not read. In VIA choose Annotation, then Export"),
    ("_annotations.createml.json", CREATE_ML, "CreateML, which is not read. Export as COCO or Pascal VOC"),
    ("project-1.json", LABEL_STUDIO, "Label Studio JSON, which is not read. In Label Studio choose the export COCO"),
    ("project-1.json", LABEL_STUDIO_MIN, "Label Studio JSON-MIN, which is not read. In Label Studio choose"),
    (
        "ds/ann/a.png.json",
        SUPERVISELY,
        "Supervisely JSON, which is not read. In Supervisely run the app Export to COCO",
    ),
    ("annotations/default.json", DATUMARO, "Datumaro JSON, which is not read. Export as COCO"),
]


@pytest.mark.parametrize(("name", "content", "sentence"), CASES)
def test_named_with_the_export_to_choose(
    tmp_path: Path, picture: Picture, name: str, content: object, sentence: str
) -> None:
    picture(tmp_path / "ds" / "img" / "a.png")  # read alone, these folders would be classes
    picture(tmp_path / "more" / "b.png")
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    for data, task in ((tmp_path, None), (tmp_path, "detection"), (tmp_path, "instance"), (path, None)):
        with pytest.raises(DataError, match=rf"{path.name} is {sentence}"):
            recognize(data, task)
    assert recognize(tmp_path, "classification").format == "folder"


def test_not_named_where_a_format_that_is_read_is_seen(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "project-1.json").write_text(json.dumps(LABEL_STUDIO))
    content = {
        "info": {"description": "Exported from Darwin"},
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2]}],
    }
    (tmp_path / "result.json").write_text(json.dumps(content))
    assert recognize(tmp_path)[:2] == recognize(tmp_path / "result.json")[:2] == ("detection", "coco")


def test_other_files_are_of_no_format(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "cat" / "a.png")
    picture(tmp_path / "dog" / "a.png")
    (tmp_path / "notes.json").write_text('{"image": "a.png", "label": "cat"}')
    (tmp_path / "labels.csv").write_text("filename,label\ncat/a.png,cat\n")
    assert recognize(tmp_path)[:2] == ("classification", "folder")
    assert recognize(tmp_path / "labels.csv")[:2] == ("classification", "csv")
