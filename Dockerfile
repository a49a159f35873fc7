# The whole service in one image: `docker run -d -p 127.0.0.1:5000:5000 -v kvstore:/data IMAGE`.
# The same image runs the parts by themselves: `daemon`, `http`, or any other command of the CLI.

FROM python:3.13-slim AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore

RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev

# Every file is checked against its hash on its way into /wheels, and the environment of the final
# image is then made from that folder alone. This layer changes only with requirements.txt. The types of
# what kvstore imports are there while it is compiled.
COPY requirements.txt ./
RUN pip wheel --only-binary :all: --require-hashes --requirement requirements.txt --wheel-dir /wheels \
    && pip install --no-index --find-links /wheels --requirement requirements.txt

# The packages' own tests would be a sixth of what is installed.
COPY . .
RUN HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /wheels . \
    && python -m venv --without-pip /opt/kvstore \
    && pip --python /opt/kvstore/bin/python install --no-index --find-links /wheels 'kvstored[etcd]' \
    && find /opt/kvstore -type d -name tests -prune -exec rm -rf {} +


FROM python:3.13-slim

# pip and what it is bootstrapped from are of no use here. The standard library comes without its
# compiled form, which a container could not keep: every `kvstore get` would compile it again and take
# four times as long.
RUN cd /usr/local \
    && rm -rf bin/pip* bin/idle* lib/python3.*/ensurepip lib/python3.*/idlelib lib/python3.*/site-packages/* \
    && python -m compileall -q lib/python3.*

# A number of its own, so that the owner of the volume stays the same over every rebuild of the image.
RUN groupadd --system --gid 5000 kvstore \
    && useradd --system --uid 5000 --gid kvstore --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin kvstore \
    && install --directory --owner=kvstore --group=kvstore --mode=0750 /data

# In a folder that is on every PATH, that of a login shell and of other users included.
COPY --from=build /opt/kvstore /opt/kvstore
RUN ln -s /opt/kvstore/bin/kvstore /usr/local/bin/kvstore

# Everything that can reach the container may ask, so nobody gets in without a key. It is published on
# loopback, or behind a proxy that ends TLS: hence plain HTTP.
ENV KVSTORE_DATA=/data \
    KVSTORE_HTTP=0.0.0.0:5000 \
    KVSTORE_ACCESS=required \
    KVSTORE_PLAIN_HTTP=true

USER kvstore
WORKDIR /data
VOLUME /data
EXPOSE 5000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["kvstore", "ping"]

ENTRYPOINT ["kvstore"]
CMD ["serve"]

# Last, because they differ with every commit.
ARG VERSION=
ARG REVISION=
ARG SOURCE=
LABEL org.opencontainers.image.title="kvstore" \
      org.opencontainers.image.description="A small key-value store with subscriptions: HTTP, ZeroMQ and a shell" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="$SOURCE"
