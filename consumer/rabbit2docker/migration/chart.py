"""The values of both charts apart from `config`, translated into ours."""

import json
from typing import Any, Final

from rabbit2docker.migration import forms
from rabbit2docker.migration.translation import Form, Translation

_BOTH: Final = ("consumer", "hubService")


def _both(field: str) -> str:
    return " ".join(f"{part}.{field}" for part in _BOTH)


_COPIES: Final[dict[str, tuple[str, Form]]] = {
    "enabled": ("enabled", forms.boolean),
    "custom": ("custom", forms.mapping),
    "networkPolicy.enabled": ("networkPolicy.enabled", forms.boolean),
    "image.pullSecrets": ("imagePullSecrets", forms.references),
    "podAnnotations": ("hubService.podAnnotations", forms.strings),
    "podLabels": ("hubService.podLabels", forms.strings),
    "deployment.labels": ("hubService.podLabels", forms.strings),
    "nodeSelector": (_both("nodeSelector"), forms.strings),
    "tolerations": (_both("tolerations"), forms.objects),
    "affinity": (_both("affinity"), forms.mapping),
    "extraVolumes": (_both("extraVolumes"), forms.objects),
    "extraVolumeMounts": (_both("extraVolumeMounts"), forms.objects),
    "extraPodSpec": ("hubService.extraPodSpec", forms.mapping),
    "initContainers": ("hubService.initContainers", forms.objects),
    "lifecycle": ("hubService.lifecycle", forms.mapping),
    "rbac.create": ("rbac.create", forms.boolean),
    "rbac.enabled": ("rbac.create", forms.boolean),
    "serviceAccount.create": ("serviceAccount.create", forms.boolean),
    "serviceAccount.name": ("serviceAccount.name", forms.text),
    "serviceAccount.annotations": ("serviceAccount.annotations", forms.strings),
    "service.type": ("hubService.service.type", forms.service_type),
    "service.port": ("hubService.service.port", forms.port),
    "service.nodePort": ("hubService.service.nodePort", forms.port),
    "service.annotations": ("hubService.service.annotations", forms.strings),
    "ingress.enabled": ("hubService.ingress.enabled", forms.boolean),
    "ingress.annotations": ("hubService.ingress.annotations", forms.strings),
    "ingress.ingressClassName": ("hubService.ingress.className", forms.text),
    "ingress.hosts": ("hubService.ingress.hosts", forms.texts),
    "ingress.tls": ("hubService.ingress.tls", forms.objects),
    "dockerApi.image.repository": ("dockerApi.image.repository", forms.filled),
    "dockerApi.image.pullPolicy": ("dockerApi.image.pullPolicy", forms.pull_policy),
    "dockerApi.resources": ("dockerApi.resources", forms.mapping),
    "dockerApi.initContainers": ("dockerApi.initContainers", forms.objects),
    "dockerApi.securityContext": ("dockerApi.containerSecurityContext", forms.mapping),
    "dockerApi.podSecurityContext": ("dockerApi.podSecurityContext", forms.mapping),
    "dockerApi.podAnnotations": ("dockerApi.podAnnotations", forms.strings),
    "dockerApi.podLabels": ("dockerApi.podLabels", forms.strings),
    "dockerApi.nodeSelector": ("dockerApi.nodeSelector", forms.strings),
    "dockerApi.affinity": ("dockerApi.affinity", forms.mapping),
    "dockerApi.tolerations": ("dockerApi.tolerations", forms.objects),
    "dind.daemonset.image.name": ("dockerApi.image.repository", forms.filled),
    "dind.daemonset.image.pullPolicy": ("dockerApi.image.pullPolicy", forms.pull_policy),
    "dind.resources": ("dockerApi.resources", forms.mapping),
    "dind.initContainers": ("dockerApi.initContainers", forms.objects),
    "dind.daemonset.lifecycle": ("dockerApi.lifecycle", forms.mapping),
    "dind.daemonset.extraArgs": ("dockerApi.extraArgs", forms.texts),
    "cors.allowOrigin": ("config.hub.allow_origin", forms.filled),
}
"""Old value → new ones, and their form."""

_PROGRAM: Final = "it belongs to BinderHub's program, which is replaced."
_OBJECTS: Final = "it names objects of the old release; new names let both run side by side until you switch."
_LEFT_OUT: Final = {
    "nameOverride": _OBJECTS,
    "fullnameOverride": _OBJECTS,
    "image": _PROGRAM,
    "imageBuilderType": "docker-api is the one engine of this chart.",
    "resources": "consumers and the hub's service need less, and have their own defaults.",
    "securityContext": "the defaults of this chart are as strict or stricter.",
    "podSecurityContext": "the defaults of this chart are as strict or stricter.",
    "ingress.pathSuffix": "the path of the Ingress is that of the service.",
    "ingress.pathType": "the path of the Ingress is a prefix.",
    "ingress.https": "list the certificate in hubService.ingress.tls.",
    "service.labels": "Services have commonLabels.",
    "service.loadBalancerIP": "set an annotation of your cloud in hubService.service.annotations.",
    "pdb": "hubService.podDisruptionBudget lets a node with the one instance be drained.",
    "imageCleaner": "engines keep to dockerApi.disk by themselves, images and build cache together.",
    "pink": "podman is no engine of this chart.",
    "dind.enabled": "the chart has its own engine: dockerApi.enabled.",
    "dind.storageDriver": "set storage-driver in dockerApi.daemonConfig if the engine's choice does not do.",
    "dind.hostSocketDir": "the directory of the socket is different for each release: dockerApi.socketDirectory.",
    "dind.hostLibDir": "set dockerApi.storage if the cache is to stay across upgrades.",
    "deployment.readinessProbe": "hubService.readinessProbe has times for this program.",
    "deployment.livenessProbe": "hubService.livenessProbe has times for this program.",
    "networkPolicy.egress": "rules have another form: networkPolicy.builds and networkPolicy.hubService.",
    "networkPolicy.ingress": "rules have another form: networkPolicy.hubService.ingressFrom.",
    "extraFiles": "put files into a ConfigMap, and mount it with hubService.extraVolumes and .extraVolumeMounts.",
    "jupyterhub": "this chart has no JupyterHub: install Zero to JupyterHub as a release of its own, or in your parent chart.",
    "github": "an OAuth app is not used; a token has the same limit: githubToken.existingSecret.",
    "baseUrl": "the path is config.hub.base_url, or follows from hubService.jupyterhub.",
    "projectId": _PROGRAM,
    "sops": "it describes how the file is encrypted.",
}
"""Old value → why it is left out."""

_OF_THE_CHART: Final = {"hosts", "group", "data-root", "pidfile", "exec-root"}
"""Settings of dockerd that the chart sets."""


def translate(translation: Translation) -> None:
    """Translate all values."""
    for old, (new, form) in _COPIES.items():
        translation.copy(old, new, form)
    _global(translation)
    _replicas(translation)
    _engine(translation)
    for old, reason in _LEFT_OUT.items():
        translation.leave(old, reason)


def _global(translation: Translation) -> None:
    found = translation.read("global", forms.mapping)
    if found:
        secrets = found.get("imagePullSecrets", [])
        if isinstance(secrets, list) and all(isinstance(item, dict) for item in secrets):
            translation.set("global", found, source="global")
        else:
            translation.leave_note("global", "imagePullSecrets is no list of mappings.")


def _replicas(translation: Translation) -> None:
    """Consumers come in twos. The hub's service has one instance on SQLite, any number on a database."""
    found = translation.read("replicas", forms.integer)
    if found and found > 1:
        translation.leave_note(
            "replicas",
            "the hub's service stores builds in SQLite, with one instance, until hubService.database.existingSecret is set; "
            "then set hubService.replicas. Consumers are two.",
        )


def _engine(translation: Translation) -> None:
    for old in ("dockerApi.image.tag", "dind.daemonset.image.tag"):
        translation.copy(old, "dockerApi.image.tag", forms.filled)
    _engine_pull_secrets(translation)
    _arguments(translation)
    _files(translation)
    _storage(translation)


def _engine_pull_secrets(translation: Translation) -> None:
    """Add the Secrets for the engine's image to those of the release, which has one list."""
    former = translation.values.pop("imagePullSecrets", [])
    translation.copy("dockerApi.image.pullSecrets", "imagePullSecrets", forms.references)
    both = [*former, *(each for each in translation.values.get("imagePullSecrets", []) if each not in former)]
    if both:
        translation.own("imagePullSecrets", both)


def _arguments(translation: Translation) -> None:
    """Translate arguments of dockerd. What the chart sets itself must not be there twice, or dockerd does not start."""
    old = "dockerApi.extraArgs"
    kept, insecure = [], []
    for argument in translation.read(old, forms.texts) or []:
        option, _, value = argument.lstrip("-").partition("=")
        if option == "insecure-registry" and value:
            insecure.append(value)
        elif option in _OF_THE_CHART | {"host", "config-file"}:
            translation.leave_note(old, f"--{option} is set by the chart.")
        else:
            kept.append(argument)
    if kept:
        translation.set("dockerApi.extraArgs", kept, source=old)
    if insecure:
        translation.set(
            "dockerApi.insecureRegistries config.images.insecure_registries", insecure, source=old
        )


def _files(translation: Translation) -> None:
    """Translate the engine's configuration, which is one of its additional files."""
    files = translation.read("dockerApi.extraFiles", forms.mapping) or {}
    for name, file in files.items():
        path = f"dockerApi.extraFiles.{name}"
        where = str(file.get("mountPath", "")) if isinstance(file, dict) else ""
        if where.endswith("/daemon.json") and (config := _daemon_config(file)) is not None:
            _daemon(translation, config, path)
        else:
            translation.leave_note(
                path,
                "put the file into a ConfigMap, and mount it with dockerApi.extraVolumes and .extraVolumeMounts.",
            )


def _daemon_config(file: dict[str, Any]) -> dict[str, Any] | None:
    """Return the content of a daemon.json, written as a mapping or as text."""
    found = file.get("data")
    if isinstance(file.get("stringData"), str):
        try:
            found = json.loads(file["stringData"])
        except ValueError:
            return None
    return found if isinstance(found, dict) else None


def _daemon(translation: Translation, config: dict[str, Any], path: str) -> None:
    insecure = config.pop("insecure-registries", None)
    for name in _OF_THE_CHART & config.keys():
        del config[name]
        translation.leave_note(f"{path}.{name}", "is set by the chart.")
    if config:
        translation.set("dockerApi.daemonConfig", config, source=path)
    if isinstance(insecure, list) and all(isinstance(item, str) for item in insecure) and insecure:
        translation.set(
            "dockerApi.insecureRegistries config.images.insecure_registries", insecure, source=path
        )


def _storage(translation: Translation) -> None:
    """Translate where the engine's data is, which BinderHub's charts write as a volume."""
    limit = translation.read("dockerApi.storage.emptyDir.sizeLimit", forms.filled)
    path = translation.read("dockerApi.storage.hostPath.path", forms.filled)
    translation.take("dockerApi.storage.hostPath.type")
    if limit:
        translation.own("dockerApi.storage", {"type": "emptyDir", "sizeLimit": limit})
    elif path:
        translation.leave_note(
            "dockerApi.storage.hostPath.path",
            "two engines must not share a directory. dockerApi.storage.type is hostPath, in a directory of its own; remove the "
            "old one once the old release is gone.",
        )
        translation.own("dockerApi.storage", {"type": "hostPath"})
