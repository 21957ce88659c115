"""A stand-in for repo2docker, for tests of everything else."""
