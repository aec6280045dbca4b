"""One folder a study: the script, its presets, its results. They use everything in `interp`;
nothing uses them."""
