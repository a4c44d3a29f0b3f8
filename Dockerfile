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
COPY data ./data
COPY docker-compose.yml ./
RUN pip install --no-cache-dir -c constraints.txt --editable .
ENV HEADRACE_PROJECT=/srv/headrace NUMBA_CACHE_DIR=/var/lib/headrace/numba
