"""Every error that Headrace raises on purpose, as one tree.

Catch `HeadraceError` for all of them, or a branch::

    HeadraceError
      ConfigError            settings, project folder, command-line arguments
        PortBusyError        a port that a service wants is taken
        MissingExtraError    an optional package is not installed
      DeclarationError       an event, view or learner is declared wrongly
      SchemaError            data does not fit its declaration
        DecodeError          bytes that no codec can read
        EvolutionError       a change of an event that readers of old data could not survive
      SourceError            a stream or file cannot be read
        UnknownTopicError    the broker has no such topic
        OffsetLostError      the wanted offset has left the broker's retention
      StoreError             the online store
        StoreUnavailableError  Redis does not answer
        FencedError          another engine wrote, or Redis went back in time: stop, reload, replay
        LayoutError          a record was written by another layout of the view
        EvictionError        Redis may drop records to make room
      SpineError             rows of entity keys and times that cannot be read as of
      ModelError             learners and snapshots
        SnapshotError        a snapshot that is incomplete, corrupt or of another learner
        GateRefusedError     a snapshot that must not be published
      ServiceError           a service or folder that the engine needs cannot be used

A message names what was found, where, what is allowed and what to do.
"""


class HeadraceError(Exception):
    """Root of the tree."""


class ConfigError(HeadraceError):
    """Settings, the project folder or command-line arguments are wrong."""


class PortBusyError(ConfigError):
    """A port that a service wants is taken."""


class MissingExtraError(ConfigError, ModuleNotFoundError):
    """An optional package is not installed. The message names the extra that brings it; `name` is the package."""


class DeclarationError(HeadraceError, TypeError):
    """An event, view or learner is declared wrongly."""


class SchemaError(HeadraceError, ValueError):
    """Data does not fit its declaration."""


class DecodeError(SchemaError):
    """Bytes that no codec can read."""


class EvolutionError(SchemaError):
    """A change of an event that readers of old data could not survive."""


class SourceError(HeadraceError):
    """A stream or file cannot be read."""


class UnknownTopicError(SourceError):
    """The broker has no such topic."""


class OffsetLostError(SourceError):
    """The wanted offset has left the broker's retention."""


class StoreError(HeadraceError):
    """The online store cannot do what was asked."""


class StoreUnavailableError(StoreError):
    """Redis does not answer."""


class FencedError(StoreError):
    """Another engine wrote, or Redis went back in time: stop, reload, replay."""


class LayoutError(StoreError):
    """A record was written by another layout of the view."""


class EvictionError(StoreError):
    """Redis may drop records to make room, so entities would begin at 0 again unseen."""


class SpineError(HeadraceError, ValueError):
    """Rows of entity keys and times that cannot be read as of."""


class ModelError(HeadraceError):
    """A learner or one of its snapshots is unusable."""


class SnapshotError(ModelError):
    """A snapshot is incomplete, corrupt or belongs to another learner."""


class GateRefusedError(ModelError):
    """A snapshot must not be published."""


class ServiceError(HeadraceError):
    """A service or folder that the engine needs cannot be used."""
