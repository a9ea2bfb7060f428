"""The head that is fitted to features: a minimum, and a function of the samples and their ids alone."""

import pytest
import torch
from torch.nn import functional as F

from autotimm.optim.linear_head import FOLDS, PENALTIES, assign_folds, fit_linear_head

CLASSES = 3


def samples(count: int, size: int = 20, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    source = torch.Generator().manual_seed(7)
    targets = torch.arange(count) % CLASSES
    centers = torch.randn(CLASSES, size, generator=source) * spread
    features = centers[targets] + torch.randn(count, size, generator=source) + 5
    return features, targets, [f"{index:03d}.png" for index in range(count)]


def fit(features, targets, ids, strata=None):
    strata = targets.tolist() if strata is None else strata
    return fit_linear_head(features, targets, ids, strata, 42, num_classes=CLASSES)


@pytest.mark.parametrize("count", [12, 60], ids=["fewer samples than features", "more"])
def test_the_gradient_vanishes(count):
    features, targets, ids = samples(count)
    head = fit(features, targets, ids)
    variance = float((features.double() - features.double().mean(0)).square().mean())
    weight, bias = (value.clone().requires_grad_() for value in (head.weight, head.bias))
    loss = F.cross_entropy(features.double() @ weight.T + bias, targets)
    (loss + head.penalty / 2 * variance * weight.square().sum()).backward()
    assert weight.grad.abs().max() < 1e-3
    assert bias.grad.abs().max() < 1e-3


def test_it_is_as_good_as_that_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, targets, ids = samples(60)
    head = fit(features, targets, ids)
    variance = float((features.double() - features.double().mean(0)).square().mean())
    theirs = linear_model.LogisticRegression(C=1 / (head.penalty * variance * 60), tol=1e-8, max_iter=10_000)
    theirs.fit(features.double().numpy(), targets.numpy())
    weight, bias = torch.from_numpy(theirs.coef_), torch.from_numpy(theirs.intercept_)

    def objective(weight, bias):
        loss = F.cross_entropy(features.double() @ weight.T + bias, targets)
        return float(loss + head.penalty / 2 * variance * weight.square().sum())

    assert objective(head.weight, head.bias) == pytest.approx(objective(weight, bias), abs=1e-4)


def test_the_penalty_is_that_with_the_least_held_out_loss():
    easy, hard = (fit(*samples(60, spread=spread)) for spread in (4.0, 0.1))
    for head in (easy, hard):
        assert head.losses[head.penalty] == min(head.losses.values())
        assert [*head.losses] == [*PENALTIES][: len(head.losses)]
    assert easy.penalty < hard.penalty


def test_one_head_per_label():
    features, classes, ids = samples(60)
    targets = torch.stack([(classes > 0), (classes == 2), torch.zeros(60, dtype=torch.bool)], dim=1).float()
    head = fit(features, targets, ids, strata=classes.tolist())
    predicted = (features.double() @ head.weight.T + head.bias).sigmoid() > 0.5
    assert (predicted == targets.bool()).double().mean() > 0.95


def test_features_that_never_vary_do_no_harm():
    features, targets, ids = samples(12)
    head = fit(torch.ones_like(features), targets, ids)
    assert head.weight.abs().max() == 0
    assert head.bias.isfinite().all()


def test_folds_depend_on_ids_and_have_equally_many_of_each_class():
    ids, strata = [f"{index}.png" for index in range(60)], [index % 3 for index in range(60)]
    folds = dict(zip(ids, assign_folds(ids, strata, seed=42), strict=True))
    turned = dict(zip(ids[::-1], assign_folds(ids[::-1], strata[::-1], seed=42), strict=True))
    assert folds == turned
    for stratum in range(3):
        members = [folds[id] for id, of in zip(ids, strata, strict=True) if of == stratum]
        assert [members.count(fold) for fold in range(FOLDS)] == [4] * FOLDS
    assert folds != dict(zip(ids, assign_folds(ids, strata, seed=43), strict=True))
