# The whole service in one image: `docker run -d -p 5000:5000 -v kvstore:/data IMAGE`.
# The same image runs the parts by themselves: `daemon`, `http`, or any other command of the CLI.

FROM python:3.13-slim AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# Every file is checked against its hash on its way into /wheels, and the environment of the final
# image is then made from that folder alone. This layer changes only with constraints.txt.
COPY constraints.txt ./
RUN pip wheel --no-cache-dir --require-hashes --requirement constraints.txt --wheel-dir /wheels \
    && pip install --no-cache-dir --no-index --find-links /wheels hatchling

COPY . .
RUN pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /wheels . \
    && python -m venv /opt/kvstore \
    && /opt/kvstore/bin/pip install --no-cache-dir --no-index --find-links /wheels kvstore \
    && /opt/kvstore/bin/pip uninstall --yes pip


FROM python:3.13-slim
LABEL org.opencontainers.image.title="kvstore" \
      org.opencontainers.image.description="A small key-value store with subscriptions: HTTP, ZeroMQ and a shell" \
      org.opencontainers.image.licenses="MIT"

# A number of its own, so that the owner of the volume stays the same over every rebuild of the image.
RUN groupadd --system --gid 5000 kvstore \
    && useradd --system --uid 5000 --gid kvstore --home-dir /data --no-create-home --shell /usr/sbin/nologin kvstore \
    && install --directory --owner=kvstore --group=kvstore --mode=0750 /data

COPY --from=build /opt/kvstore /opt/kvstore
ENV PATH=/opt/kvstore/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    KVSTORE_DATA=/data \
    KVSTORE_HTTP=0.0.0.0:5000 \
    KVSTORE_ALLOW_ANONYMOUS=true

USER kvstore
WORKDIR /data
VOLUME /data
EXPOSE 5000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["kvstore", "status"]

ENTRYPOINT ["kvstore"]
CMD ["serve"]
