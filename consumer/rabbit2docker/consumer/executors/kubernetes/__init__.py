"""Attempts as pods beside docker-api on a Kubernetes cluster."""

from rabbit2docker.consumer.executors.kubernetes.executor import KubernetesExecutor

__all__ = ["KubernetesExecutor"]
