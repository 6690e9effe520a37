"""A Google bucket inside the tests, with faults on demand.

gcp-storage-emulator stores the objects. What Google's server does and it does
not is added here: `ifGenerationMatch`, and the generation of what is read, on
which TensorStore insists.
"""

import http.server
import logging
import threading
import time
from collections.abc import Callable
from functools import partial, partialmethod
from http import HTTPStatus
from urllib.parse import parse_qs, unquote, urlsplit

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.handlers import buckets, objects
from gcp_storage_emulator.storage import Storage

NAME = "sextet-test"

logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)


class PreconditionError(Exception):
    """The object is of another generation than the request asks for."""


class _Storage(Storage):
    """Objects whose generation may be asked for, and is checked."""

    def __init__(self):
        super().__init__(use_memory_fs=True)
        self.lock = threading.RLock()
        self.expected: str | None = None  # Of the request that is served.

    def generation(self, name):
        found = self.objects.get(NAME, {}).get(name)
        return "0" if found is None else found["generation"]

    def create_file(self, bucket_name, file_name, *arguments, **named):
        if self.expected not in (None, self.generation(file_name)):
            raise PreconditionError
        super().create_file(bucket_name, file_name, *arguments, **named)


class _Handler(emulator.RequestHandler):
    """Serves one request: a fault, or what the emulator answers."""

    def __init__(self, bucket, *arguments):
        self._bucket = bucket
        super().__init__(bucket.storage, *arguments)

    def parse_request(self):
        if not super().parse_request():
            return False
        self._bucket.requests.append((self.command, unquote(self.path)))
        fault = self._bucket.fault(self.command, unquote(self.path))
        if isinstance(fault, HTTPStatus):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._refuse(fault)
            return False
        time.sleep(fault or 0)
        return True

    def _serve(self, method):
        storage = self._bucket.storage
        query = parse_qs(urlsplit(self.path).query)
        with storage.lock:
            storage.expected = query.get("ifGenerationMatch", [None])[0]
            try:
                method(self)
            except PreconditionError:
                self._refuse(HTTPStatus.PRECONDITION_FAILED)
            finally:
                storage.expected = None

    def _refuse(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def end_headers(self):
        path = urlsplit(self.path).path
        if self.command == "GET" and "/o/" in path:
            name = unquote(path.partition("/o/")[2])
            generation = self._bucket.storage.generation(name)
            self.send_header("x-goog-generation", generation)
        super().end_headers()

    do_GET = partialmethod(_serve, emulator.RequestHandler.do_GET)
    do_POST = partialmethod(_serve, emulator.RequestHandler.do_POST)
    do_PUT = partialmethod(_serve, emulator.RequestHandler.do_PUT)
    do_DELETE = partialmethod(_serve, emulator.RequestHandler.do_DELETE)


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Says nothing: a client that was killed, or has heard enough."""


class Bucket:
    """`gs://sextet-test`, served from this process; a context manager.

    Attributes:
      fault: called with method and path of a request; returns the status that
        it fails with, or the seconds that it takes.
      requests: (method, path) of all so far.
      environment: variables with which other processes reach it.
    """

    url = f"gs://{NAME}"

    def __init__(self):
        self.storage, self.requests = _Storage(), []
        self.fault: Callable[[str, str], HTTPStatus | float | None]
        self.fault = lambda method, path: None
        buckets.create_bucket(NAME, self.storage)
        self._server = _Server(("127.0.0.1", 0), partial(_Handler, self))
        host = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.environment = {
            "STORAGE_EMULATOR_HOST": host,
            "TENSORSTORE_GCS_HTTP_URL": host,
            # gcsfs would ask by gRPC, which the emulator does not speak.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self._server.shutdown()
        self._server.server_close()

    def names(self, prefix=""):
        """Names of all objects below `prefix`, sorted."""
        with self.storage.lock:
            found = self.storage.objects.get(NAME, {})
            return sorted(name for name in found if name.startswith(prefix))

    def read(self, name):
        """The bytes of an object."""
        with self.storage.lock:
            return self.storage.get_file(NAME, name)

    def write(self, name, content):
        """Replaces the bytes of an object."""
        with self.storage.lock:
            about = dict(self.storage.objects[NAME][name])
            del about["crc32c"], about["md5Hash"]
            about = objects._checksums(content, about)
            self.storage.create_file(NAME, name, content, about)
