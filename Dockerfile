# harness with its command line, for nodes of a cluster or a single machine.
#
#     docker build -t harness .                                            # CPU
#     docker build -t harness-cuda --build-arg TORCH=cuda .                # NVIDIA GPUs
#     docker build -t harness-s3 --build-arg EXTRAS=jobs,s3,postgres .     # out=s3://, mlflow=postgresql://
#     docker run --rm -v "$PWD/runs:/study/harness-runs" harness run task=epvs
#     docker run --rm --gpus all --shm-size=8g -v /data:/data -v "$PWD/runs:/study/harness-runs" harness-cuda \
#         run task=epvs data=/data/bids
#
# --shm-size is the memory that Ray shares between workers. The user of the container has the id 1000: mounted
# folders must be writable for it (--user "$(id -u)" for another one).
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm

# cpu, or cuda for the wheels of PyPI, which contain CUDA
ARG TORCH=cpu
# Extras of pyproject.toml: jobs is for Ray Jobs and for the probes of KubeRay, s3 and postgres are for results elsewhere.
ARG EXTRAS=jobs

RUN useradd --create-home --uid 1000 harness && mkdir /study && chown harness /study
WORKDIR /opt/harness
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY harness harness
COPY tasks tasks
COPY search_spaces search_spaces
# The build of torch for CPUs is only on PyTorch's index, which may lack the pinned versions of its
# dependencies: they come with the next command from PyPI, which keeps this build because its version is the pinned one.
RUN python -m pip install --no-cache-dir -c constraints.txt pip \
    && if [ "$TORCH" = cpu ]; then \
           python -m pip install --no-cache-dir -c constraints.txt --no-deps torch --index-url https://download.pytorch.org/whl/cpu; \
       fi \
    && python -m pip install --no-cache-dir -c constraints.txt --build-constraint constraints.txt ".[${EXTRAS}]"

# A number, because Kubernetes cannot tell from a name that the user is not root.
USER 1000
WORKDIR /study
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["harness"]
CMD ["--help"]
