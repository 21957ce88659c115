# The consumer, for Kubernetes:  docker build --tag registry.example.org/rabbit2docker:0.1.0 .
#
# Where pip cannot simply ask PyPI:
#   --secret id=pip.conf,src=FILE    a pip.conf with another index; it may hold a password
#   --secret id=ca.crt,src=FILE      a certificate authority
#   --build-context wheels=DIR       a directory of wheels, then nothing is asked for at all (`pip download` fills it)
# Where apt cannot reach Debian, BASE_IMAGE is one that has git, ca-certificates and python3 with venv.
ARG BASE_IMAGE=python:3.13-slim-bookworm

# Takes the place of a build context that is not given.
FROM scratch AS wheels

FROM ${BASE_IMAGE} AS base
# The provider `git` resolves refs with it.
RUN command -v git > /dev/null && [ -d /etc/ssl/certs ] || { \
      apt-get update \
      && apt-get install --yes --no-install-recommends git ca-certificates \
      && rm -rf /var/lib/apt/lists/*; }

FROM base AS install
# `hub`, or `kubernetes,hub`, for the service for a JupyterHub.
ARG EXTRAS=kubernetes
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY schemas schemas
COPY consumer consumer
# pip works from a place of its own, so that the environment holds what runs and nothing that installs.
RUN --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.crt,target=/run/secrets/ca.crt \
    set -eu; \
    if [ -n "$(ls /wheels)" ]; then export PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels; fi; \
    if [ -e /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi; \
    python3 -m venv /pip; \
    python3 -m venv --without-pip /opt/rabbit2docker; \
    /pip/bin/pip --python /opt/rabbit2docker/bin/python install --quiet --no-cache-dir \
      --disable-pip-version-check --constraint constraints.txt ".[$EXTRAS]"; \
    /opt/rabbit2docker/bin/rabbit2docker --help > /dev/null

FROM base
LABEL org.opencontainers.image.title="rabbit2docker" \
      org.opencontainers.image.description="Event-driven container image builds for JupyterHubs" \
      org.opencontainers.image.licenses="BSD-3-Clause"
COPY --from=install /opt/rabbit2docker /opt/rabbit2docker
# The root file system may be read-only: only /tmp is written to, by git. The number below has no entry in passwd, and
# whoever asks for a build in this container goes by the name of USER.
ENV PATH=/opt/rabbit2docker/bin:$PATH HOME=/tmp USER=rabbit2docker PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# As a number, so that Kubernetes can tell that it is not root.
USER 1000:1000
EXPOSE 8090
ENTRYPOINT ["rabbit2docker"]
CMD ["run"]
