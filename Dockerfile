# The service and nothing of training's. Two targets: the full one, by default, and `slim`: ONNX on CPUs, without torch.
#
#   docker build -t discriminant .                          GPU: docker run --gpus all -p 8080:8080 discriminant
#   docker build -t discriminant --build-arg DEVICE=cpu .   CPU: docker run -p 8080:8080 discriminant
#   docker build -t discriminant --target slim .            CPU, without TorchScript: likewise
#
# MODELS names the bundles that are packaged into the image. Requests need a key. It is made at the first start, stands in
# /app/.serving/keys.json (docker exec CONTAINER cat .serving/keys.json) and survives a restart of the container; with a
# volume at /app/.serving, a new container too. Or it is given, by the variables DISCRIMINANT_INFERENCE_KEY and
# DISCRIMINANT_MANAGEMENT_KEY (docker run -e DISCRIMINANT_INFERENCE_KEY -e DISCRIMINANT_MANAGEMENT_KEY takes their values
# from your environment). Port 8082 answers /metrics, /ready and /live without a key: publish it to Prometheus and probes
# alone. Management stays inside the container. `docker stop` loses no request: a stop takes less than its 10 seconds.
# Only /app/.serving and /tmp are written to, and no capability is needed: docker run --read-only --tmpfs /tmp
# -v discriminant:/app/.serving --cap-drop ALL --security-opt no-new-privileges.
# BASE may name a digest (--build-arg BASE=python@sha256:...); BUILD_BASE, an image like it in which pip and uv find your
# package index: of that one nothing stays.
ARG BASE=python:3.11.14-slim-bookworm
ARG BUILD_BASE=${BASE}
FROM ${BUILD_BASE} AS uv
COPY requirements/uv.txt /requirements/
RUN python3 -m venv /opt/uv && /opt/uv/bin/pip install --no-cache-dir --require-hashes -r /requirements/uv.txt
ENV PATH=/opt/uv/bin:$PATH VIRTUAL_ENV=/opt/venv UV_NO_CACHE=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 \
    UV_PYTHON_DOWNLOADS=never
RUN uv venv /opt/venv

# Tests and C++ headers of packages are left out.
FROM uv AS without-torch
COPY requirements/serve-cpu.txt /requirements/
RUN uv pip sync --require-hashes /requirements/serve-cpu.txt \
    && find /opt/venv/lib -depth -type d \( -name tests -o -path '*/pyarrow/include' \) -exec rm -r {} +

FROM without-torch AS app
ARG MODELS="model_store/mnist-mda/1"
WORKDIR /project
COPY serving serving
COPY model_store model_store
RUN /opt/venv/bin/python -m compileall -q serving && /opt/venv/bin/python -m serving package ${MODELS} \
    && install -d /app/model_store && mv model_store/*.mar /app/model_store && mv serving /app

FROM ${BASE} AS service
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /app
# The service may write to its state alone, beside /tmp. The folder is made here, so that a volume there belongs to it.
RUN useradd --create-home --uid 10001 discriminant && install -d -m 700 -o discriminant .serving
USER 10001
EXPOSE 8080 8082
# Healthy once every worker of every model can answer.
HEALTHCHECK --interval=15s --timeout=10s --start-period=120s --retries=2 CMD ["python", "-I", "-S", "-c", \
    "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8082, timeout=8); c.request('GET', '/ready'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["sh", "-c", "exec python -m serving start --foreground --host 0.0.0.0 --metrics-host 0.0.0.0 --device ${DEVICE}"]

FROM service AS slim
ENV DEVICE=cpu
COPY --from=without-torch /opt/venv /opt/venv
COPY --from=app /app /app

FROM uv AS with-torch
ARG DEVICE=gpu
WORKDIR /requirements
COPY requirements .
RUN set -eu; case "$DEVICE" in \
      gpu) uv pip sync --require-hashes serve.txt ;; \
      cpu) python3 without_cuda.py serve.txt > cpu.txt; uv pip sync --require-hashes cpu.txt; \
           python3 without_cuda.py --torch serve.txt > torch.txt; \
           uv pip install --no-deps --torch-backend cpu -r torch.txt ;; \
      *) echo "DEVICE must be gpu or cpu, got $DEVICE" >&2; exit 1 ;; \
    esac

FROM service AS full
ARG DEVICE=gpu
ENV DEVICE=${DEVICE} NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=with-torch /opt/venv /opt/venv
COPY --from=app /app /app
