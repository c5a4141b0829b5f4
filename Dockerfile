# syntax=docker/dockerfile:1
# Two images: `producer` submits, queries and migrates (no torch); `worker` renders on NVIDIA GPUs.
#   docker build --target producer -t promptmill-producer .
#   docker build --target worker -t promptmill-worker .
#   docker build --target worker --build-arg TORCH=cpu -t promptmill-worker-cpu .

FROM python:3.12-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --create-home --uid 1000 mill \
    && mkdir --parents /data/home /data/pictures /data/models \
    && chown -R mill:mill /data
ENV PROMPTMILL_HOME=/data/home HF_HOME=/data/models
WORKDIR /opt/promptmill
COPY constraints.txt ./

# All that the wheel is made of.
FROM scratch AS source
COPY pyproject.toml README.md LICENSE /
COPY models /models
COPY migrations /migrations
COPY producer /producer
COPY storage /storage
COPY web /web
COPY worker /worker

FROM base AS producer
COPY --from=source / ./
RUN pip install -c constraints.txt '.[postgres,s3,web]'
USER 1000
WORKDIR /work
ENTRYPOINT ["promptmill"]
CMD ["--help"]

FROM base AS worker
# `cuda` takes PyPI's build, which brings its own CUDA libraries: the host needs only the driver.
ARG TORCH=cuda
# A layer of its own, several GB: it stays when only promptmill changes.
RUN if [ "$TORCH" = cpu ]; \
    then pip install -c constraints.txt torch --index-url https://download.pytorch.org/whl/cpu; \
    else pip install -c constraints.txt torch; fi
COPY --from=source / ./
RUN pip install -c constraints.txt '.[worker,postgres,s3]'
USER 1000
WORKDIR /work
# SIGTERM drains: give a container more than a job's time to stop.
STOPSIGNAL SIGTERM
# Whether the supervisor of this container lives; an outage of the database makes nobody unhealthy.
HEALTHCHECK --interval=30s --timeout=10s --start-period=2m --retries=3 \
    CMD ["promptmill", "doctor", "--probe", "liveness"]
ENTRYPOINT ["promptmill", "worker", "start"]
CMD ["--devices", "all"]
