"""Servers on this machine, with faults on demand, for the tests of remote archives."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Server(ThreadingHTTPServer):
    """Serves a folder; a path that ends in a key of `failures` fails so many times with HTTP 503, then works."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failures: Counter[str] = Counter()
        self.hanging: set[str] = set()
        self.seconds_of_hanging = 60.0
        self.delay = 0.0
        self.busy, self.most_busy = 0, 0
        self.ranges = True
        self.requests: Counter[str] = Counter()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(SimpleHTTPRequestHandler):
    """Files with byte ranges, which the handler of the standard library lacks."""

    server: Server

    def __init__(self, request: Any, address: Any, server: Server) -> None:
        super().__init__(request, address, server, directory=str(server.folder))

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        server = self.server
        server.requests[self.path] += 1
        server.busy += 1
        server.most_busy = max(server.most_busy, server.busy)
        time.sleep(server.delay)
        server.busy -= 1
        if any(self.path.endswith(end) for end in server.hanging):
            time.sleep(server.seconds_of_hanging)
            return
        for end, left in server.failures.items():
            if self.path.endswith(end) and left > 0:
                server.failures[end] -= 1
                return self.send_error(503, "Service Unavailable")
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        content = path.read_bytes()
        start, stop = self._range(len(content)) if server.ranges else (0, len(content))
        self.send_response(200 if (start, stop) == (0, len(content)) else 206)
        if (start, stop) != (0, len(content)):
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        if server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if body:
            self.wfile.write(content[start:stop])

    def _range(self, size: int) -> tuple[int, int]:
        asked = self.headers.get("Range", "")
        if not asked.startswith("bytes="):
            return 0, size
        first, _, last = asked.removeprefix("bytes=").partition("-")
        if not first:
            return max(0, size - int(last)), size
        return int(first), min(size, int(last) + 1) if last else size


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """The folder, over HTTP, for as long as the block lasts."""
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
