"""Differences outside the options are planted one by one, and `autotimm diff` names each."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from shutil import copytree

import PIL.ImageFile
import pytest
import timm.layers
import torch
import torchvision

import autotimm
from autotimm.data.toy import write_toy_folder
from autotimm.records.bit_factors import FACTORS, Place
from autotimm.records.manifest import Manifest
from autotimm.runs.run import diff

# test_vit takes images of 160 pixels, and attends over 100 tokens.
OPTIONS = {"backbone": "test_vit", "image_size": 160, "batch_size": 4, "epochs": 1, "pretrained": False, "threads": 1,
           "num_workers": 0, "progress": False, "val_split": 0.25}  # fmt: skip
HERE = Place(1, [torch.device("cpu")])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_toy_folder(tmp_path_factory.mktemp("plant") / "photos", n=12, num_classes=3, image_size=32, seed=7)


@pytest.fixture(scope="module")
def base(photos, tmp_path_factory):
    return fit(photos, tmp_path_factory.mktemp("base"))


def fit(photos, out):
    return autotimm.fit(photos, **OPTIONS, out=str(out), name="run").path


@contextmanager
def given_back():
    """Give back every switch of the table that has been set inside."""
    before = {factor.key: factor.read(HERE) for factor in FACTORS if factor.restore is not None}
    try:
        yield
    finally:
        for factor in FACTORS:
            if factor.restore is not None and before[factor.key] is not None:
                factor.restore(before[factor.key])


def put(owner, name, value):
    return lambda: setattr(owner, name, value)


BACKENDS = torch.backends
# What is planted, and what `diff` calls it. Those that change bits on a CPU come first: their sentence is the cause.
SWITCHES = {
    "fused attention of timm": (lambda: timm.layers.set_fused_attn(False),
        "the switch timm.layers.use_fused_attn: on was recorded, off is used"),
    "oneDNN": (put(BACKENDS.mkldnn, "enabled", False),
        "the switch torch.backends.mkldnn.enabled: on was recorded, off is used"),
    "flash attention": (lambda: BACKENDS.cuda.enable_flash_sdp(False),
        "the switch torch.backends.cuda.flash_sdp_enabled: on was recorded, off is used"),
    "autocast": (lambda: torch.set_autocast_enabled("cpu", True),
        "the switch torch.is_autocast_enabled.cpu: off was recorded, on is used"),
    "memory-efficient activations of timm": (lambda: timm.layers.set_exportable(True),
        "the switch timm.layers.is_exportable: off was recorded, on is used"),
    "denormals": (lambda: torch.set_flush_denormal(True),
        "the switch torch.set_flush_denormal: off was recorded, on is used"),
    "precision of products": (lambda: torch.set_float32_matmul_precision("medium"),
        "the switch torch.get_float32_matmul_precision: highest was recorded, medium is used"),
    "precision of everything": (put(BACKENDS, "fp32_precision", "tf32"),
        "the switch torch.backends.fp32_precision: none was recorded, tf32 is used"),
    "precision of oneDNN's convolutions": (put(BACKENDS.mkldnn.conv, "fp32_precision", "bf16"),
        "the switch torch.backends.mkldnn.conv.fp32_precision: none was recorded, bf16 is used"),
    "deterministic oneDNN": (put(BACKENDS.mkldnn, "deterministic", True),
        "the switch torch.backends.mkldnn.deterministic: off was recorded, on is used"),
    "NNPACK": (lambda: BACKENDS.nnpack.set_flags(False),
        "the switch torch.backends.nnpack.set_flags: on was recorded, off is used"),
    "scripted layers of timm": (lambda: timm.layers.set_scriptable(True),
        "the switch timm.layers.is_scriptable: off was recorded, on is used"),
    "checkpointing of timm": (lambda: timm.layers.set_reentrant_ckpt(True),
        "the switch timm.layers.use_reentrant_ckpt: off was recorded, on is used"),
    "fast path of attention": (lambda: BACKENDS.mha.set_fastpath_enabled(False),
        "the switch torch.backends.mha.get_fastpath_enabled: on was recorded, off is used"),
    "attention in plain products": (lambda: BACKENDS.cuda.enable_math_sdp(False),
        "the switch torch.backends.cuda.math_sdp_enabled: on was recorded, off is used"),
    "memory-efficient attention": (lambda: BACKENDS.cuda.enable_mem_efficient_sdp(False),
        "the switch torch.backends.cuda.mem_efficient_sdp_enabled: on was recorded, off is used"),
    "attention of cuDNN": (lambda: BACKENDS.cuda.enable_cudnn_sdp(False),
        "the switch torch.backends.cuda.cudnn_sdp_enabled: on was recorded, off is used"),
    "TF32 of products": (put(BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
        "the switch torch.backends.cuda.matmul.fp32_precision: none was recorded, tf32 is used"),
    "TF32 of convolutions": (put(BACKENDS.cudnn.conv, "fp32_precision", "ieee"),
        "the switch torch.backends.cudnn.conv.fp32_precision: tf32 was recorded, ieee is used"),
    "sums in half precision": (put(BACKENDS.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
        "the switch torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction: on was recorded, off is used"),
    "cuDNN": (put(BACKENDS.cudnn, "enabled", False),
        "the switch torch.backends.cudnn.enabled: on was recorded, off is used"),
    "library of linear algebra": (lambda: BACKENDS.cuda.preferred_linalg_library("cusolver"),
        "the switch torch.backends.cuda.preferred_linalg_library: default was recorded, cusolver is used"),
    "library of products": (lambda: BACKENDS.cuda.preferred_blas_library("cublaslt"),
        "the switch torch.backends.cuda.preferred_blas_library: cublas was recorded, cublaslt is used"),
    "decoder of images": (lambda: torchvision.set_image_backend("accimage"),
        "the switch torchvision.get_image_backend: PIL was recorded, accimage is used"),
    "truncated images": (put(PIL.ImageFile, "LOAD_TRUNCATED_IMAGES", True),
        "the switch PIL.ImageFile.LOAD_TRUNCATED_IMAGES: off was recorded, on is used"),
}  # fmt: skip
FAST = [*SWITCHES][:6]


@pytest.mark.parametrize(
    "planted", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in SWITCHES]
)
def test_a_switch_is_named(planted, base, photos, tmp_path):
    plant, said = SWITCHES[planted]
    with given_back():
        plant()
        other = fit(photos, tmp_path)
    check(diff(base, other), said)


def check(comparison, said):
    """It is named among the surroundings, alone; and as the cause where bits differ."""
    named = [difference.words for difference in comparison.manifests if difference.section == "environment"]
    assert said in named
    if comparison.difference is not None:
        assert comparison.cause == f"Likely {said}."
    assert comparison.equal == (comparison.difference is None)


def test_fused_attention_changes_bits_on_the_cpu(base, photos, tmp_path):
    """Else the first test would not see the fault for which it was written."""
    with given_back():
        timm.layers.set_fused_attn(False)
        other = fit(photos, tmp_path)
    assert diff(base, other).difference.stage in ("forward", "update")


# Libraries read variables when they are loaded: each needs a process of its own.
VARIABLES = {
    "TIMM_FUSED_ATTN": "0",
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "TORCH_MKLDNN_MATMUL_MIN_DIM": "1",
    "NVIDIA_TF32_OVERRIDE": "0",
    "TORCHINDUCTOR_EMULATE_PRECISION_CASTS": "1",
    "NPY_DISABLE_CPU_FEATURES": "AVX2",
}
PROGRAM = """
import json, sys
import autotimm
autotimm.fit(sys.argv[1], **json.loads(sys.argv[2]), out=sys.argv[3], name="run")
"""


def fit_in_a_process(photos, out, variables):
    fixed = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, "-c", PROGRAM, str(photos), json.dumps(OPTIONS), str(out)]
    variables = {**fixed, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **variables}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(out.glob("run*"))


@pytest.fixture(scope="module")
def base_process(photos, tmp_path_factory):
    return fit_in_a_process(photos, tmp_path_factory.mktemp("process"), {})


@pytest.mark.slow  # each imports torch
@pytest.mark.parametrize("name", VARIABLES)
def test_a_variable_is_named(name, base_process, photos, tmp_path):
    other = fit_in_a_process(photos, tmp_path, {name: VARIABLES[name]})
    said = f"the environment variable {name}: none was recorded, {VARIABLES[name]} is used"
    check(diff(base_process, other), said)


@pytest.mark.slow
def test_what_a_variable_has_set_can_be_set_back(base_process, photos, tmp_path):
    """The variable itself cannot: timm has read it already."""
    other = fit_in_a_process(photos, tmp_path, {"TIMM_FUSED_ATTN": "0"})
    confirmed = diff(base_process, other, explain=True).confirmed
    assert confirmed.startswith("Confirmed: the switch timm.layers.use_fused_attn (on instead of off) restores")


# What no process can plant: another library in the same place. The record says so.
FORGED = {
    "libjpeg-turbo in Pillow": ("libraries", "libjpeg-turbo", "2.0.0", "the version of libjpeg-turbo in Pillow"),
    "oneDNN in torch": ("libraries", "onednn", "2.0.0", "the version of oneDNN in torch"),
    "torchvision": ("versions", "torchvision", "0.1", "the version of torchvision"),
    "instruction set": ("hardware", "instructions", "AVX2", "the instruction set"),
}


@pytest.mark.parametrize("planted", FORGED)
def test_another_library_is_named(planted, base, tmp_path):
    section, name, value, words = FORGED[planted]
    other = copied(base, tmp_path / "run", lambda environment: environment[section].update({name: value}))
    recorded = json.loads((base / "manifest.json").read_text())["environment"][section][name]
    said = f"{words}: {recorded} was recorded, {value} is used"
    assert [difference.words for difference in diff(base, other).manifests] == [said]


def copied(run, folder, change):
    """A copy of the records of a run with another environment."""
    copytree(run, folder)
    manifest = Manifest.load(folder / "manifest.json")
    environment = json.loads(json.dumps(manifest.environment))
    change(environment)
    replace(manifest, environment=environment).save(folder / "manifest.json")
    return folder


def test_a_record_that_did_not_know_a_switch_is_not_blamed_on_a_kernel(base, photos, tmp_path):
    def forget(environment):
        del environment["switches"]["timm.layers.use_fused_attn"]

    old = copied(base, tmp_path / "old", forget)
    with given_back():
        timm.layers.set_fused_attn(False)
        other = fit(photos, tmp_path)
    comparison = diff(old, other)
    assert comparison.manifests == ()
    assert comparison.cause.endswith("The record is older and does not tell: the switch timm.layers.use_fused_attn.")
