"""Metrics of torchmetrics, configured by plain data, and which of them tells the best checkpoint."""

from autotimm.metrics.choice import Monitor, choose_monitor, default_metrics, default_monitor, named_metric
from autotimm.metrics.config import MetricConfig, build_metrics

__all__ = [
    "MetricConfig",
    "Monitor",
    "build_metrics",
    "choose_monitor",
    "default_metrics",
    "default_monitor",
    "named_metric",
]
