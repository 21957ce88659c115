"""Stands in for repo2docker where a test is about everything but repo2docker."""
