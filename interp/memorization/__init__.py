"""How much is memorized: extraction of windows, and control windows to hold them against. Where it
sits is `localization`'s business."""
