# One image for the worker, the migration and Flower. No CUDA base image is needed:
# the CUDA wheels of torch carry their libraries, the host brings the driver.
ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS build
# Empty takes torch from pip's own index, with CUDA. Give another wheel index for a
# CPU image or for the CUDA version of an older driver.
ARG TORCH_INDEX_URL=""
ENV PIP_CACHE_DIR=/pip-cache PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/tgp-jobs
ENV PATH=/opt/tgp-jobs/bin:$PATH
WORKDIR /src
COPY constraints.txt ./
# --no-deps: that index answers for torch alone; the rest comes from pip's own index.
RUN --mount=type=cache,target=/pip-cache \
    test -z "$TORCH_INDEX_URL" \
    || pip install --no-deps --index-url "$TORCH_INDEX_URL" -c constraints.txt torch
COPY pyproject.toml README.md ./
COPY engine engine
COPY worker worker
COPY jobs jobs
COPY cli cli
COPY alembic alembic
COPY examples/checkpoints examples/checkpoints
RUN --mount=type=cache,target=/pip-cache \
    pip install -c constraints.txt '.[worker,flower]'

FROM python:${PYTHON_VERSION}-slim
# A new named volume takes the ownership of the folder it is mounted on.
RUN groupadd --gid 10001 tgp \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data \
        --shell /usr/sbin/nologin tgp \
    && install -d -o 10001 -g 10001 -m 0700 /data /data/hf
COPY --from=build /opt/tgp-jobs /opt/tgp-jobs
ENV PATH=/opt/tgp-jobs/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TGP_HOME=/data \
    HF_HOME=/data/hf \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
# Not /src: Celery puts the working directory on sys.path.
WORKDIR /data
VOLUME /data
# The parent process answers while its child is busy with a shard. Only this
# container's worker is asked; another one on the same Redis must not answer for it.
HEALTHCHECK --interval=60s --timeout=30s --start-period=120s --retries=3 \
    CMD celery -A worker.celery_app inspect ping --timeout 10 --destination "celery@$(hostname)"
ENTRYPOINT ["tgp-jobs"]
CMD ["worker"]
