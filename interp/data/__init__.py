"""Data to memorize: corpora that are built here or come with packages, and texts and images from
packages or files.

All of it is made deterministically from a seed. Planted secrets are in `planted`, planted images in
`images`, real texts in `corpora`, and how often a window stands in a corpus in `corpus_counts`.
Nothing here trains or measures a model, and only data sets on the hub need a network connection.
"""
