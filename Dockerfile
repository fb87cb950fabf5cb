# flip-ctr serve in a container, with the model and the items in a folder of the host:
#
#   docker build -t flip-ctr .
#   docker run -p 8000:8000 -e FLIP_CTR_API_KEY -v "$PWD/served:/served:ro" flip-ctr \
#       --model_name_or_path /served/M --items /served/items.parquet
#
# pip's default torch for Linux has CUDA, and takes gigabytes; --build-arg PIP_OPTIONS=... can name the index of a build
# for the CPU.

FROM python:3.13-slim AS build
ARG PIP_OPTIONS=""
WORKDIR /source
COPY . .
RUN python -m venv /opt/flip-ctr
RUN /opt/flip-ctr/bin/python -m pip install --no-cache-dir ${PIP_OPTIONS} -c constraints.txt '.[serve,sentencepiece]'

FROM python:3.13-slim
RUN useradd --create-home --uid 1000 flip
COPY --from=build /opt/flip-ctr /opt/flip-ctr
ENV PATH="/opt/flip-ctr/bin:$PATH" PYTHONUNBUFFERED=1
USER flip
WORKDIR /home/flip
EXPOSE 8000
HEALTHCHECK --start-period=30s --interval=10s --timeout=3s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["flip-ctr", "serve", "--host", "0.0.0.0", "--port", "8000"]
