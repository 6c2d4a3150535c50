"""A small DICOMweb server on loopback that answers from files, and misbehaves as it is told."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom

ROOT = "/dicom-web"
Trouble = Callable[["Request"], "Reply | None"]


@dataclass(frozen=True)
class Request:
    """What was asked, and when."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]
    moment: float
    number: int

    @property
    def kind(self) -> str:
        parts = self.path.removeprefix(ROOT + "/").split("/")
        if parts[-1] in ("series", "metadata"):
            return parts[-1]
        if "frames" in parts or "bulk" in parts:
            return parts[-2]
        return "object" if len(parts) == 6 else "instances"


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: bytes = b""
    type: str = "application/dicom+json"
    headers: tuple[tuple[str, str], ...] = ()
    break_off: bool = False
    """Close the connection in the middle of the body."""


@dataclass
class Fake:
    """The server; `trouble` may answer in its place."""

    folder: Path
    trouble: Trouble = lambda request: None
    page: int = 1000
    ignores_offset: bool = False
    slow: float = 0.0
    requests: list[Request] = field(default_factory=list)
    busiest: int = 0

    def __post_init__(self) -> None:
        self.objects = {}
        for file in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            dataset = pydicom.dcmread(file)
            self.objects[str(dataset.SOPInstanceUID)] = (dataset, file.read_bytes())
        self._busy = 0
        self._lock = threading.Lock()

    def start(self, tls: ssl.SSLContext | None = None) -> None:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                fake._handle(self)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *args: None  # type: ignore[method-assign]
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}{ROOT}"
        self.location = f"dicomweb+{self.url}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def kinds(self) -> set[str]:
        return {request.kind for request in self.requests}

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
            parts = urlsplit(handler.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            request = Request(parts.path, query, dict(handler.headers), time.monotonic(), len(self.requests))
            self.requests.append(request)
        time.sleep(self.slow)
        reply = self.trouble(request) or self._answer(request)
        # Before it is sent: who has the answer may ask the next thing at once.
        with self._lock:
            self._busy -= 1
        self._send(handler, reply)

    def _send(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        handler.send_response(reply.status)
        handler.send_header("Content-Type", reply.type)
        handler.send_header("Content-Length", str(len(reply.body)))
        for name, value in reply.headers:
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(reply.body[: len(reply.body) // 2] if reply.break_off else reply.body)
        if reply.break_off:
            handler.wfile.flush()
            handler.close_connection = True
            handler.connection.close()

    def _answer(self, request: Request) -> Reply:
        parts = request.path.removeprefix(ROOT + "/").split("/")
        if request.kind == "series":
            return self._found([self._series(one) for one in self._first_of_series(request.query)], request)
        members = [pair for pair in self.objects.values() if pair[0].SeriesInstanceUID == parts[3]]
        if request.kind == "instances":
            return self._found(
                [_json(one, "StudyInstanceUID SeriesInstanceUID SOPInstanceUID InstanceNumber") for one, _ in members], request
            )
        if request.kind == "metadata":
            return Reply(body=json.dumps([self.metadata(one) for one, _ in members]).encode())
        if parts[5] not in self.objects:
            return Reply(404)
        dataset, content = self.objects[parts[5]]
        if request.kind == "object":
            return multipart([content], "application/dicom")
        if request.kind == "bulk":
            return multipart([dataset[int(parts[-1], 16)].value], "application/octet-stream")
        return self.frames(dataset, [int(number) for number in parts[-1].split(",")])

    def frames(self, dataset: pydicom.Dataset, numbers: list[int]) -> Reply:
        syntax = dataset.file_meta.TransferSyntaxUID
        if syntax.is_compressed:
            frames = [pydicom.encaps.get_frame(dataset.PixelData, number - 1) for number in numbers]
            return multipart(frames, f"image/x-something; transfer-syntax={syntax}")
        size = dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8
        frames = [dataset.PixelData[(number - 1) * size : number * size] for number in numbers]
        return multipart(frames, f"application/octet-stream; transfer-syntax={syntax}")

    def metadata(self, dataset: pydicom.Dataset) -> dict[str, Any]:
        place = f"{self.url}/studies/{dataset.StudyInstanceUID}/series/{dataset.SeriesInstanceUID}/instances/{dataset.SOPInstanceUID}"
        found = dataset.to_json_dict(1024, lambda element: f"{place}/bulk/{int(element.tag):08X}")
        return dict(found)

    def _first_of_series(self, query: dict[str, str]) -> list[pydicom.Dataset]:
        wanted = {name: value for name, value in query.items() if name not in ("limit", "offset", "includefield")}
        first = {one.SeriesInstanceUID: one for one, _ in reversed(self.objects.values())}
        return [one for one in first.values() if all(str(one.get(name, "")) == value for name, value in wanted.items())]

    def _series(self, dataset: pydicom.Dataset) -> dict[str, Any]:
        return _json(dataset, "StudyInstanceUID SeriesInstanceUID Modality")

    def _found(self, results: list[dict[str, Any]], request: Request) -> Reply:
        first = 0 if self.ignores_offset else int(request.query.get("offset", 0))
        page = results[first : first + min(int(request.query.get("limit", 1000)), self.page)]
        return Reply(body=json.dumps(page).encode()) if page else Reply(204)


def _json(dataset: pydicom.Dataset, keywords: str) -> dict[str, Any]:
    part = pydicom.Dataset()
    for keyword in keywords.split():
        setattr(part, keyword, dataset[keyword].value)
    return dict(part.to_json_dict())


def multipart(contents: list[bytes], kind: str) -> Reply:
    body = b"".join(b"\r\n--edge\r\nContent-Type: %s\r\n\r\n%s" % (kind.encode(), content) for content in contents) + b"\r\n--edge--\r\n"
    return Reply(body=body.removeprefix(b"\r\n"), type=f'multipart/related; type="{kind.partition(";")[0]}"; boundary=edge')
