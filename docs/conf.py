"""Sphinx configuration: `make docs` builds the pages with warnings as errors and checks their links."""

from importlib.metadata import version as version_of

project = "rabbit2docker"
copyright = "the rabbit2docker contributors"  # Sphinx fixes the name
version = release = version_of("rabbit2docker")

extensions = ["myst_parser", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["README.md"]
suppress_warnings = ["misc.highlighting_failure"]

html_theme = "furo"
html_title = f"rabbit2docker {release}"

# Addresses of other hosts are checked by `make docs-links`, which needs the internet.
linkcheck_ignore = [r"https?://[\w.-]*example\.org.*"]
nitpicky = True
