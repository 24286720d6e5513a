"""An S3 server on this machine, with a proxy in front of it that logs requests and breaks chosen ones.

moto keeps the objects in memory and refuses unsigned requests. What a fault does:

- `500`, `slow_down`: the proxy answers 500, or 503 SlowDown, itself.
- `cut`: of a GET, the head and half of the body arrive and then the connection ends; any other request gets no
  answer, and the server never sees it.
- `lost`: the server carries the request out; its answer is lost.
- `denied`, `moved`: 403 AccessDenied, 301 PermanentRedirect.
- `delay`: the request waits.
"""

import http.client
import logging
import random
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import boto3
from moto.server import ThreadedMotoServer

Kind = Literal["500", "slow_down", "cut", "lost", "denied", "moved", "delay"]

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "not-so-secret-secret"}
_ANSWERS = {
    "500": (500, "InternalError"),
    "slow_down": (503, "SlowDown"),
    "denied": (403, "AccessDenied"),
    "moved": (301, "PermanentRedirect"),
}
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


@dataclass
class Request:
    """One request as it reached the proxy."""

    method: str
    path: str
    """Also the query."""
    range: tuple[int, int] | None
    """First and last byte of the Range header."""
    fault: str = ""


@dataclass
class _Fault:
    kind: Kind
    method: str
    part: str
    times: int
    probability: float
    seconds: float
    random: random.Random

    def strikes(self, request):
        if self.times <= 0 or (request.method != self.method and self.method) or self.part not in request.path:
            return False
        if self.random.random() >= self.probability:
            return False
        self.times -= 1
        return True


@dataclass
class S3Server:
    """The handle of a running server; `s3_server` makes it."""

    endpoint: str
    """URL of the proxy: what tests use."""
    direct: str
    """URL of moto itself."""
    requests: list[Request] = field(default_factory=list)
    injected: Counter = field(default_factory=Counter)
    """How often each kind of fault struck: tests assert that theirs did."""
    latency_seconds: float = 0.0
    """Every request waits so long."""
    bytes_per_second: float = float("inf")
    """What all answers together get of the line."""
    _line_free: float = 0.0
    _faults: list[_Fault] = field(default_factory=list)
    _lock: threading.Condition = field(default_factory=threading.Condition)

    def inject(self, kind: Kind, *, times=1_000_000, probability=1.0, seed=0, method="", part="", seconds=0.0):
        """Break the next `times` requests of `method` with `part` in path or query, each with `probability`."""
        with self._lock:
            self._faults.append(_Fault(kind, method, part, times, probability, seconds, random.Random(seed)))

    def clear(self):
        """Forget faults, the log and the counts; the objects stay."""
        with self._lock:
            self._faults.clear()
            self.requests.clear()
            self.injected.clear()

    def meet(self, request):
        """Log a request and choose its fault."""
        with self._lock:
            self.requests.append(request)
            struck = next((fault for fault in self._faults if fault.strikes(request)), None)
            if struck:
                request.fault = struck.kind
                self.injected[struck.kind] += 1
                self._lock.notify_all()
            return struck

    def take_time(self, size):
        """Wait as an answer of so many bytes would on the line."""
        with self._lock:
            begin = max(time.monotonic(), self._line_free)
            self._line_free = begin + size / self.bytes_per_second
            until = self._line_free + self.latency_seconds
        time.sleep(max(0.0, until - time.monotonic()))

    def wait_for(self, kind: Kind):
        """Wait until a fault of this kind has struck."""
        with self._lock:
            assert self._lock.wait_for(lambda: self.injected[kind], timeout=60), f"no {kind} struck"

    def client(self):
        """A boto3 client past the proxy."""
        return boto3.client(
            "s3",
            endpoint_url=self.direct,
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )

    def keys(self, bucket):
        """All keys of a bucket."""
        return [entry["Key"] for entry in self.client().list_objects_v2(Bucket=bucket).get("Contents", [])]

    def empty(self, bucket):
        """Remove what is in a bucket, unfinished uploads too."""
        client = self.client()
        for key in self.keys(bucket):
            client.delete_object(Bucket=bucket, Key=key)
        for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", []):
            client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    def open_uploads(self, bucket):
        """Keys of multipart uploads that were begun and neither finished nor given up."""
        return [entry["Key"] for entry in self.client().list_multipart_uploads(Bucket=bucket).get("Uploads", [])]

    def ranges(self, part):
        """The ranges that GETs of a path asked for, in order."""
        return [
            request.range
            for request in self.requests
            if request.method == "GET" and part in request.path and request.range
        ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Proxy"

    def do_GET(self):
        body = self._body()
        fault = self.server.owner.meet(Request(self.command, self.path, _range(self.headers.get("Range"))))
        kind = fault.kind if fault else ""
        if kind == "delay":
            time.sleep(fault.seconds)
        if kind in _ANSWERS:
            self._refuse(*_ANSWERS[kind])
        elif kind == "cut" and self.command != "GET":
            self.close_connection = True
        else:
            self._forward(body, kind)

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

    def log_message(self, *_):
        pass

    def _body(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _refuse(self, status, code):
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def _forward(self, body, kind):
        connection = http.client.HTTPConnection(*self.server.target, timeout=60)
        headers = {
            name: value for name, value in self.headers.items() if name.lower() not in {*_HOP_BY_HOP, "expect"}
        }
        headers["Content-Length"] = str(len(body))
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if kind == "lost":
            self.close_connection = True
            return
        self.server.owner.take_time(len(data))
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if kind == "cut":
            data = data[: len(data) // 2]
            self.close_connection = True
        self.wfile.write(data)


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    owner: S3Server
    target: tuple[str, int]

    def handle_error(self, request, client_address):
        """A client that hangs up is no error here."""


def _range(header):
    if not header:
        return None
    first, last = header.removeprefix("bytes=").split("-")
    return int(first), int(last)


@contextmanager
def s3_server(*buckets):
    """Start server and proxy on free ports of the loopback interface; gives an `S3Server`."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    proxy = _Proxy(("127.0.0.1", 0), _Handler)
    proxy.target = moto.get_host_and_port()
    host, port = proxy.server_address[:2]
    server = S3Server(endpoint=f"http://{host}:{port}", direct="http://{}:{}".format(*proxy.target))
    proxy.owner = server
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        for bucket in buckets:
            server.client().create_bucket(Bucket=bucket)
        yield server
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
        moto.stop()


def reach(server, monkeypatch):
    """Make this process, and those that it starts, find the server and their credentials in the environment."""
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": server.endpoint, "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
