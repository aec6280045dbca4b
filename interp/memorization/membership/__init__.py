"""Membership: which examples, and which tokens of them, a model was trained on.

Every score is in the same direction: higher means more likely a member.

`signals` are probabilities of whole examples, `attacks` compare them with reference models and a
population, `token_scores` does the same token by token, `corpus` measures a stream of texts or
images, `roc` says how well scores separate members from the others, and `token_map` shows which
tokens of one passage are memorized.
"""
