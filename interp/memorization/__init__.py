"""How much is memorized: extraction of windows, and the control windows to hold them against. Where it sits is `localization`'s business."""
