"""What is memorized: corpora built here and images that packages carry or files hold,
deterministically, from a seed.

Planted secrets live in `planted`, planted images in `images`. Nothing here needs a network or a
model; nothing here trains or measures.
"""
