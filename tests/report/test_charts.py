"""Axes of charts: round numbers at equal distances that cover the values."""

import pytest

from autotimm.report.charts import Line, _ticks, epoch_chart


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.847, 0.931), (0.105, 0.374), (0.0, 2e-4), (12.0, 1e4), (-3.5, 2.0), (-0.2, -0.1), (0, 1e-9)],
)
def test_ticks_cover_the_values_at_equal_distances(low: float, high: float) -> None:
    ticks = _ticks(low, high)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low < ticks[1]
    assert ticks[-2] < high <= ticks[-1]
    assert ticks == pytest.approx([ticks[0] + at * step for at in range(len(ticks))])
    assert 3 <= len(ticks) <= 7


@pytest.mark.parametrize(("value", "ends"), [(1.0, (0, 1)), (0.0, (0, 1)), (2e-4, (0, 2e-4)), (-3.0, (-3, 0))])
def test_value_that_never_changes_is_shown_beside_zero(value: float, ends: tuple[float, float]) -> None:
    """Accuracies of 1 throughout had an axis up to 1.5."""
    ticks = _ticks(value, value)
    assert (ticks[0], ticks[-1]) == ends


def test_every_tick_of_an_epoch_chart_has_its_number() -> None:
    """A step that was computed anew from the rounded range left the upper end without one."""
    chart = epoch_chart("accuracy", [Line("validation", [(1, 0.847), (2, 0.875), (3, 0.931)])])
    assert all(f">{tick:g}<" in chart for tick in (0.825, 0.85, 0.875, 0.9, 0.925, 0.95))
