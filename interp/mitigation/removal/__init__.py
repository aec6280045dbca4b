"""Removal: whether something was removed from a model, what that cost, and whether it comes back.

`removal_report` compares a model before and after. `file_measures` holds what is measured of each
file, `stress` what a removal has to withstand (relearning and rounding of the weights), and
`report` the result: a table, a figure and a verdict.
"""
