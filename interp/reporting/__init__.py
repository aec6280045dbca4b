"""Confidence intervals and tests, and figures in one style."""

from interp.reporting import plotting, stats

__all__ = ["plotting", "stats"]
