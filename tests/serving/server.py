"""A real server of an application, in a thread of the tests."""

import socket
import threading

import uvicorn

from tests.serving.stage import until


class Server(uvicorn.Server):
    """A real server in a thread; `options` are uvicorn's."""

    def __init__(self, app, **options) -> None:
        super().__init__(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", **options))
        self.thread = threading.Thread(target=self.run)

    def __enter__(self):
        self.thread.start()
        until(lambda: self.started)
        self.port = self.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_):
        self.should_exit = True
        self.thread.join(20)

    def half_sent(self, body, *, length=None, target="POST /v1/rank", headers=""):
        """A connection that has sent a head and `body`."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        head = f"{target} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {length or len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        return connection
