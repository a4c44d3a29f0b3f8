"""The exception hierarchy of Headrace.

Catch `HeadraceError` for all of them, or a branch::

    HeadraceError
      ConfigError            settings, project folder, command-line arguments
        PortBusyError        the port of a service is in use
        MissingExtraError    an optional package is not installed
      DeclarationError       an event, view or learner is declared wrongly
      SchemaError            data does not fit its declaration
        DecodeError          bytes that do not decode
        EvolutionError       an event changed so that old data cannot be read
      SourceError            a stream or file cannot be read
        UnknownTopicError    the broker has no such topic
        OffsetLostError      the broker no longer retains the offset
      StoreError             the online store
        StoreUnavailableError  Redis does not answer
        FencedError          another engine wrote, or Redis went back in time: stop, reload, replay
        LayoutError          a record was written by another layout of the view
        EvictionError        Redis may evict records
      SpineError             entity keys and times (a spine) of the wrong form
      ModelError             learners and snapshots
        SnapshotError        a snapshot that is incomplete, corrupt or of another learner
        GateRefusedError     the gate refused to publish a snapshot
      ServiceError           a service or folder that the engine needs cannot be used
      ClientError            a call of `headrace.Client` failed
        NotReachedError      the service cannot be reached
        DeadlineError        no answer within the deadline of the call
        ResponseError        the service answered with an error
          InvalidRequestError  the request is wrong: 400, 404, 413, 422
          UnauthorizedError  the API key is missing, unknown or lacks the permission: 401, 403
          VersionError       the requested model version is not live: 409
          OverloadedError    too many requests: 429
          UnavailableError   the service cannot answer now: 502, 503, 504

Messages say what was found, where, what is allowed and how to fix it.
"""


class HeadraceError(Exception):
    """Base class of all errors that Headrace raises."""


class ConfigError(HeadraceError):
    """Settings, the project folder or command-line arguments are wrong."""


class PortBusyError(ConfigError):
    """The port of a service is in use."""


class MissingExtraError(ConfigError, ModuleNotFoundError):
    """An optional package is not installed. The message names the extra that installs it; `name` is the package."""


class DeclarationError(HeadraceError, TypeError):
    """An event, view or learner is declared wrongly."""


class SchemaError(HeadraceError, ValueError):
    """Data does not fit its declaration."""


class DecodeError(SchemaError):
    """Bytes that do not decode."""


class EvolutionError(SchemaError):
    """An event changed so that old data cannot be read."""


class SourceError(HeadraceError):
    """A stream or file cannot be read."""


class UnknownTopicError(SourceError):
    """The broker has no such topic."""


class OffsetLostError(SourceError):
    """The broker no longer retains the offset."""


class StoreError(HeadraceError):
    """An operation of the online store failed."""


class StoreUnavailableError(StoreError):
    """Redis does not answer."""


class FencedError(StoreError):
    """Another engine wrote, or Redis went back in time: stop, reload, replay."""


class LayoutError(StoreError):
    """A record was written by another layout of the view."""


class EvictionError(StoreError):
    """Redis may evict records; their entities would restart from zero without notice."""


class SpineError(HeadraceError, ValueError):
    """Entity keys and times (a spine) of the wrong form."""


class ModelError(HeadraceError):
    """A learner or one of its snapshots is unusable."""


class SnapshotError(ModelError):
    """A snapshot is incomplete, corrupt or belongs to another learner."""


class GateRefusedError(ModelError):
    """The gate refused to publish a snapshot."""


class ServiceError(HeadraceError):
    """A service or folder that the engine needs cannot be used."""


class ClientError(HeadraceError):
    """A call of `headrace.Client` failed. The service's log has its `request_id`, if the request arrived."""

    def __init__(self, message: str, *, request_id: str) -> None:
        super().__init__(f"{message} (request {request_id})")
        self.request_id = request_id


class NotReachedError(ClientError):
    """The service cannot be reached: it refuses connections, or closes them without an answer."""


class DeadlineError(ClientError, TimeoutError):
    """The call had no answer within its deadline."""


class ResponseError(ClientError):
    """The service answered with an error.

    `status` is the HTTP status; `code` is a stable identifier such as "unknown_view"; `detail`, `fix` and `field` are
    from the answer's body; `retry_after_s` is the wait in seconds that the service requested, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        request_id: str,
        status: int,
        code: str,
        detail: str = "",
        fix: str = "",
        field: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, request_id=request_id)
        self.status = status
        self.code = code
        self.detail = detail
        self.fix = fix
        self.field = field
        self.retry_after_s = retry_after_s


class InvalidRequestError(ResponseError):
    """The request is wrong; `field` names the value, `fix` says what to send."""


class UnauthorizedError(ResponseError):
    """The request's API key is missing, unknown or lacks the permission."""


class VersionError(ResponseError):
    """The requested model version is not live."""


class OverloadedError(ResponseError):
    """The service has too many requests, and refused this one on every attempt until its deadline."""


class UnavailableError(ResponseError):
    """The service cannot answer now, and did not recover before the request's deadline."""
