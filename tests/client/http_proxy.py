"""Small real HTTP proxy that records what it could read, and sends all requests to one server."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class HttpProxy:
    """The proxy's port, the requests it saw, and the status that it answers by itself, if any."""

    port: int = 0
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)  # request line, headers
    status: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running_http_proxy(upstream_port: int) -> Iterator[HttpProxy]:
    """Start the proxy; every host is the server on ``upstream_port``, tunnels are refused."""
    proxy = HttpProxy()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_CONNECT(self) -> None:
            self._record()
            self.send_error(proxy.status or 403)

        def do_GET(self) -> None:
            self._record()
            if proxy.status:
                self.send_error(proxy.status)
                return
            server = http.client.HTTPConnection("127.0.0.1", upstream_port, timeout=5)
            server.request("GET", urlsplit(self.path).path)
            answer = server.getresponse()
            body = answer.read()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            server.close()

        def _record(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            proxy.seen.append((self.requestline, headers))

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        proxy.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()
