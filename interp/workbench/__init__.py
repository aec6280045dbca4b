"""Ablating by hand: `Workbench`, a widget for notebooks, and `Workspace`, what it shows, without a
screen.

`treatment` says what is done to units, `workspace` holds what is selected, `measurements` measures
what that changes, `view` turns it into what a page draws, `widget` is Python's end of that page and
`widget.js` the browser's; `code` and `notebook` write Python.
"""
