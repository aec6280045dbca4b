"""What is memorized: corpora built here, deterministically, from a seed and from what an installation already carries.

Planted secrets live in `planted`. Nothing here needs torch, a network or a model; nothing here trains, measures or writes files.
"""
