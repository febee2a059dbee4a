# The service and nothing of training's.
#
#   docker build -t discriminant .                          GPU: docker run --gpus all -p 8080:8080 discriminant
#   docker build -t discriminant --build-arg DEVICE=cpu .   CPU: docker run -p 8080:8080 discriminant
#
# MODELS names the bundles that are packaged into the image. Requests need a key. It is made at the first start, stands in
# /app/.serving/keys.json (docker exec CONTAINER cat .serving/keys.json) and survives a restart of the container; with a
# volume at /app/.serving, a new container too. Or it is given, by the variables DISCRIMINANT_INFERENCE_KEY and
# DISCRIMINANT_MANAGEMENT_KEY (docker run -e DISCRIMINANT_INFERENCE_KEY -e DISCRIMINANT_MANAGEMENT_KEY takes their values
# from your environment). Port 8082 answers /metrics, /ready and /live without a key: publish it to Prometheus and probes
# alone. Management stays inside the container. `docker stop` loses no request: a stop takes less than its 10 seconds.
# BASE may name a digest (--build-arg BASE=python@sha256:...).
ARG BASE=python:3.11.14-slim-bookworm
FROM ${BASE} AS environment
ARG DEVICE=gpu
COPY requirements/uv.txt requirements/serve.txt requirements/serve-cpu.txt /requirements/
RUN pip install --no-cache-dir --require-hashes -r /requirements/uv.txt && uv venv /opt/venv
ENV VIRTUAL_ENV=/opt/venv UV_NO_CACHE=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
# torch's CPU build is not in the package index, so it alone comes without a hash, in the version of the lock.
RUN set -eu; case "$DEVICE" in \
      gpu) uv pip sync --require-hashes /requirements/serve.txt ;; \
      cpu) uv pip sync --require-hashes /requirements/serve-cpu.txt; \
           uv pip install --torch-backend cpu "$(sed -n 's/^\(torch==[0-9.]*\).*/\1/p' /requirements/serve.txt)" ;; \
      *) echo "DEVICE must be gpu or cpu, got $DEVICE" >&2; exit 1 ;; \
    esac

FROM ${BASE}
ARG DEVICE=gpu
ARG MODELS="model_store/mnist-mda/1"
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 DEVICE=${DEVICE} \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /app
COPY --from=environment /opt/venv /opt/venv
COPY serving serving
COPY model_store model_store
RUN python -m compileall -q serving && python -m serving package ${MODELS}
# The service may write to its state alone. The folder is made here, so that a volume there belongs to it.
RUN useradd --create-home --uid 10001 discriminant && install -d -m 700 -o discriminant .serving
USER discriminant
EXPOSE 8080 8082
# Healthy once every worker of every model can answer.
HEALTHCHECK --interval=15s --timeout=10s --start-period=120s --retries=2 CMD ["python", "-I", "-S", "-c", \
    "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8082, timeout=8); c.request('GET', '/ready'); raise SystemExit(c.getresponse().status != 200)"]
CMD ["sh", "-c", "exec python -m serving start --foreground --host 0.0.0.0 --metrics-host 0.0.0.0 --device ${DEVICE}"]
