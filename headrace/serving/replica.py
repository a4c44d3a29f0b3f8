"""One replica of a project: its store, model, impression log and HTTP application, built from the settings.

Of this package, only this module and `server` read `Settings`; all classes take plain arguments.
"""

import contextlib

import torch
from fastapi import FastAPI

from headrace.errors import ConfigError
from headrace.features.store import OnlineStore
from headrace.learners import Learner, ModelDirectory, Scorer
from headrace.schemas import Event
from headrace.schemas.codecs.registry import SchemaRegistry
from headrace.serving.http_app import HttpLimits, build_http
from headrace.serving.impressions import ImpressionColumns, ImpressionLog
from headrace.serving.queries import RankingSpec
from headrace.serving.ranker import Ranker
from headrace.serving.resident import ResidentCandidates
from headrace.serving.swap import DirectoryReleases, Swap, verified_scorer
from headrace.serving.tracing import TraceRequests, Tracing
from headrace.settings import Settings, load_settings
from headrace.telemetry import configure_logs

STORE_TIMEOUT_S_MIN = 0.5  # for connecting and the checks at startup, however short the request timeout
MODEL_WAIT_S = 5.0  # how long startup waits for a first model; without one the replica is not ready


def build_replica(
    learner: type[Learner],
    impression: type[Event],
    *,
    entity: tuple[str, ...],
    candidate: str,
    columns: ImpressionColumns,
    settings: Settings | None = None,
) -> FastAPI:
    """Build the HTTP application of one replica.

    Args:
        learner: the learner whose models are served.
        impression: the event that each ranking is logged as; `columns` maps its columns.
        entity: key columns that a request gives once.
        candidate: key column that a request gives a list of.
        settings: the project's settings; default: those of the environment.

    Raises:
        StoreUnavailableError: Redis does not answer.
        SnapshotError: the frozen version is missing or invalid.
        DeclarationError: views, inputs or columns do not fit each other.
    """
    settings = settings or load_settings()
    configure_logs(settings.log_level, as_json=settings.log_json)
    torch.set_num_threads(settings.torch_threads)
    opened = contextlib.ExitStack()
    try:
        return _application(learner, impression, RankingSpec(learner, entity, candidate), columns, settings, opened)
    except BaseException:
        opened.close()
        raise


def _application(
    learner: type[Learner],
    impression: type[Event],
    spec: RankingSpec,
    columns: ImpressionColumns,
    settings: Settings,
    opened: contextlib.ExitStack,
) -> FastAPI:
    """Build the application, which closes `opened` at its end; each part is in `opened` as soon as it is made."""
    tracing = Tracing(settings.traces_url, settings.traces_share) if settings.traces_url else None
    if tracing is not None:
        opened.callback(tracing.close)
    store = OnlineStore.open(
        settings.redis_url,
        settings.shards,
        settings.namespace,
        allow_eviction=settings.allow_eviction,
        reads_replaced=True,
        timeout_s=max(settings.request_timeout_s, STORE_TIMEOUT_S_MIN),
    )
    opened.callback(store.close)
    resident = None
    if settings.resident_mb:
        resident = ResidentCandidates(
            spec,
            store,
            settings.event_clock,
            budget_bytes=settings.resident_mb * 1_000_000,
            refresh_s=settings.resident_refresh_s,
        )
        opened.callback(resident.close)
    ranker = Ranker(spec, store, resident=resident)
    directory = ModelDirectory(settings.model_dir, settings.redis_url)
    impressions = ImpressionLog(
        impression,
        settings.brokers,
        columns=columns,
        shadow=_frozen(directory, learner, settings.frozen_version, columns),
        config=settings.kafka,
        registry=SchemaRegistry(settings.registry_url) if settings.registry_url else None,
    )
    opened.callback(impressions.close)
    releases = DirectoryReleases(directory, learner, on_load=resident.prepare if resident else None)
    swap = Swap(releases, probe=ranker.probe, fingerprints=ranker.fingerprints)
    opened.callback(swap.close)
    swap.start(wait_s=MODEL_WAIT_S)
    limits = HttpLimits(
        api_keys=settings.api_keys,
        api_keys_file=settings.api_keys_file,
        cors_origins=settings.cors_origins,
        max_in_flight=settings.in_flight_max,
        timeout_s=settings.request_timeout_s,
        one_cpu=settings.one_cpu,
    )
    clock = settings.event_clock
    app = build_http(ranker, swap, impressions=impressions, clock=clock, limits=limits, on_close=opened.close)
    if tracing is not None:
        app.add_middleware(TraceRequests, tracing=tracing)
    return app


def _frozen(
    directory: ModelDirectory, learner: type[Learner], version: int | None, columns: ImpressionColumns
) -> Scorer | None:
    if version is None:
        return None
    if columns.shadow is None:
        raise ConfigError("HEADRACE_FROZEN_VERSION is set, but the impression has no column for its scores")
    return verified_scorer(directory, version, learner)
