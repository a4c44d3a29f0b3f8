"""The TLS certificate and key, checked before anything starts, and loaded again when their files are replaced."""

import asyncio
import ssl
from collections.abc import Hashable
from pathlib import Path

import structlog
from prometheus_client import Counter

from headrace.atomic import state_of
from headrace.errors import ConfigError

LOOK_S = 5.0
"""Seconds between checks whether the files have changed."""

NOT_READ = Counter("headrace_tls_files_not_read_total", "Changes of the files of TLS that could not be taken.")

log = structlog.get_logger(__name__)


class TlsFiles:
    """The PEM files of a certificate, with its chain, and of its key.

    Raises:
        ConfigError: a file is missing or is not PEM, or the key has a password or belongs to another certificate.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert = cert
        self._key = key
        self._state = self._state_now()
        self.load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))

    def load(self, context: ssl.SSLContext) -> None:
        """Load both files into `context`, which presents the certificate to new connections.

        Raises:
            ConfigError: see the class.
        """
        for name, path in (("HEADRACE_TLS_CERT", self._cert), ("HEADRACE_TLS_KEY", self._key)):
            if not path.is_file():
                raise ConfigError(f"{name}: {path}: TLS needs the files of a certificate and of its key (PEM)")
        try:
            context.load_cert_chain(self._cert, self._key, password=_no_password)
        except (OSError, ValueError) as exc:  # ssl.SSLError is an OSError
            words = getattr(exc, "reason", None) or getattr(exc, "strerror", None) or str(exc)
            raise ConfigError(
                f"HEADRACE_TLS_CERT {self._cert}, HEADRACE_TLS_KEY {self._key}: cannot be used ({words}): "
                "TLS needs the files of a certificate and of its own key (PEM), without a password"
            ) from exc

    def follow(self, context: ssl.SSLContext) -> None:
        """Load the files into `context` whenever they change, as long as the running event loop runs.

        If changed files cannot be used, this is logged and the previous certificate stays.
        """
        state = self._state_now()
        if state != self._state:
            self._state = state
            try:
                self.load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))  # first, so that `context` keeps working files
                self.load(context)
            except ConfigError as exc:
                NOT_READ.inc()
                log.warning("tls_files_not_read_again", reason=str(exc), advice="the certificate before it stays")
            else:
                log.info("tls_files_read_again", certificate=str(self._cert))
        asyncio.get_running_loop().call_later(LOOK_S, self.follow, context)

    def _state_now(self) -> Hashable:
        """Return a value that changes when a file is replaced or written."""
        return tuple(state_of(path) for path in (self._cert, self._key))


def _no_password() -> str:
    """Raise ValueError; without a callback OpenSSL would ask on the terminal and wait."""
    raise ValueError("the key has a password")
