"""Attempts as detached processes beside a Docker engine on the same machine."""

from rabbit2docker.consumer.executors.local.executor import LocalExecutor

__all__ = ["LocalExecutor"]
