# The image of rabbit2docker:  docker build --tag registry.example.org/rabbit2docker:0.1.0 .
#
# With --target local and --build-arg EXTRAS=local,hub it has the `docker` command, for builds beside the engine of one
# machine; compose.yaml uses it. VERSION, REVISION, CREATED and SOURCE become labels; `make image` sets them.
#
# Without direct access to PyPI:
#   --secret id=pip.conf,src=FILE    a pip.conf with another index; it may hold a password
#   --secret id=ca.crt,src=FILE      a certificate authority
#   --build-context wheels=DIR       a directory of wheels (from `pip download`), used instead of any index
# Without access to Debian, BASE_IMAGE names an image that has git, ssh, ca-certificates and python3 with venv.
ARG BASE_IMAGE=python:3.13-slim-bookworm
ARG DOCKER_CLI_IMAGE=docker:28-cli

# Default for the optional build context of the same name.
FROM scratch AS wheels

FROM ${BASE_IMAGE} AS base
# The provider `git` resolves refs with git, and private ones by SSH, which wants a name for the user id.
RUN command -v git > /dev/null && command -v ssh > /dev/null && [ -d /etc/ssl/certs ] || { \
      apt-get update \
      && apt-get install --yes --no-install-recommends git openssh-client ca-certificates \
      && rm -rf /var/lib/apt/lists/*; }

FROM base AS install
# Extras of the package: by default the consumer and the hub's service. Each includes the command line.
ARG EXTRAS=kubernetes,hub
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY schemas schemas
COPY consumer consumer
# pip runs from a separate environment, so that the installed one does not contain it.
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

FROM ${DOCKER_CLI_IMAGE} AS docker-cli

FROM base AS runtime
LABEL org.opencontainers.image.title="rabbit2docker" \
      org.opencontainers.image.description="Event-driven container image builds for JupyterHubs" \
      org.opencontainers.image.licenses="BSD-3-Clause"
COPY --from=install /opt/rabbit2docker /opt/rabbit2docker
# What is stored in a volume here belongs to the user below.
RUN install --directory --owner=1000 --group=1000 /data
# The root file system may be read-only: only git writes, to /tmp. USER names the requester of builds that are requested
# from within this container.
RUN echo 'rabbit2docker:x:1000:1000::/tmp:/usr/sbin/nologin' >> /etc/passwd
ENV PATH=/opt/rabbit2docker/bin:$PATH HOME=/tmp USER=rabbit2docker PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# Numeric, so that Kubernetes can verify that it is not root.
USER 1000:1000
EXPOSE 8090
ENTRYPOINT ["rabbit2docker"]
CMD ["run"]
# Last, so that a new commit builds none of the layers above anew.
ARG VERSION=0.1.0
ARG REVISION=""
ARG CREATED=""
ARG SOURCE=https://github.com/rabbit2docker/rabbit2docker
LABEL org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED" \
      org.opencontainers.image.source="$SOURCE" \
      org.opencontainers.image.url="$SOURCE"

# For builds beside an engine: the engine's client, which pods have in the builder's image.
FROM runtime AS local
COPY --from=docker-cli /usr/local/bin/docker /usr/local/bin/docker
COPY --from=docker-cli /usr/local/libexec/docker/cli-plugins/docker-buildx /usr/local/libexec/docker/cli-plugins/docker-buildx

FROM runtime
