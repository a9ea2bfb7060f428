"""Nine patterns of seeding, each checked by real training.

    python examples/utilities/reproducibility.py

Each function shows one pattern on a few small generated images, and asserts its claim. Copy the pattern that you need;
with your own data, replace `toy_data` by `ImageDataModule("path/to/photos")`.
"""

import random
import tempfile
import time
from pathlib import Path

import torch

from autotimm import AutoTrainer, ImageClassifier, ImageDataModule, MetricConfig, seed_everything
from autotimm.data.toy import write_toy_folder
from autotimm.repro import state_digest

CLASSES = 4
SMALL = {"backbone": "test_resnet", "num_classes": CLASSES}  # a backbone that trains in a second


def toy_data(folder: Path, **options) -> ImageDataModule:
    """48 small images in class folders, generated once."""
    photos = folder / "photos"
    if not photos.exists():
        write_toy_folder(photos, n=48, num_classes=CLASSES, image_size=32, seed=0)
    return ImageDataModule(photos, image_size=32, batch_size=16, num_workers=0, **options)


def quiet_trainer(folder: Path, **options) -> AutoTrainer:
    """One epoch on the CPU, without a run folder and without a progress bar."""
    quiet = {"run_dir": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return AutoTrainer(max_epochs=1, accelerator="cpu", default_root_dir=folder, **quiet, **options)


def weights(model: ImageClassifier) -> str:
    """One digest of all weights and buffers: equal digests mean equal bits."""
    return state_digest(model.state_dict())


def train(folder: Path, model: ImageClassifier, **trainer_options) -> str:
    quiet_trainer(folder, **trainer_options).fit(model, datamodule=toy_data(folder))
    return weights(model)


def default_behavior(folder: Path) -> str:
    """Without any seed given, model, data and trainer use 42, and the run is reproducible."""
    first = train(folder, ImageClassifier(**SMALL))
    torch.rand(1000), random.random()  # random numbers drawn elsewhere in the process have no effect
    second = train(folder, ImageClassifier(**SMALL))
    assert first == second
    return "two runs without any argument gave the same weights, bit for bit"


def model_seed(folder: Path) -> str:
    """The model's seed determines its initial weights."""
    again = [weights(ImageClassifier(**SMALL, pretrained=False, seed=seed)) for seed in (42, 42, 7)]
    assert again[0] == again[1] != again[2]
    return "the model's seed determines the initial weights"


def trainer_seed(folder: Path) -> str:
    """The trainer's seed determines the order of the images, augmentation and dropout."""
    runs = [train(folder, ImageClassifier(**SMALL, seed=42), seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    return "the trainer's seed determines order, augmentation and dropout"


def manual_seed(folder: Path) -> str:
    """Call `seed_everything`; with `seed=None`, model and trainer derive their seeds from it."""
    runs = []
    for seed in (42, 42, 7):
        seed_everything(seed, deterministic=True)
        runs.append(train(folder, ImageClassifier(**SMALL, seed=None), seed=None))
    assert runs[0] == runs[1] != runs[2]
    return "seed_everything determines the result if model and trainer have seed=None"


def custom_seeds(folder: Path) -> str:
    """One seed per experiment: equal seeds give equal models, different seeds different ones."""
    runs = {seed: train(folder, ImageClassifier(**SMALL, seed=seed), seed=seed) for seed in (42, 123)}
    assert runs[42] != runs[123]
    assert runs[123] == train(folder, ImageClassifier(**SMALL, seed=123), seed=123)
    return "seeds 42 and 123 gave two models, and each is reproducible"


def deterministic_or_fast(folder: Path) -> str:
    """`deterministic` selects deterministic or fast kernels; seeds apply in both modes."""
    strict = ImageClassifier(**SMALL, seed=42, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    fast = ImageClassifier(**SMALL, seed=42, deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark
    assert weights(strict) == weights(fast)
    train(folder, fast, deterministic=False)
    return "deterministic=False allows fast kernels, and the seeds still apply"


def seeding_options(folder: Path) -> str:
    """Lightning's or autotimm's global seeding: training uses named streams, so both give the same result."""
    runs = [train(folder, ImageClassifier(**SMALL), use_autotimm_seeding=choice) for choice in (False, True)]
    assert runs[0] == runs[1]
    return "both kinds of global seeding gave the same weights"


def complete_workflow(folder: Path) -> str:
    """Seed, data, model and trainer together, with reproducible predictions."""
    seed = 42
    accuracy = MetricConfig(
        name="accuracy",
        backend="torchmetrics",
        metric_class="Accuracy",
        params={"task": "multiclass", "num_classes": CLASSES},
        stages=["val"],
    )
    results = []
    for _ in range(2):
        seed_everything(seed, deterministic=True)
        data = toy_data(folder, seed=seed)
        model = ImageClassifier(**SMALL, seed=seed, deterministic=True, metrics=[accuracy])
        trainer = quiet_trainer(folder, seed=seed, deterministic=True)
        trainer.fit(model, datamodule=data)
        with torch.inference_mode():
            logits = model.eval()(torch.zeros(1, 3, 32, 32))
        results.append((weights(model), float(trainer.callback_metrics["val/accuracy"]), logits.tolist()))
    assert results[0] == results[1]
    return f"weights, predictions and accuracy ({results[0][1]:.3f}) are reproducible"


def no_seed(folder: Path) -> str:
    """`seed=None` shows the variance: each run differs, and records the seed that it drew."""
    random.seed()  # as in a process without a seed
    free = ImageClassifier(**SMALL, seed=None), ImageClassifier(**SMALL, seed=None)
    assert free[0].root_seed != free[1].root_seed
    assert train(folder, free[0], seed=None) != train(folder, free[1], seed=None)
    return "without seeds two runs differ"


PATTERNS = (
    default_behavior,
    model_seed,
    trainer_seed,
    manual_seed,
    custom_seeds,
    deterministic_or_fast,
    seeding_options,
    complete_workflow,
    no_seed,
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number, pattern in enumerate(PATTERNS, 1):
            start = time.perf_counter()
            said = pattern(Path(folder))
            print(f"{number}. {pattern.__name__:<22} {said} ({time.perf_counter() - start:.1f} s)")


if __name__ == "__main__":
    main()
