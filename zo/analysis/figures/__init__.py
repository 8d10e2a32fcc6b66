"""Figures, each with a caption computed from the same runs: ``plots`` lists them."""
