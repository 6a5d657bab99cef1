# Both packages on the official image of PyTorch, whose torch, torchvision and CUDA libraries are kept.
#
#   docker build -f tools/images/trainer.Dockerfile -t vidshard-trainer:0.1.0 .
#   docker run --rm --gpus all --ipc host --read-only --tmpfs /tmp -v "$PWD:/data" vidshard-trainer:0.1.0 \
#     stage1 train --shards shards/Train --out checkpoints
ARG BASE=pytorch/pytorch:2.9.1-cuda12.8-cudnn9-runtime
FROM $BASE
COPY . /src
# opencv-python needs libraries of a desktop that this image lacks; the headless build is the same module.
RUN cd /src \
 && python3 -c 'import importlib.metadata as m; [print(f"{n}=={m.version(n)}") for n in ("torch", "torchvision")]' > /tmp/kept.txt \
 && export PIP_BREAK_SYSTEM_PACKAGES=1 \
 && python3 -m pip install --no-cache-dir -c /tmp/kept.txt . \
 && python3 -m pip uninstall --yes opencv-python \
 && python3 -m pip install --no-cache-dir opencv-python-headless \
 && rm -r /src /tmp/kept.txt
ENV HOME=/tmp TMPDIR=/tmp MPLCONFIGDIR=/tmp/matplotlib TORCHINDUCTOR_CACHE_DIR=/tmp/inductor PYTHONDONTWRITEBYTECODE=1
WORKDIR /data
USER 1000:1000
CMD ["stage1", "--help"]
