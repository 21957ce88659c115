"""kubectl for tests: it speaks to whichever cluster the environment names."""

import json
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from deploy.dev.machine import Unable

_SECONDS = 120.0


def kubectl(*arguments: str, stdin: str = "", namespace: str | None = None) -> str:
    """Run kubectl and return what it prints; raises Unable with what it complains about."""
    where = ("--namespace", namespace) if namespace else ()
    result = subprocess.run(
        ["kubectl", *where, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    if result.returncode:
        raise Unable(f"kubectl {' '.join(arguments)}: {result.stderr.strip()[-1000:]}")
    return result.stdout


def apply(*objects: Mapping[str, Any], namespace: str | None = None) -> None:
    """Create objects, or change them to be like this."""
    items = {"apiVersion": "v1", "kind": "List", "items": objects}
    kubectl("apply", "--filename=-", stdin=json.dumps(items), namespace=namespace)


def get(
    kind: str,
    name: str = "",
    *,
    namespace: str | None = None,
    selector: str = "",
    all_namespaces: bool = False,
) -> dict[str, Any]:
    """Return an object, or a list of those that a selector of labels chooses."""
    arguments = [kind, *([name] if name else []), *([f"--selector={selector}"] if selector else [])]
    if all_namespaces:
        arguments.append("--all-namespaces")
    return dict(json.loads(kubectl("get", *arguments, "--output=json", namespace=namespace)))


def phase(name: str, namespace: str) -> str:
    """Return the phase of a pod."""
    return str(get("pod", name, namespace=namespace)["status"].get("phase", ""))


@contextmanager
def new_namespace(prefix: str = "test") -> Iterator[str]:
    """Make a namespace in which pods can be made at once, and remove it with all that is in it."""
    name = f"{prefix}-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    try:
        # Pods are refused until a controller has made this account.
        kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=60s", namespace=name)
        yield name
    finally:
        kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")
