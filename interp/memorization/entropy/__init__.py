"""How hard a text is to memorize: the Entropy-Memorization Law, and what follows from it.

Every window of a corpus gets a memorization score, the edit distance between its suffix and what
the model generates. Windows of one score are a *level*; the law says that the entropy of a level
grows linearly with its score.

Source: Huang et al. 2025, arXiv 2507.06056.
"""
