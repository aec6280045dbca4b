"""Data to memorize: corpora that are built here, and images from packages or files.

All of it is made deterministically from a seed. Planted secrets are in `planted`, planted images in
`images`. Nothing here needs a network connection or a model, and nothing here trains or measures.
"""
