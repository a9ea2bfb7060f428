"""The literals are contracts: recorded runs hold such digests, so a change of a literal breaks every `verify`."""

import hashlib
import io
import os
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autotimm.repro import config_digest, file_digest, files_digest, state_digest, tensor_digest

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of nothing
DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.float8_e4m3fn,
]


# --- tensors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "digest"),
    [
        (torch.arange(6).reshape(2, 3), "2821a902fcfe5cd0b6b8a771ee2a5d44ad88cab557ab4ac9b45d64a45c56e00e"),
        (torch.tensor([1.0, -2.5]).bfloat16(), "a48d4548cdd6b73df582bae6c01277ade9d9383efa3cea8e793e5bf8a58a941e"),
        (torch.tensor(3.0), "b933b72acd764ef3d9b40d91428fc27e288ff7a714ebe59c5aaeef74ece69655"),
        (torch.empty(0, 3), "e4d7d5460f71e03636e7c49d61a9ccd4bc6910b15a8368367e4c0ca367ec744b"),
    ],
)
def test_golden_tensor_digests(tensor, digest):
    assert tensor_digest(tensor) == digest


def test_a_tensor_digest_can_be_computed_without_torch():
    raw = np.arange(6, dtype="<i8").tobytes()
    assert tensor_digest(torch.arange(6).reshape(2, 3)) == hashlib.sha256(b"torch.int64(2, 3)" + raw).hexdigest()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (5,), (2, 3), (1, 2, 3, 2)], ids=str)
def test_every_data_type_and_shape_has_a_digest_that_a_copy_shares(dtype, shape):
    tensor = torch.ones(shape).to(dtype)
    assert tensor_digest(tensor) == tensor_digest(tensor.clone())


def test_equal_bytes_of_another_data_type_differ():
    zeros = [torch.zeros(2, dtype=dtype) for dtype in DTYPES]
    assert len({tensor_digest(tensor) for tensor in zeros}) == len(DTYPES)


def test_equal_bytes_of_another_shape_differ():
    shapes = [(12,), (12, 1), (1, 12), (2, 6), (6, 2), (3, 4), (2, 2, 3)]
    assert len({tensor_digest(torch.arange(12).reshape(shape)) for shape in shapes}) == len(shapes)


def test_empty_tensors_of_another_shape_differ():
    shapes = [(0,), (0, 3), (3, 0), (0, 0), (1, 0)]
    assert len({tensor_digest(torch.empty(shape)) for shape in shapes}) == len(shapes)


def test_a_scalar_is_not_a_vector_of_one():
    assert tensor_digest(torch.tensor(3.0)) != tensor_digest(torch.tensor([3.0]))


def test_permutations_change_the_digest():
    # The reason why torch.hash_tensor will not do.
    tensor = torch.arange(64.0)
    shuffled = tensor[torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    assert torch.hash_tensor(tensor) == torch.hash_tensor(shuffled)
    assert tensor_digest(tensor) != tensor_digest(shuffled)
    assert tensor_digest(tensor.reshape(8, 8)) != tensor_digest(tensor.reshape(8, 8).t())


def test_the_last_bit_of_an_element_changes_the_digest():
    tensor = torch.ones(1000)
    other = tensor.clone()
    other[617] = torch.nextafter(other[617], torch.tensor(2.0))
    assert torch.allclose(tensor, other)
    assert tensor_digest(tensor) != tensor_digest(other)


def test_the_digest_is_of_bits_not_values():
    assert tensor_digest(torch.tensor([0.0])) != tensor_digest(torch.tensor([-0.0]))
    assert tensor_digest(torch.tensor([float("nan")])) == tensor_digest(torch.tensor([float("nan")]))


@pytest.mark.parametrize(
    ("view", "copy"),
    [
        (torch.arange(6).reshape(2, 3).t(), torch.tensor([[0, 3], [1, 4], [2, 5]])),
        (torch.arange(10)[::3], torch.tensor([0, 3, 6, 9])),
        (torch.ones(1).expand(4), torch.ones(4)),
        (torch.arange(9)[3:], torch.arange(3, 9)),
        (
            torch.arange(24).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
            torch.arange(24).reshape(1, 2, 3, 4),
        ),
    ],
    ids=["transposed", "strided", "expanded", "offset", "channels_last"],
)
def test_the_memory_layout_does_not_matter(view, copy):
    assert tensor_digest(view) == tensor_digest(copy)


def test_gradients_and_wrappers_do_not_matter():
    plain = torch.ones(3)
    assert tensor_digest(nn.Parameter(plain.clone())) == tensor_digest(plain)
    assert tensor_digest(plain.clone().requires_grad_() * 1) == tensor_digest(plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_does_not_matter():
    assert tensor_digest(torch.arange(6.0).cuda()) == tensor_digest(torch.arange(6.0))


@pytest.mark.parametrize("view", [torch.tensor([1 + 2j]).conj(), torch._neg_view(torch.ones(3))], ids=["conj", "neg"])
def test_lazy_views_have_the_digest_of_their_values(view):
    assert tensor_digest(view) == tensor_digest(view.resolve_conj().resolve_neg())


def test_a_digest_leaves_the_tensor_and_the_generators_alone():
    tensor, state = torch.arange(6.0).reshape(2, 3).t(), torch.get_rng_state()
    before = tensor.clone()
    tensor_digest(tensor)
    assert torch.equal(tensor, before)
    assert not tensor.is_contiguous()
    assert torch.equal(torch.get_rng_state(), state)


# --- states ----------------------------------------------------------------------------------------------------------


def state():
    return {"w": torch.arange(6).reshape(2, 3), "n": 3, "s": {"b": [1.5, None, "é"]}}


def test_golden_state_digest():
    assert state_digest(state()) == "14372c37bc387dae3b807d93e3157f151cfe80e34cbc3c164fd717aa6b47b9b0"


def test_the_order_of_insertion_does_not_matter_at_any_depth():
    first = {"a": {"x": torch.ones(1), "y": 2}, "b": 1}
    second = OrderedDict(b=1, a=OrderedDict(y=2, x=torch.ones(1)))
    assert state_digest(first) == state_digest(second)


def test_each_change_of_a_nested_state_changes_the_digest():
    single, pair = torch.ones(1), torch.ones(2)
    states = [
        {},
        {"a": {}},
        {"a": []},
        {"a": None},
        {"a": single},
        {"b": single},
        {"a": pair},
        {"a": single.double()},
        {"a": [single]},
        {"a": [[single]]},
        {"a": {"0": single}},
        {"a": {"b": single}},
        {"a.b": single},
        {"a": [single, pair]},
        {"a": [pair, single]},
        {"a": [single], "b": [pair]},
        {"a": single, "b": pair},
        {"a": pair, "b": single},
        {"a": single, "b": {"c": pair}},
        {"a": {"b": single, "c": pair}},
        {"a": 1},
        {"a": 1.0},
        {"a": True},
        {"a": "1"},
        {"a": "null"},
        {"a": 0.1},
        {"a": 0.1 + 2**-56},
        {"a": ""},
        {"": "a"},
    ]
    assert len({state_digest(state) for state in states}) == len(states)


def test_a_number_does_not_run_into_the_name_after_it():
    assert state_digest({"a": 1, "b1000000000": 3}) != state_digest({"a": 11, "b": 10000000003})


def trained(steps: int, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    for parameter in model.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.rand(5, 3, generator=generator)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def test_states_of_models_and_optimizers():
    (model, optimizer), (twin, twin_optimizer), (later, later_optimizer) = trained(2), trained(2), trained(3)
    assert state_digest(model.state_dict()) == state_digest(twin.state_dict())
    assert state_digest(optimizer.state_dict()) == state_digest(twin_optimizer.state_dict())
    assert state_digest(model.state_dict()) != state_digest(later.state_dict())
    assert state_digest(optimizer.state_dict()) != state_digest(later_optimizer.state_dict())


def test_a_saved_state_keeps_its_digest(tmp_path):
    model, optimizer = trained(1)
    before = state_digest(model.state_dict()), state_digest(optimizer.state_dict())
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    assert tuple(state_digest(state) for state in torch.load(file, weights_only=True)) == before


def test_a_buffer_is_part_of_the_state():
    model, _ = trained(0)
    before = state_digest(model.state_dict())
    model[1].running_mean[0] += 1
    assert state_digest(model.state_dict()) != before


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    for name, content in {"cats/a.png": b"cat", "dogs/b ü.png": b"dog", "dogs/c.png": b""}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def digest(root: Path) -> str:
    return files_digest((path for path in root.rglob("*") if path.is_file()), root)


def test_golden_file_and_folder_digests(folder):
    assert file_digest(folder / "cats/a.png") == "77af778b51abd4a3c51c5ddd97204a9c3ae614ebccb75a606c3b6865aed6744e"
    assert file_digest(str(folder / "dogs/c.png")) == EMPTY
    assert digest(folder) == "aa9ddebabbd9be95851b11b952e595a3d50d549e49d2aeea5569445fb1ec3cb4"
    assert files_digest([], folder) == EMPTY


@pytest.mark.parametrize("size", [(1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_files_longer_than_a_block(tmp_path, size):
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    (tmp_path / "a").write_bytes(content)
    assert file_digest(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_moving_or_copying_a_folder_keeps_its_digest(folder, tmp_path):
    before = digest(folder)
    shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
    assert digest(tmp_path / "elsewhere" / "copy") == before
    folder.rename(tmp_path / "moved")
    assert digest(tmp_path / "moved") == before


def test_the_order_of_listing_and_the_clock_do_not_matter(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    before = files_digest(paths, folder)
    os.utime(paths[0], (1, 1))
    assert files_digest(reversed(paths), folder) == before
    assert files_digest([str(path) for path in paths], str(folder)) == before


def rename(root: Path) -> None:
    (root / "cats/a.png").rename(root / "cats/z.png")


def move(root: Path) -> None:
    (root / "cats/a.png").rename(root / "dogs/a.png")


def swap(root: Path) -> None:
    (root / "cats/a.png").write_bytes(b"dog")
    (root / "dogs/b ü.png").write_bytes(b"cat")


def edit(root: Path) -> None:
    (root / "cats/a.png").write_bytes(b"caT")


def add(root: Path) -> None:
    (root / "cats/new.png").touch()


def remove(root: Path) -> None:
    (root / "dogs/c.png").unlink()


@pytest.mark.parametrize("change", [rename, move, swap, edit, add, remove])
def test_each_change_of_a_folder_changes_the_digest(folder, change):
    before = digest(folder)
    change(folder)
    assert digest(folder) != before


def test_a_line_break_in_a_name_cannot_forge_a_digest(tmp_path):
    # One file whose name looks like the line of another file, against the two files.
    forged, honest = tmp_path / "forged", tmp_path / "honest"
    for root in (forged, honest):
        root.mkdir()
    (honest / "a").touch()
    (honest / "b").touch()
    (forged / f"a\\0{EMPTY}\nb").touch()
    assert digest(forged) != digest(honest)


def test_a_file_outside_the_root_is_refused(folder, tmp_path):
    (tmp_path / "outside").touch()
    with pytest.raises(ValueError, match="outside"):
        files_digest([tmp_path / "outside"], folder)


def test_a_missing_file_is_an_error(folder):
    with pytest.raises(FileNotFoundError):
        files_digest([folder / "missing.png"], folder)


def test_names_that_are_not_utf8(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert len(digest(tmp_path)) == 64


# --- configurations --------------------------------------------------------------------------------------------------


def test_golden_config_digest():
    config = {"a": 1, "b": [1.5, None, True, "é"]}
    assert config_digest(config) == "41415a7ec58b75b5b6c2c1152dfc52bbd901c6552ab5b036e76056f628fa2247"
    assert config_digest(config) == hashlib.sha256('{"a":1,"b":[1.5,null,true,"é"]}'.encode()).hexdigest()


def test_the_order_of_keys_does_not_matter_and_that_of_lists_does():
    assert config_digest({"a": {"x": 1, "y": 2}, "b": 3}) == config_digest({"b": 3, "a": {"y": 2, "x": 1}})
    assert config_digest([1, 2]) != config_digest([2, 1])


def test_types_are_distinguished():
    values = [0, 0.0, -0.0, False, "0", None, "null", "", [], {}, 1, 1.0, True, 1e-3, "1e-3", [None], {"a": None}]
    assert len({config_digest({"x": value}) for value in values}) == len(values)


def test_floats_count_to_the_last_bit():
    assert config_digest(0.1 + 0.2) != config_digest(0.3)
    assert config_digest(1e-3) == config_digest(0.001)


@pytest.mark.parametrize("value", [object(), {1, 2}, Path("a"), torch.ones(1), np.float32(1), 1j])
def test_what_is_not_plain_data_is_refused(value):
    with pytest.raises(TypeError):
        config_digest({"x": value})
