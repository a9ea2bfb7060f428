"""Metrics: configuration of torchmetrics by plain data, metrics with several values, and the choice of a monitor."""

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
