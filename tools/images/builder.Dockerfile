# The builder alone: no torch, and an OpenCV that needs no desktop.
#
#   docker build -f tools/images/builder.Dockerfile -t vidshard-builder:0.1.0 .
#   docker run --rm --read-only --tmpfs /tmp -v "$PWD:/data" vidshard-builder:0.1.0 vidshard build videos --out shards
#
# BASE: any image with Python 3.11 or newer as `python3`, pip and venv.
ARG BASE=python:3.13-slim
FROM $BASE AS install
COPY . /src
WORKDIR /src
RUN python3 -m venv /opt/vidshard \
 && /opt/vidshard/bin/pip install --no-cache-dir -c tools/constraints/newest.txt -r tools/constraints/builder.txt \
 && /opt/vidshard/bin/pip install --no-cache-dir --no-deps .

FROM $BASE
COPY --from=install /opt/vidshard /opt/vidshard
# The root may be read-only: everything temporary goes to /tmp, and data to what is mounted at /data.
ENV PATH=/opt/vidshard/bin:$PATH HOME=/tmp TMPDIR=/tmp PYTHONDONTWRITEBYTECODE=1
WORKDIR /data
USER 1000:1000
CMD ["vidshard", "--help"]
