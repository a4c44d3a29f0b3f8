"""A schema registry on this machine: the few requests of Confluent's REST API that we make, over real HTTP."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


class SchemaRegistryServer:
    """Registers any schema under the next id; a context manager. `asked`: method and path of every request."""

    def __init__(self) -> None:
        registry = self
        self.schemas: list[str] = []
        self.asked: list[tuple[str, str]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.asked.append(("GET", self.path))
                number = int(self.path.rpartition("/")[2])
                known = 0 < number <= len(registry.schemas)
                self.answer({"schema": registry.schemas[number - 1]} if known else None)

            def do_POST(self) -> None:
                registry.asked.append(("POST", self.path))
                schema = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["schema"]
                if schema not in registry.schemas and self.path.endswith("/versions"):
                    registry.schemas.append(schema)
                known = schema in registry.schemas
                self.answer({"id": registry.schemas.index(schema) + 1} if known else None)

            def answer(self, found: dict | None) -> None:
                body = json.dumps(found or {"error_code": 40403, "message": "Schema not found"}).encode()
                self.send_response(200 if found else 404)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
