FROM python:3.12-slim-bookworm
WORKDIR /srv/headrace
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY headrace ./headrace
COPY schemas ./schemas
COPY features ./features
COPY pipelines ./pipelines
COPY learners ./learners
COPY serving ./serving
COPY tests/project ./tests/project
COPY templates ./templates
COPY data ./data
COPY monitoring ./monitoring
COPY docker-compose.yml ./
# CPU build of torch: --build-arg TORCH_INDEX=URL of PyTorch's CPU wheels (pytorch.org/get-started shows it)
ARG TORCH_INDEX=
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt --editable '.[serve]'
# What it writes is below /var/lib/headrace: a new volume there takes over the owner.
RUN useradd --create-home --uid 10001 headrace && install -d -o headrace -g headrace /var/lib/headrace
USER headrace
ENV HEADRACE_PROJECT=/srv/headrace NUMBA_CACHE_DIR=/var/lib/headrace/numba
