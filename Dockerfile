# Two targets from one file: `cpu` (no CUDA) and `gpu`. Neither holds torch. Mount bundles at /models.
#   docker build --target cpu -t penult:cpu .   ;   docker run --rm -p 50051:50051 -v ./models:/models:ro penult:cpu
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY locks/uv.txt locks/
RUN pip install --no-cache-dir --require-hashes -r locks/uv.txt
RUN python -m venv --without-pip /opt/penult
COPY locks locks
COPY pyproject.toml README.md LICENSE ./
COPY proto proto
COPY service service
COPY export export

FROM build AS build-cpu
RUN uv pip install --python /opt/penult/bin/python --no-cache --require-hashes -r locks/cpu.txt \
 && uv pip install --python /opt/penult/bin/python --no-cache --no-deps .

FROM build AS build-gpu
RUN uv pip install --python /opt/penult/bin/python --no-cache --require-hashes -r locks/gpu.txt \
 && uv pip install --python /opt/penult/bin/python --no-cache --no-deps .

FROM ${PYTHON_IMAGE} AS runtime
ENV PATH=/opt/penult/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    PENULT_MODELS=/models PENULT_HOST=0.0.0.0
USER 65532:65532
EXPOSE 50051 9095
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --start-period=30s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9095/readyz', timeout=3)"]
ENTRYPOINT ["penult"]
CMD ["serve"]

FROM runtime AS cpu
COPY --from=build-cpu /opt/penult /opt/penult

FROM runtime AS gpu
COPY --from=build-gpu /opt/penult /opt/penult
ENV PENULT_DEVICE=cuda
