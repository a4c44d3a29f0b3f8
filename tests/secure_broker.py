"""A broker that wants TLS, a password, or both: a gate before the embedded one, which speaks neither.

    client --TLS--> gate: SaslHandshake and SaslAuthenticate answered here, all else passed through --> broker

The broker advertises the gate's address, so that no client can come round it.
"""

import contextlib
import ipaddress
import socket
import ssl
import struct
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from headrace.local.broker import broker_binary
from headrace.local.ports import HOST, free_port, is_listening
from headrace.local.process import ServiceProcess

USER, PASSWORD = "reader", "op3n-s3same"
_HANDSHAKE, _AUTHENTICATE, _API_VERSIONS = 17, 36, 18
_AUTHENTICATION_FAILED = 58


class SecureBroker:
    """`config`: what a client needs for librdkafka; a context manager."""

    def __init__(self, folder: Path, *, tls: bool, sasl: bool) -> None:
        self._folder, self._sasl = folder, sasl
        self.config: dict[str, str] = {}
        self._tls: ssl.SSLContext | None = None
        if tls:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(*certificate(folder))
            self.config["ssl.ca.location"] = str(folder / "gate.pem")
        if sasl:
            self.config |= {"sasl.mechanism": "PLAIN", "sasl.username": USER, "sasl.password": PASSWORD}
        self.config["security.protocol"] = ("SASL_" if sasl else "") + ("SSL" if tls else "PLAINTEXT")
        self._listener = socket.create_server((HOST, 0))
        self.bootstrap = f"{HOST}:{self._listener.getsockname()[1]}"
        self._port = free_port()
        self._process = ServiceProcess("broker", folder)

    def __enter__(self) -> Self:
        places = [
            "--listener-url",
            f"tcp://{HOST}:{self._port}",
            "--advertised-listener-url",
            f"tcp://{self.bootstrap}",
        ]
        self._process.start([broker_binary(), "broker", *places, "--storage-engine", "memory://tansu/"])
        while not is_listening(self._port):
            self._process.check()
            time.sleep(0.01)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # which wakes the thread that accepts
        self._listener.close()
        self._process.kill()  # asked, it would wait for the gate's connections

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError), contextlib.ExitStack() as open_sockets:
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
            open_sockets.enter_context(client)
            broker = open_sockets.enter_context(socket.create_connection((HOST, self._port)))
            if self._sasl and not self._let_in(client, broker):
                return
            _pump_both(client, broker)

    def _let_in(self, client: socket.socket, broker: socket.socket) -> bool:
        """Answer requests until the client has told the password; nothing else than ApiVersions gets through before."""
        while True:
            request = _frame(client)
            kind, version, correlation, name_size = struct.unpack(">hhih", request[:10])
            body = request[10 + max(name_size, 0) :]
            if kind == _API_VERSIONS:
                broker.sendall(struct.pack(">i", len(request)) + request)
                answer = _frame(broker)
            elif kind == _HANDSHAKE:
                answer = struct.pack(">ihih", correlation, 0, 1, 5) + b"PLAIN"
            elif kind == _AUTHENTICATE and version < 2:
                good = body[4:] == b"\0" + USER.encode() + b"\0" + PASSWORD.encode()
                told = b"" if good else b"wrong user or password"
                answer = struct.pack(">ihh", correlation, 0 if good else _AUTHENTICATION_FAILED, len(told)) + told
                answer += struct.pack(">i", 0) + (struct.pack(">q", 0) if version else b"")
            else:
                return False
            client.sendall(struct.pack(">i", len(answer)) + answer)
            if kind == _AUTHENTICATE:
                return good


def _frame(link: socket.socket) -> bytes:
    return _exactly(link, struct.unpack(">i", _exactly(link, 4))[0])


def _exactly(link: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = link.recv(size - len(found))
        if not part:
            raise EOFError
        found += part
    return found


def _pump_both(client: socket.socket, broker: socket.socket) -> None:
    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for link in (source, sink):
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    back = threading.Thread(target=pump, args=(broker, client), daemon=True)
    back.start()
    pump(client, broker)
    back.join()


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate of this machine and its key, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gate")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "gate.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "gate.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "gate.pem", folder / "gate.key"
