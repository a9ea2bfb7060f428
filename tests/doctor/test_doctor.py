"""The doctor: documented operators, traces of a training step, and checks of versions and machine."""

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from autotimm import Batch, ImageClassifier, MetricConfig, Prediction, RunError, Stage, Step, Task
from autotimm.doctor import Finding, Operator, judge, preflight
from autotimm.doctor.documented import IRRELEVANT, TABLE, VISION, entries, unknown
from autotimm.doctor.machine import check_machine, check_memory, check_switches
from autotimm.doctor.numbers import Numbers
from autotimm.doctor.package_versions import _dependencies, _pair, _python, check_versions
from autotimm.doctor.trace import backward, example_batch, trace
from autotimm.models.layers.normalize import Normalize

needs_cuda_build = pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch is built without CUDA")


class Layers(nn.Module):
    """Normalization, a convolution, and one operation as a module of its own."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.normalize = Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        self.conv = nn.Conv2d(3, 4, 3)
        self.odd = Odd(operation)

    def forward(self, images: Tensor) -> Tensor:
        return self.odd(self.conv(self.normalize(images)))


class Odd(nn.Module):
    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, features: Tensor) -> Tensor:
        return self.operation(features)


class OddTask(Task):
    """Minimizes the mean of what one operation makes of (N, 4, H, W) features."""

    def __init__(self, operation: Callable[[Tensor], Tensor] | None = None, **options) -> None:
        super().__init__(lambda seed: Layers(operation or torch.clone), **options)

    def step(self, batch: Batch, stage: Stage) -> Step:
        output = self.infer(batch.images)
        return Step({"loss": output.float().mean()}, output)

    def decode(self, output: Tensor, batch: Batch) -> list[Prediction]:
        return []

    def default_metrics(self) -> list[MetricConfig]:
        return []


def listed(operation: Callable[[Tensor], Tensor]) -> list[tuple[str, str]]:
    return [(operator.name, operator.documented) for operator in preflight(OddTask(operation, lr=0.1), 18, 2)]


def pixel_loss(features: Tensor, reduction: str) -> Tensor:
    targets = torch.zeros(len(features), *features.shape[2:], dtype=torch.int64, device=features.device)
    return F.nll_loss(features.log_softmax(1), targets, reduction=reduction)


def bags(features: Tensor, mode: str) -> Tensor:
    indices = torch.zeros(2, 3, dtype=torch.int64, device=features.device)
    return F.embedding_bag(indices, features.flatten(1), mode=mode)


def scattered(features: Tensor, reduce: str) -> Tensor:
    flat = features.flatten()
    return flat.new_ones(5).scatter_reduce(0, torch.zeros_like(flat, dtype=torch.int64), flat, reduce)


def unpooled(features: Tensor) -> Tensor:
    return F.max_unpool2d(*F.max_pool2d(features, 2, return_indices=True), 2)


def sampled(features: Tensor) -> Tensor:
    grid = F.affine_grid(torch.eye(2, 3, device=features.device).expand(2, 2, 3), [2, 4, 9, 9], align_corners=False)
    return F.grid_sample(features, grid, align_corners=False)


def put(features: Tensor) -> Tensor:
    flat = features.flatten()
    return flat.put(torch.zeros(3, dtype=torch.int64, device=flat.device), flat[:3])


LISTED = {
    "adaptive average of 7 x 7": (
        lambda x: F.adaptive_avg_pool2d(x, 7),
        "_adaptive_avg_pool2d_backward", "nn.AdaptiveAvgPool2d",
    ),
    "adaptive maximum": (
        lambda x: F.adaptive_max_pool2d(x, 7),
        "adaptive_max_pool2d_backward", "nn.AdaptiveMaxPool2d",
    ),
    "adaptive average in 3-d": (
        lambda x: F.adaptive_avg_pool3d(x, 3),
        "_adaptive_avg_pool3d_backward", "nn.AdaptiveAvgPool3d",
    ),
    "average in 3-d": (
        lambda x: F.avg_pool3d(x, 2),
        "avg_pool3d_backward", "nn.AvgPool3d",
    ),
    "bicubic": (
        lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
        "upsample_bicubic2d_backward", "nn.functional.interpolate",
    ),
    "bicubic, antialiased": (
        lambda x: F.interpolate(x, size=7, mode="bicubic", antialias=True),
        "_upsample_bicubic2d_aa_backward", "nn.functional.interpolate",
    ),
    "linear": (
        lambda x: F.interpolate(x.flatten(2), size=7, mode="linear"),
        "upsample_linear1d_backward", "nn.functional.interpolate",
    ),
    "reflection": (
        lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        "reflection_pad2d_backward", "nn.ReflectionPad2d",
    ),
    "loss of pixels": (
        lambda x: pixel_loss(x, "mean"),
        "nll_loss2d_forward", "nn.NLLLoss",
    ),
    "bags by maximum": (
        lambda x: bags(x, "max"),
        "_embedding_bag_backward", "nn.EmbeddingBag",
    ),
    "scattered product": (
        lambda x: scattered(x, "prod"),
        "scatter_reduce", "Tensor.scatter_reduce",
    ),
    "unpooling": (
        unpooled,
        "max_unpool2d", "nn.MaxUnpool2d",
    ),
    "sampling at a grid": (
        sampled,
        "grid_sampler_2d_backward", "nn.functional.grid_sample",
    ),
    "put": (
        put,
        "put", "Tensor.put_",
    ),
    "median": (
        lambda x: x.median(dim=1).values,
        "median", "median",
    ),
    "histogram": (
        lambda x: x.sum() + torch.histc(x.detach()),
        "histc", "histc",
    ),
}  # fmt: skip


@needs_cuda_build
@pytest.mark.parametrize("case", LISTED)
def test_non_deterministic_operator_is_listed(case: str):
    operation, operator, documented = LISTED[case]
    assert (f"aten::{operator}", f"torch.{documented}") in listed(operation)
    assert {name for name, _ in listed(operation)} == {f"aten::{operator}"}


NOT_LISTED = {
    "adaptive average of one value": lambda x: F.adaptive_avg_pool2d(x, 1),
    "average without adaptive pooling": lambda x: F.avg_pool2d(x, 2),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear, which has a deterministic alternative": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "trilinear, which has one too": lambda x: F.interpolate(x[None], size=(2, 7, 7), mode="trilinear"),
    "loss of pixels, not reduced": lambda x: pixel_loss(x, "none"),
    "loss of classes": lambda x: F.cross_entropy(x.mean((2, 3)), x.new_zeros(len(x), dtype=torch.int64)),
    "bags by mean": lambda x: bags(x, "mean"),
    "scattered sum": lambda x: scattered(x, "sum"),
    "median of everything": lambda x: x.median(),
    "resizing without a gradient": lambda x: x.mean() + F.interpolate(x.detach(), size=7, mode="bicubic").mean(),
    "padding with zeros": lambda x: F.pad(x, (1, 1, 1, 1)),
}
# Later releases than torch 2.11 have a deterministic implementation.
if "torch.cumsum" in {entry.name for entry in entries()}:
    LISTED["cumulative sum"] = (lambda x: x.cumsum(1), "cumsum", "cumsum")
else:
    NOT_LISTED["cumulative sum"] = lambda x: x.cumsum(1)


@needs_cuda_build
@pytest.mark.parametrize("case", NOT_LISTED)
def test_deterministic_operator_is_not_listed(case: str):
    assert listed(NOT_LISTED[case]) == []


@needs_cuda_build
@pytest.mark.parametrize("backbone", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "test_efficientnet"])
def test_common_backbones_list_nothing(backbone: str):
    assert preflight(ImageClassifier(backbone, 10, pretrained=False), 224, 2) == []


@needs_cuda_build
def test_backbone_with_blur_pooling_lists_its_padding():
    """timm's BlurPool pads by reflection."""
    (operator,) = preflight(ImageClassifier("resnetblur18", 10, pretrained=False), 64, 2)
    assert operator.documented == "torch.nn.ReflectionPad2d"
    assert operator.modules[0] == "network.backbone.layer4.0.aa (BlurPool2d)"


@needs_cuda_build
def test_trace_shows_operators_of_cuda():
    task = ImageClassifier("test_resnet", 3, pretrained=False)
    traced = trace(task, example_batch(task, 64, 2))
    assert {"aten::cudnn_batch_norm", "aten::cudnn_batch_norm_backward", "aten::convolution_backward"} <= traced.seen
    assert "aten::native_batch_norm" not in traced.seen
    assert "aten::addcdiv_" in traced.seen or "aten::_fused_adamw_" in traced.seen, "the optimizer's step"
    assert traced.optimizer == ""


@needs_cuda_build
def test_module_is_named_for_forward_and_backward_operators():
    (pooled,) = preflight(OddTask(lambda x: F.adaptive_avg_pool2d(x, 7), lr=0.1), 18, 2)
    (loss,) = preflight(OddTask(lambda x: pixel_loss(x, "mean"), lr=0.1), 18, 2)
    assert pooled == Operator(
        "aten::_adaptive_avg_pool2d_backward", "torch.nn.AdaptiveAvgPool2d", ("network.odd (Odd)",)
    )
    assert loss.modules == ("network.odd (Odd)",)


@needs_cuda_build
def test_own_batch():
    classifier = ImageClassifier("test_resnet", 3, pretrained=False, multi_label=True)
    batch = Batch(torch.rand(2, 3, 40, 48), torch.ones(2, 3), ("a", "b"))
    assert preflight(classifier, batch=batch) == preflight(classifier, 64, 2) == []


@needs_cuda_build
def test_task_is_not_changed():
    task = ImageClassifier("test_resnet", 3, pretrained=False, deterministic=False).eval()
    before = copy.deepcopy(task.state_dict())
    generator = torch.get_rng_state()
    preflight(task, 64, 2)
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert {parameter.device.type for parameter in task.parameters()} == {"cpu"}
    assert not task.training
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(generator, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in task.parameters())


# ---- steps that depend on values

VALUE_DEPENDENT = {
    "a number": lambda x: x * float(x.detach().sum()),
    "a truth": lambda x: x if bool((x.detach() > 0).any()) else x.flatten(),
    "a list": lambda x: x * sum(x.detach().flatten().tolist()),
    "an array": lambda x: x * float(x.detach().cpu().numpy().mean()),
    "places": lambda x: x[torch.where(x > 0)],
    "a choice": lambda x: x[x > 0],
    "a tensor made of a number": lambda x: x * torch.tensor([x.detach().max().item()], device=x.device),
    "changed in place": lambda x: x.clone().index_fill_(0, torch.where(x.detach().sum((1, 2, 3)) < 0)[0], 1.0),
    "drawn": lambda x: x * torch.multinomial(torch.rand(x.numel(), device=x.device), 1)[0].item(),
}


@needs_cuda_build
@pytest.mark.parametrize("case", VALUE_DEPENDENT)
def test_value_dependent_step_is_calculated(case: str):
    batch = Batch(torch.rand(2, 3, 18, 18), None)
    fine = trace(OddTask(VALUE_DEPENDENT[case], lr=0.1), batch)
    assert fine.operators == []
    assert fine.calculated
    odd = trace(
        OddTask(lambda x: F.pad(VALUE_DEPENDENT[case](x).flatten()[None, :], (1, 1), mode="reflect"), lr=0.1), batch
    )
    assert [operator.name for operator in odd.operators] == ["aten::reflection_pad1d_backward"]


@needs_cuda_build
def test_branches_follow_the_values():
    def branching(x: Tensor) -> Tensor:
        return F.interpolate(x, size=7, mode="bicubic") if float(x.detach().std((2, 3)).max()) > 1e-3 else x

    task = OddTask(branching, lr=0.1)
    assert preflight(task, batch=Batch(torch.zeros(2, 3, 18, 18), None)) == []
    assert len(preflight(task, batch=Batch(torch.rand(2, 3, 18, 18), None))) == 1


@needs_cuda_build
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_calculated_step_calls_the_operators_of_a_traced_step(backbone: str):
    task = ImageClassifier(backbone, 3, pretrained=False, image_size=64)
    batch = example_batch(task, 64, 2)
    value_dependent = copy.deepcopy(task)
    value_dependent.criterion = ValueDependentLoss(task.criterion)
    traced, calculated = trace(task, batch), trace(value_dependent, batch)
    assert (traced.calculated, calculated.calculated) == (False, True)
    assert calculated.seen - traced.seen <= {"aten::_local_scalar_dense", "aten::detach", "aten::empty", "aten::mul"}
    assert traced.seen - calculated.seen <= {"aten::empty_strided"}


class ValueDependentLoss(nn.Module):
    """A loss that branches on its value."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        loss = self.inner(logits, targets)
        return loss * (1.0 if float(loss.detach()) > 0 else 2.0)


@needs_cuda_build
def test_calculated_values_equal_those_of_the_cpu():
    """Including batch normalization, which is another operator on CUDA, and changes in place."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3))
    images = torch.rand(2, 3, 9, 9)
    fakes = Numbers()
    with fakes.mode():
        memo = {id(parameter): nn.Parameter(fakes.stand_in(parameter)) for parameter in network.parameters()}
        memo |= {id(buffer): fakes.stand_in(buffer) for buffer in network.buffers()}
    fake_network = copy.deepcopy(network, memo)
    with fakes.mode():
        loss = fake_network(fakes.stand_in(images)).square().mean()
        assert (loss.device.type, loss.is_cuda) == ("cuda", True)
        backward(loss)
    network(images).square().mean().backward()
    for parameter, fake in zip(network.parameters(), fake_network.parameters(), strict=True):
        assert torch.equal(parameter.grad, fakes.behind(fake.grad))
    for buffer, fake in zip(network.buffers(), fake_network.buffers(), strict=True):
        assert torch.equal(buffer, fakes.behind(fake))


@needs_cuda_build
def test_failing_step_raises_run_error():
    with pytest.raises(RunError, match=r"The training step of OddTask fails while it is traced \(shape '\[7\]'"):
        preflight(OddTask(lambda x: x.view(7), lr=0.1), 18, 2)


# ---- what torch documents


def test_every_documented_operation_is_in_a_table():
    """If this fails with a new release of torch, add the new names to documented.py."""
    names = {entry.name for entry in entries()}
    assert len(names) >= 20
    assert unknown(entries()) == []
    assert set(IRRELEVANT) <= names


def test_every_operator_of_the_tables_exists():
    for rule in [rule for rules in TABLE.values() for rule in rules]:
        name, _, overload = rule.operator.removeprefix("aten::").partition(".")
        packet = getattr(torch.ops.aten, name)
        assert not overload or overload in packet.overloads() or overload == "dim_values"
    for rule, entry in VISION:
        assert hasattr(torch.ops.torchvision, rule.operator.removeprefix("torchvision::"))
        assert hasattr(torchvision.ops, entry.name.removeprefix("torchvision.ops."))


def test_entries_are_parsed_from_the_docstring():
    text = """Sets.

    they will throw a
    :class:`RuntimeError` when called.

    The following normally-nondeterministic operations will act deterministically when ``mode=True``:

        * :func:`torch.cumsum` when called

    The following normally-nondeterministic operations will throw a
    :class:`RuntimeError` when ``mode=True``:

        * :class:`torch.nn.AvgPool3d` when attempting
        * :func:`torch.nn.functional.interpolate` when attempting
          and one of the following modes is used:

          - ``bicubic``

        * :func:`torch.new_thing` sometimes

    In addition, several operations

        * :func:`torch.empty` fill
    """
    documented = entries(text)
    assert [entry.name for entry in documented] == [
        "torch.nn.AvgPool3d",
        "torch.nn.functional.interpolate",
        "torch.new_thing",
    ]
    assert "``bicubic``" in documented[1].text
    assert unknown(documented) == ["torch.new_thing"]
    assert entries("nothing of the kind") == []


# ---- the backward pass


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_backward_pass_equals_that_of_torch(backbone: str):
    task = ImageClassifier(backbone, 3, pretrained=False)
    copied = copy.deepcopy(task)
    batch = Batch(torch.rand(2, 3, 160, 160), torch.tensor([0, 2]))
    task.train().step(batch, Stage.TRAIN).loss.backward()
    backward(copied.train().step(batch, Stage.TRAIN).loss)
    for parameter, expected in zip(copied.parameters(), task.parameters(), strict=True):
        assert torch.equal(parameter.grad, expected.grad)


def test_backward_pass_of_custom_autograd_functions():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x, x + 1

        @staticmethod
        def backward(ctx, first, second):
            return 2 * first + second

    x = torch.tensor([1.0, 2.0], requires_grad=True)
    first, second = Twice.apply(x)
    backward((first * torch.tensor(3.0, dtype=torch.float64)).sum() + second.sum())
    assert x.grad.tolist() == [7.0, 7.0]


# ---- the step on a real device


def test_judge_names_the_operators_that_torch_reports():
    """On the CPU, where torch reports `put_` in the same way."""
    task = OddTask(put, lr=0.1)
    assert [operator.name for operator in judge(task, example_batch(task, 18, 2), "cpu")] == ["put_"]
    fine = ImageClassifier("test_resnet", 3, pretrained=False)
    assert judge(fine, example_batch(fine, 64, 2), "cpu") == []


def test_judge_raises_for_other_errors():
    task = OddTask(lambda x: x.view(7), lr=0.1)
    with pytest.raises(RunError, match=r"The training step of OddTask fails \(shape"):
        judge(task, example_batch(task, 18, 2), "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("case", ["adaptive average of 7 x 7", "bicubic", "reflection", "loss of pixels"])
def test_gpu_agrees_with_trace(case: str):
    task = OddTask(LISTED[case][0], lr=0.1)
    assert judge(task, example_batch(task, 18, 2))


# ---- versions and machine


def levels(findings: list[Finding]) -> list[str]:
    return [finding.level for finding in findings]


def test_installed_versions_are_ok():
    assert set(levels(check_versions())) == {"ok"}


@pytest.mark.parametrize(
    ("torch_version", "torchvision_version", "needs", "level"),
    [
        ("2.11.0+cu130", "0.26.0", "torch==2.11.0", "ok"),
        ("2.14.1", "0.29.1", "torch (>=2.14.0)", "ok"),
        ("2.13.0", "0.26.0", "torch==2.11.0", "problem"),
        ("2.13.2", "0.29.1", "torch (>=2.14.0)", "problem"),
        ("2.15.0", "0.29.1", "torch (>=2.14.0)", "note"),
        ("2.14.0", "0.26.0", "", "note"),
    ],
)
def test_pairs_of_releases(torch_version: str, torchvision_version: str, needs: str, level: str):
    assert _pair(torch_version, torchvision_version, needs).level == level


def test_missing_and_outdated_packages_have_a_cure():
    findings = _dependencies({"timm": "1.0.30", "rich": "13.7", "numpy": "2.0"}, {"timm": "1.0.9", "numpy": "2.0.1rc1"})
    assert [(finding.level, finding.cure) for finding in findings] == [
        ("problem", 'Install it with: pip install "timm>=1.0.30"'),
        ("problem", 'Install it with: pip install "rich>=13.7"'),
        ("ok", ""),
    ]
    assert findings[-1].text == "numpy 2.0.1rc1"
    assert _python(">=3.10", (3, 9, 18)).level == "problem"
    assert _python(">=3.10", (3, 10, 0)).level == "ok"


def test_environment_variables_that_change_results_are_shown(monkeypatch: pytest.MonkeyPatch):
    for name in ("MKL_CBWR", "NVIDIA_TF32_OVERRIDE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    text = "\n".join(finding.text for finding in check_switches())
    assert "MKL_CBWR=AVX2" in text
    assert "NVIDIA_TF32_OVERRIDE" not in text
    assert "problem" not in levels(check_switches())


def test_non_deterministic_cublas_workspace_is_a_problem(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    (problem,) = [finding for finding in check_switches() if finding.level == "problem"]
    assert "CUBLAS_WORKSPACE_CONFIG" in problem.text
    assert ":4096:8" in problem.cure


def test_tf32_is_noted(monkeypatch: pytest.MonkeyPatch):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert any("TF32" in finding.text for finding in check_switches() if finding.level == "note")
    finally:
        torch.set_float32_matmul_precision(before)


def test_machine_is_described():
    text = "\n".join(finding.text for finding in check_machine(".", 64, 8, None))
    assert torch.backends.cpu.get_cpu_capability() in text
    assert "free" in text


def test_shared_memory_must_hold_the_batches_of_all_workers():
    gigabyte = 10**9
    assert check_memory(gigabyte, 224, 32, 4).level == "ok"
    assert check_memory(64 * 2**20, 224, 32, 0).level == "ok"
    small = check_memory(64 * 2**20, 224, 32, 4)
    assert small.level == "problem"
    assert "--shm-size" in small.cure
