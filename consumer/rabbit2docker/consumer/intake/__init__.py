"""Intake: each delivery is parsed, admitted as a build, a joined build or an existing image, and settled once."""
