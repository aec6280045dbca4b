"""Reason to Rote (arXiv 2507.04782): small transformers learn to reason from partly wrong labels. How do they memorize the wrong ones?"""
