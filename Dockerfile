# Two targets: operator and trainer.
#
#   docker build --target operator --tag yolojob/operator:0.1.0 .
#   docker build --target trainer  --tag yolojob/trainer:0.1.0 .
ARG BASE=python:3.12-slim
FROM ${BASE} AS base
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONPATH=/app
WORKDIR /app

FROM base AS operator
COPY requirements/operator.txt /app/requirements.txt
# The typed halves of the Kubernetes client are 115 MB that the operator never imports: it speaks plain JSON.
RUN python -m pip install --no-cache-dir --no-compile --no-deps --require-hashes --requirement /app/requirements.txt \
    && client=$(python -c 'import kubernetes; print(kubernetes.__path__[0])') \
    && find "$client" -path "*/client/api/*.py" ! -name __init__.py -delete -o -path "*/client/models/*.py" ! -name __init__.py -delete
COPY yolojob /app/yolojob
COPY operator/yolojob_operator /app/yolojob_operator
COPY LICENSE NOTICE /app/
ENV LOGNAME=yolojob
USER 10001:10001
ENTRYPOINT ["python", "-m", "yolojob_operator"]

FROM base AS trainer
# torch and what it needs, gigabytes that rarely change, in a layer of its own; the rest finds it installed.
COPY requirements/torch.txt /app/torch.txt
RUN python -m pip install --no-cache-dir --no-deps --require-hashes --requirement /app/torch.txt
COPY requirements/trainer.txt /app/requirements.txt
RUN python -m pip install --no-cache-dir --no-deps --require-hashes --requirement /app/requirements.txt
COPY yolojob /app/yolojob
COPY trainer/yolojob_trainer /app/yolojob_trainer
COPY LICENSE NOTICE /app/
COPY trainer/LICENSE /app/yolojob_trainer/LICENSE
# GKE mounts the driver there, and the dynamic linker does not look there by itself. The second variable makes NVIDIA's
# container runtime mount what training needs.
ENV LD_LIBRARY_PATH=/usr/local/nvidia/lib64 NVIDIA_DRIVER_CAPABILITIES=compute,utility
# A user without a name, as any cluster may assign one: torch asks for it.
ENV LOGNAME=yolojob
USER 10001:10001
ENTRYPOINT ["python", "-m", "yolojob_trainer.launch"]
