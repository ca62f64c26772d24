# loramix on the processor, to run recipes and serve mixtures:
#   docker build -t loramix .
#   docker run --rm -p 8000:8000 -v "$PWD/my-mixture:/loramix/my-mixture:ro" -e LORAMIX_API_KEY=secret \
#     loramix serve my-mixture --host 0.0.0.0
FROM python:3.11-slim AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
COPY constraints.txt /tmp/constraints.txt
COPY --from=build /wheels /wheels
# PyTorch's own index has builds without CUDA, which its "+cpu" sorts above PyPI's.
RUN pip install --no-cache-dir -c /tmp/constraints.txt \
      --extra-index-url https://download.pytorch.org/whl/cpu \
      "$(echo /wheels/loramix-*.whl)[experiment,serve]" \
    && useradd --create-home --uid 1000 loramix \
    && install --directory --owner=loramix /loramix
USER 1000
WORKDIR /loramix
EXPOSE 8000
ENTRYPOINT ["loramix"]
CMD ["--help"]
