"""Benchmarks of localization methods, on models in which the memorizing units are known."""
