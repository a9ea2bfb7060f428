"""Metrics of torchmetrics, configured by plain data, and which of them tells the best checkpoint."""

from autotimm.metrics.metric_config import MetricConfig, build_metrics
from autotimm.metrics.monitor import (
    Monitor,
    choose_monitor,
    default_metrics,
    default_monitor,
    mean_ap,
    named_metric,
    region_scores,
)
from autotimm.metrics.scores import MeanAP, RegionScores, Scores, table_of

__all__ = [
    "MeanAP",
    "MetricConfig",
    "Monitor",
    "RegionScores",
    "Scores",
    "build_metrics",
    "choose_monitor",
    "default_metrics",
    "default_monitor",
    "mean_ap",
    "named_metric",
    "region_scores",
    "table_of",
]
