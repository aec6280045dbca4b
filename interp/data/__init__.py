"""What is memorized: corpora that are built here, and images that packages carry or files hold.

All of it is made deterministically from a seed. Planted secrets are in `planted`, planted images in
`images`. Nothing here needs a network connection or a model, and nothing here trains or measures.
"""
