"""A model fine-tuned on its customers' records gives them away: how much does switching off a few neurons take back, and at what cost?"""
