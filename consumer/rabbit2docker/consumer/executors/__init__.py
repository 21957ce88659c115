"""Where attempts run. `base` is the seam; each implementation is a package of its own beside it."""
