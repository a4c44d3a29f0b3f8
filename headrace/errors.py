"""Every error that Headrace raises on purpose, as one tree.

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

Messages say what was found, where, what is allowed and how to fix it.
"""


class HeadraceError(Exception):
    """Root of the tree."""


class ConfigError(HeadraceError):
    """Settings, the project folder or command-line arguments are wrong."""


class PortBusyError(ConfigError):
    """The port of a service is in use."""


class MissingExtraError(ConfigError, ModuleNotFoundError):
    """An optional package is not installed. The message names the extra that brings it; `name` is the package."""


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
    """The online store cannot do what was asked."""


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
