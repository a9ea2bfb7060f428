"""The public contract suite on our own tasks."""

import pytest

from autotimm import ImageClassifier
from autotimm.testing import CHECKS, TaskCase

BACKBONES = ["test_resnet", "test_vit"]


@pytest.fixture(scope="module", params=BACKBONES)
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return TaskCase.of(
        ImageClassifier, folder=folder, backbone=request.param, num_classes=3, pretrained=False, image_size=32
    )


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check, case):
    check(case)
