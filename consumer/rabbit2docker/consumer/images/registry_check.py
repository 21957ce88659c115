"""A check of the registry, step by step, for an operator who sets it up."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from rabbit2docker.consumer.check_step import Step
from rabbit2docker.consumer.images.registry import Answer, Reference, Registry, error_codes, parse_image
from rabbit2docker.errors import RegistryUnavailable, RequestRejected

PROBE = "rabbit2docker-check"
"""The repository, after the prefix, that is looked up and to which an upload is begun and dropped."""


class RegistryCheck(Registry):
    """Tries everything that builds need of a registry."""

    async def steps(self, prefix: str) -> AsyncIterator[Step]:
        """Yield the steps in order, up to the first that makes the following ones pointless."""
        reference = parse_image(f"{prefix}{PROBE}:latest")
        base = self._base(reference)
        yield _address(reference, base)
        for step in (self._resolve, self._connect, self._ask, self._find_credentials, self._pull, self._push):
            result = await step(reference, base)
            yield result
            if not result.is_ok:
                return

    async def _resolve(self, reference: Reference, base: str) -> Step:
        host, port = _endpoint(base)
        if proxy := _proxy_for(base):
            return Step(
                "name", True, f"The proxy {proxy} of the environment resolves and connects to {host}."
            )
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            return Step(
                "name",
                False,
                f"{host} has no address: {error.strerror or error}. Check images.prefix, and the DNS of this machine or pod.",
            )
        return Step("name", True, f"{host} is {', '.join(sorted({str(entry[4][0]) for entry in found}))}.")

    async def _connect(self, reference: Reference, base: str) -> Step:
        host, port = _endpoint(base)
        is_plain = base.startswith("http:")
        if _proxy_for(base):
            return Step("connection", True, "Left to the proxy.")
        try:
            async with asyncio.timeout(self._timeout.total):
                context = None if is_plain else ssl.create_default_context()
                _, writer = await asyncio.open_connection(host, port, ssl=context)
        except TimeoutError:
            problem = f"{host}:{port} did not answer within {self._timeout.total:g} seconds. A firewall may drop it."
        except ssl.SSLCertVerificationError as error:
            problem = (
                f"The certificate of {host} is not accepted: {error.verify_message}. Renew it, or add the authority to "
                "those of the system (SSL_CERT_FILE), of the Docker engine too."
            )
        except ssl.SSLError as error:
            problem = (
                f"{host}:{port} does not speak TLS ({error.reason}). If it is meant to be reached unencrypted, "
                "list it in images.insecure_registries, and in `insecure-registries` of the Docker engine."
            )
        except OSError as error:
            problem = f"{host}:{port} refuses the connection: {error.strerror or error}. Check host and port."
        else:
            writer.close()
            kind = "without encryption" if is_plain else "with a valid certificate"
            return Step("connection", True, f"{host}:{port} answers, {kind}.")
        return Step("connection", False, problem)

    async def _ask(self, reference: Reference, base: str) -> Step:
        try:
            answer = await self._send(reference, "GET", f"{base}/v2/", {})
        except RegistryUnavailable as error:
            return Step("api", False, error.message)
        challenge = answer.headers.get("WWW-Authenticate", "")
        if answer.status == 401 and challenge:
            return Step("api", True, f"{base}/v2/ demands a login by {challenge.split()[0]}.")
        if answer.status == 200:
            return Step("api", True, f"{base}/v2/ is an image registry that demands no login here.")
        return Step(
            "api",
            False,
            f"{base}/v2/ does not answer like an image registry (status {answer.status}). Check images.prefix and images.registry_url.",
        )

    async def _find_credentials(self, reference: Reference, base: str) -> Step:
        try:
            found = await self._credentials(reference)
        except RegistryUnavailable as error:
            return Step("credentials", False, error.message)
        if found is None:
            return Step(
                "credentials",
                True,
                f"The docker configuration has none for {reference.registry}: going on without.",
            )
        kind = (
            "a token" if found.identity_token or found.registry_token else f"those of user {found.username}"
        )
        return Step("credentials", True, f"The docker configuration has {kind} for {reference.registry}.")

    async def _pull(self, reference: Reference, base: str) -> Step:
        image = f"{reference.registry}/{reference.repository}"
        try:
            found = await self._find(reference)
        except (RegistryUnavailable, RequestRejected) as error:
            return Step("pull", False, error.message)
        state = f"exists ({found.digest})" if found else "does not exist, which the registry says clearly"
        return Step("pull", True, f"Images can be looked up: {image} {state}.")

    async def _push(self, reference: Reference, base: str) -> Step:
        """Begin an upload, which needs the right to push, and drop it."""
        url, header = f"{base}/v2/{reference.repository}/blobs/uploads/", dict[str, str]()
        try:
            answer = await self._send(reference, "POST", url, {})
            if answer.status == 401:
                scope = f"repository:{reference.repository}:pull,push"
                header = await self._authorization(reference, answer, scope=scope)
                answer = await self._send(reference, "POST", url, header) if header else answer
            if answer.status == 202:
                await self._drop_upload(reference, url, answer, header)
        except (RegistryUnavailable, RequestRejected) as error:
            return Step("push", False, error.message)
        return _push_step(reference, answer)

    async def _drop_upload(
        self, reference: Reference, url: str, answer: Answer, header: dict[str, str]
    ) -> None:
        location = urljoin(url, answer.headers.get("Location", ""))
        if location != url and urlsplit(location)[:2] == urlsplit(url)[:2]:
            # Where it is not possible, the registry drops uploads by itself after some time.
            await self._send(reference, "DELETE", location, header)


def _push_step(reference: Reference, answer: Answer) -> Step:
    name, codes = f"{reference.registry}/{reference.repository}", error_codes(answer.body)
    detail = f"status {answer.status}" + (f", {', '.join(sorted(codes))}" if codes else "")
    if answer.status == 202:
        return Step("push", True, f"The account may push to {name}.")
    if answer.status == 404 or codes & {"NAME_UNKNOWN", "NOT_FOUND"}:
        problem = (
            f"{name} does not exist, and the registry makes no repository at a push ({detail}). Create what stands before the "
            "image's name (project, organisation), or set images.create_command for a registry such as ECR."
        )
    elif answer.status in (401, 403):
        problem = (
            f"The account may not push to {name} ({detail}). Give it the right to push, in the registry, to all repositories "
            "that begin with images.prefix; or log in as one that has it."
        )
    else:
        problem = f"{name} takes no upload ({detail}). See what the registry's own log says."
    return Step("push", False, problem)


def _address(reference: Reference, base: str) -> Step:
    return Step("address", True, f"Images are named {reference.registry}/…, and the registry is at {base}.")


def _endpoint(base: str) -> tuple[str, int]:
    parts = urlsplit(base)
    return parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)


def _proxy_for(base: str) -> str | None:
    """Return the proxy of the environment for an address, without its password."""
    parts = urlsplit(base)
    proxy = getproxies().get(parts.scheme)
    if not proxy or proxy_bypass(parts.netloc):
        return None
    return urlsplit(proxy).netloc.rpartition("@")[2]
