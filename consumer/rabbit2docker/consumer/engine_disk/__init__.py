"""The engine's disk: what earlier builds have left is removed before the disk is full, and nothing that a build uses."""
