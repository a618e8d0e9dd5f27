# The toolkit in a container: it serves the shipped adapter, or runs any of the scripts.
#
#   docker build -t reasoning .                                    # CUDA: the usual index's torch
#   docker build -t reasoning --build-arg TORCH_INDEX=URL .        # a CPU build, from that index
#   docker run -p 127.0.0.1:8000:8000 -e RLM_API_KEY=... reasoning
#   docker run --gpus all -v runs:/app/runs -v models:/models reasoning \
#       python train.py --config configs/tiny_demo.yaml --weights runs/weights
#
# URL: the one for CPUs that PyTorch's "Start Locally" page gives. What is written goes to the volume
# /app/runs; models and what is downloaded from the hub are in /models. All else may be read-only.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim-bookworm

ARG TORCH_INDEX=""
ARG EXTRAS="gguf,plots"
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/models/hub \
    TMPDIR=/scratch \
    MPLCONFIGDIR=/scratch/matplotlib
WORKDIR /app

# What takes long comes first: it is built anew only when a pin moves.
COPY requirements.txt ./
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
        --constraint requirements.txt torch \
    && pip install --no-cache-dir -r requirements.txt

COPY . .
RUN pip install --no-cache-dir --editable ".[$EXTRAS]" \
    && python -m compileall -q . \
    && useradd --uid 1000 --no-create-home reasoning \
    && mkdir -p runs /models /scratch \
    && chown 1000:1000 runs /models /scratch

USER 1000:1000
VOLUME ["/app/runs", "/models"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
CMD ["python", "serve.py", "--host", "0.0.0.0", "--port", "8000"]
