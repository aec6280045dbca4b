"""Unlearning: training that makes a model forget some sequences, or the secrets in them, and keep
the rest.

`unlearn` runs a method until a `Stop` rule is met. `methods` holds the methods, each a dataclass of
its options; `losses` the formulas that they are made of; `localized` confines gradients to some
units, so that every method can be run on the units of a localization method and on random ones.
"""
