"""Clip sources, one module each; a module's `build` makes the source."""
