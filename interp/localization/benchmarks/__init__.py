"""Benchmarks of localization methods, on models whose memorizing units are known."""
