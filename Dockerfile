# An image with Python 3.11, Ray and sani-dist, every version as constraints.txt has it: `docker build -t sani-dist .`
# For KubeRay (launch/kuberay_rayjob.yaml), a Ray cluster, Slurm with containers, or one machine.
FROM python:3.11-slim-bookworm

# g++: DeepSpeed and the loss on CPUs compile an extension each when they are first used; libaio: offloading to NVMe;
# wget: KubeRay asks a pod with it whether Ray is alive.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libaio-dev wget \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/sani-dist
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY ds_configs ds_configs
COPY launch launch
COPY sani_dist sani_dist
RUN pip install --no-cache-dir -c constraints.txt '.[presidio]'

ENV HF_HUB_OFFLINE=1 RAY_USAGE_STATS_ENABLED=0
CMD ["sani-dist", "--help"]
