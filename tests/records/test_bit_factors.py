"""The table of what changes bits outside the options."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm.layers
import torch

from autotimm.config.option import STAGES
from autotimm.records.bit_factors import FACTORS, VARIABLES, Place, factor_named, factors_in, known_to_both, rank

HERE = Place(1, [torch.device("cpu")])
SOURCES = Path(__file__).parents[2] / "src" / "autotimm"


def read(key):
    return factor_named(key).read(HERE)


def test_every_factor_is_listed_once_and_acts_in_stages_that_there_are():
    keys = [factor.key for factor in FACTORS]
    assert len(keys) == len(set(keys))
    assert all(factor.stages <= set(STAGES) for factor in FACTORS)
    assert {target for factor in FACTORS for target in factor.sets} <= set(keys)


def test_what_one_factor_sets_comes_after_it():
    """Else each of two would hide the other."""
    for factor in FACTORS:
        assert all(rank(factor) < rank(factor_named(target)) for target in factor.sets), factor.key


def test_no_variable_is_listed_elsewhere():
    names = "|".join(name for name in VARIABLES if name.count("_") > 1)
    for file in SOURCES.rglob("*.py"):
        if file.name != "bit_factors.py":
            listed = set(re.findall(rf'"({names})"', file.read_text()))
            # Set for a process that adds up in another order, or for deterministic kernels.
            assert listed <= {"ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "ONEDNN_MAX_CPU_ISA"}, file


def test_every_switch_that_can_be_set_back_is_what_it_was():
    restorable = [factor for factor in FACTORS if factor.restore is not None]
    before = {factor.name: factor.read(HERE) for factor in restorable}
    for factor in restorable:
        if before[factor.name] is not None:
            factor.restore(before[factor.name])
    assert {factor.name: factor.read(HERE) for factor in restorable} == before
    assert len(restorable) > 40


def test_flushing_of_denormals_is_measured():
    assert read("switches.set_flush_denormal") is False
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        assert read("switches.set_flush_denormal") is True
        with_other_dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        assert read("switches.set_flush_denormal") is True
        torch.set_default_dtype(with_other_dtype)
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize(("arguments", "value"), [((False,), "off"), ((True,), "on"), ((True, True), "experimental")])
def test_fused_attention_is_read_from_timm(arguments, value):
    before = read("switches.timm.layers.use_fused_attn")
    try:
        timm.layers.set_fused_attn(*arguments)
        assert read("switches.timm.layers.use_fused_attn") == value
    finally:
        factor_named("switches.timm.layers.use_fused_attn").restore(before)
    assert read("switches.timm.layers.use_fused_attn") == before


def test_every_variable_that_timm_reads_is_listed():
    """Every variable that timm reads when it is imported is in the table, or changes no number."""
    folder = Path(timm.__file__).parent
    used = {
        name
        for part in ("layers", "models", "optim")
        for file in (folder / part).glob("*.py")
        for name in re.findall(r"environ(?:\.get\(|\[)\s*['\"](\w+)", file.read_text())
    }
    assert used - set(VARIABLES) <= {"TIMM_USE_OLD_CACHE", "TIMM_FOREACH_CHUNK_SIZE"}


def test_the_decoders_of_pillow_are_read_where_it_is_loaded():
    code = """
import torch
from autotimm.records.environment import environment
print(environment(1, ["cpu"])["libraries"]["libjpeg"])
import PIL.Image
print(environment(1, ["cpu"])["libraries"]["libjpeg"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = done.stdout.splitlines()
    assert before == "None"
    assert re.match(r"\d", after)


def test_a_name_of_another_version_is_a_factor_of_its_section():
    assert factor_named("variables.X").words == "the environment variable X"
    assert factor_named("switches.backends.new").acts("forward")
    assert not factor_named("versions.rich").acts("forward")
    assert factor_named("git.commit") is None
    assert factor_named("variables") is None


def test_a_gpu_switch_does_not_act_on_the_cpu():
    switch = factor_named("switches.backends.cuda.matmul.fp32_precision")
    assert switch.acts("forward")
    assert switch.acts("forward", "cuda")
    assert not switch.acts("forward", "cpu")


@pytest.mark.parametrize(
    ("key", "a", "b", "known"),
    [
        ("variables.X", {}, {"variables": {"X": "1"}}, True),
        ("switches.x", {"switches": {}}, {"switches": {"x": True}}, False),
        ("switches.x", {"switches": {"x": None}}, {"switches": {"x": True}}, False),
        ("switches.x", {"switches": {"x": False}}, {"switches": {"x": True}}, True),
        ("libraries.x", {}, {"libraries": {"x": "1"}}, False),
        ("versions.x", {"versions": {"x": None}}, {"versions": {"x": "1"}}, True),
        ("processes", {}, {"processes": 2}, True),
    ],
)
def test_what_a_record_does_not_hold_is_no_difference(key, a, b, known):
    assert known_to_both(key, a, b) is known


def test_sections_are_sorted():
    names = [factor.name for factor in factors_in("variables")]
    assert names == sorted(names) == list(VARIABLES)
