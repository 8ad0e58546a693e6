# gradfix on the CPU: docker build -t gradfix . && docker run --rm -v "$PWD:/work" gradfix demo
FROM python:3.11-slim

COPY constraints.txt pyproject.toml README.md LICENSE /source/
COPY src /source/src
# torch without CUDA: a fifth of the size. For GPUs leave the index out and run with --gpus all and --device cuda.
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir /source \
    && rm -r /source \
    && useradd --create-home user

USER user
WORKDIR /work
ENTRYPOINT ["gradfix"]
CMD ["--help"]
