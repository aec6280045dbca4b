"""Ablating by hand: `Workbench`, a widget for notebooks, and `Workspace`, what it shows, without a
screen.

`treatment` says what is done to units, `workspace` holds what is selected and measures what that
changes, `view` turns it into what a page draws, and `widget` is that page's other end.
"""
