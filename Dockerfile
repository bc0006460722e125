# Three targets from one file: `cpu` (neither torch nor CUDA), `gpu` (onnxruntime with CUDA and cuDNN, no torch) and
# `train` (the same with torch and all that training needs). docs/images.md describes how to build, run and check them.
#   docker build --target cpu -t penult:cpu .
#   docker run --rm --read-only -p 50051:50051 -v ./models:/models:ro penult:cpu
ARG PYTHON_IMAGE=python:3.12-slim-bookworm
# Both need python3 at the same path and of the same version; only the second needs the modules venv and ensurepip.
ARG RUNTIME_IMAGE=${PYTHON_IMAGE}
ARG BUILD_IMAGE=${PYTHON_IMAGE}

# -- installed packages, each kind in its own stage ----------------------------------------------------------------------

FROM ${BUILD_IMAGE} AS tools
WORKDIR /src
COPY deploy/image/install.sh ./
COPY locks/uv.txt locks/sbom.txt locks/
RUN --mount=type=secret,id=network --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache ./install.sh tools

FROM tools AS packages-cpu
COPY locks/cpu.txt locks/with-milvus.txt locks/
# If not empty, also installs the client of Milvus (54 MB).
ARG WITH_MILVUS=
RUN --mount=type=secret,id=network --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache \
    ./install.sh lock cpu.txt ${WITH_MILVUS:+with-milvus.txt}

FROM tools AS packages-gpu
COPY locks/gpu.txt locks/with-milvus.txt locks/
ARG WITH_MILVUS=
RUN --mount=type=secret,id=network --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache \
    ./install.sh lock gpu.txt ${WITH_MILVUS:+with-milvus.txt}

FROM tools AS packages-train
COPY locks/train.txt locks/with-milvus.txt locks/
ARG WITH_MILVUS=
RUN --mount=type=secret,id=network --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache \
    ./install.sh lock train.txt ${WITH_MILVUS:+with-milvus.txt}

# penult alone, so that a release adds a small layer to the packages, which change rarely.
FROM tools AS penult
COPY pyproject.toml README.md LICENSE ./
COPY proto proto
COPY service service
COPY export export
RUN --mount=type=secret,id=network --mount=type=secret,id=ca --mount=type=cache,target=/root/.cache ./install.sh penult

# -- the bill of materials of each (CycloneDX), from the installed packages -----------------------------------------------

FROM packages-cpu AS listed-cpu
COPY --from=penult /opt/penult /opt/penult
COPY pyproject.toml ./
RUN ./install.sh list

FROM packages-gpu AS listed-gpu
COPY --from=penult /opt/penult /opt/penult
COPY pyproject.toml ./
RUN ./install.sh list

FROM packages-train AS listed-train
COPY --from=penult /opt/penult /opt/penult
COPY pyproject.toml ./
RUN ./install.sh list

FROM scratch AS sbom-cpu
COPY --from=listed-cpu /sbom.json /sbom-cpu.json

FROM scratch AS sbom-gpu
COPY --from=listed-gpu /sbom.json /sbom-gpu.json

FROM scratch AS sbom-train
COPY --from=listed-train /sbom.json /sbom-train.json

# -- common base ----------------------------------------------------------------------------------------------------------

FROM ${RUNTIME_IMAGE} AS runtime
ARG PYTHON_IMAGE
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="penult" \
      org.opencontainers.image.description="The layer before last, served: classes, descriptors and lookups over gRPC" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}"
# Created above, so that RUNTIME_IMAGE needs no shell. Bundles are mounted at /models; only /lookup is writable.
COPY --from=tools /empty/models /models
COPY --from=tools --chown=65532:65532 /empty/lookup /lookup
ENV PATH=/opt/penult/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp USER=penult \
    PENULT_MODELS=/models PENULT_LOOKUP=/lookup PENULT_HOST=0.0.0.0 ORT_DISABLE_TELEMETRY=1
WORKDIR /
USER 65532:65532
STOPSIGNAL SIGTERM
ENTRYPOINT ["penult"]

FROM runtime AS serving
VOLUME /lookup
EXPOSE 50051 9095
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s CMD ["python", "-m", "penult.client.health"]
CMD ["serve"]

# -- the images -----------------------------------------------------------------------------------------------------------

FROM runtime AS train
COPY --from=packages-train /opt/penult /opt/penult
COPY --from=penult /opt/penult /opt/penult
COPY --from=listed-train /sbom.json /opt/penult/sbom.json
# NVIDIA's container toolkit mounts the driver's libraries that these variables select.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
CMD ["--help"]

FROM serving AS gpu
COPY --from=packages-gpu /opt/penult /opt/penult
COPY --from=penult /opt/penult /opt/penult
COPY --from=listed-gpu /sbom.json /opt/penult/sbom.json
ENV PENULT_DEVICE=cuda NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The last target is the default.
FROM serving AS cpu
COPY --from=packages-cpu /opt/penult /opt/penult
COPY --from=penult /opt/penult /opt/penult
COPY --from=listed-cpu /sbom.json /opt/penult/sbom.json
