"""Deletes the pods, ConfigMaps, Leases and Secrets that the consumers have created, once all consumers have stopped.

Run by the chart after `helm uninstall` in the image of the consumer, with `KINDS`, `SELECTOR`, `CONSUMERS` and
`NAMESPACE` in the environment. Before an uninstall it is run as `remove.py stop`, with `DEPLOYMENT`: it then stops the
consumers, so that all builds can be ended; with `SCALED`, KEDA's ScaledObject of the same name goes first. Standard library only, so that any version of the image can run it.
"""

import http.client
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT_SECONDS: Final = 240
STOP_SECONDS: Final = 90
"""After this, consumers that are being deleted are left alone: their node may be gone. They take no requests any more."""
FINALIZER: Final = "rabbit2docker.io/outcome"
GROUPS: Final = {"leases": "/apis/coordination.k8s.io/v1"}


def call(method: str, path: str, body: Any = None) -> Any:
    """Call the API server and return the response; None if the object is gone or was replaced. Raises OSError."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    host = f"[{host}]" if ":" in host else host
    request = urllib.request.Request(
        f"https://{host}:{port}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}",
            "Content-Type": "application/merge-patch+json" if method == "PATCH" else "application/json",
        },
    )
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    try:
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            if error.code in (404, 409):
                return None
            raise OSError(f"{method} {path}: {error.code} {error.read().decode(errors='replace')}") from error
    except http.client.HTTPException as error:
        raise OSError(f"{method} {path}: {error}") from error


def collection(kind: str) -> str:
    """Return the path of the collection of all objects of a kind."""
    return f"{GROUPS.get(kind, '/api/v1')}/namespaces/{os.environ['NAMESPACE']}/{kind}"


def found(kind: str, selector: str) -> list[dict[str, Any]]:
    """Return the metadata of the objects that match the selector."""
    answer = call("GET", f"{collection(kind)}?labelSelector={urllib.parse.quote(selector)}")
    return [item["metadata"] for item in (answer or {}).get("items", [])]


def remove(kind: str, metadata: dict[str, Any]) -> None:
    """Delete one object, its finalizer first, as no consumer is left to remove that."""
    path = f"{collection(kind)}/{metadata['name']}"
    finalizers = metadata.get("finalizers", [])
    if FINALIZER in finalizers:
        others = [name for name in finalizers if name != FINALIZER]
        call(
            "PATCH",
            path,
            {"metadata": {"finalizers": others, "resourceVersion": metadata["resourceVersion"]}},
        )
    if "deletionTimestamp" not in metadata:
        call("DELETE", path, {"preconditions": {"uid": metadata["uid"]}})


def one_pass() -> list[str]:
    """Delete all objects and return the names of those to wait for. Deletes nothing while a consumer runs."""
    if consumers := found("pods", os.environ["CONSUMERS"]):
        return [metadata["name"] for metadata in consumers]
    left = []
    for kind in os.environ["KINDS"].split():
        for metadata in found(kind, os.environ["SELECTOR"]):
            left.append(f"{kind}/{metadata['name']}")
            remove(kind, metadata)
    return left


def stop_consumers() -> list[str]:
    """Scale the consumers to zero and return the names of those to wait for."""
    namespace, name = os.environ["NAMESPACE"], os.environ["DEPLOYMENT"]
    if "SCALED" in os.environ:  # by an object of the release, which an upgrade makes again
        call("DELETE", f"/apis/keda.sh/v1alpha1/namespaces/{namespace}/scaledobjects/{name}")
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"
    call("PATCH", path, {"spec": {"replicas": 0}})
    return [metadata["name"] for metadata in found("pods", os.environ["CONSUMERS"])]


def are_stopping() -> bool:
    """Return whether all consumers that are left are being deleted."""
    return all("deletionTimestamp" in metadata for metadata in found("pods", os.environ["CONSUMERS"]))


def repeat(one_pass: Callable[[], list[str]], seconds: float) -> bool:
    """Repeat a pass until nothing is left to wait for; return False if the time is up before."""
    until = time.monotonic() + seconds
    while True:
        try:
            left = one_pass()
        except OSError as error:
            left = [str(error)]
        if not left:
            return True
        if time.monotonic() >= until:
            return False
        print("waiting for", *left, file=sys.stderr, flush=True)  # noqa: T201
        time.sleep(1)


def main(arguments: list[str]) -> int:
    """Delete, or stop the consumers, until nothing is left or the time is up; return the exit code."""
    if arguments == ["stop"]:
        return 0 if repeat(stop_consumers, STOP_SECONDS) or are_stopping() else 1
    return 0 if repeat(one_pass, TIMEOUT_SECONDS) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
