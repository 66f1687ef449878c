"""A small W&B server on the loopback interface, of which the real client believes enough, and which can misbehave.

It keeps what the client sends, by run id: rows, config, summary, state and files. Written from what wandb 0.28 to 0.31
send; it tells nothing about how W&B's own server treats what it gets.
"""

import base64
import gzip
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789" * 4  # any 40 characters are a key
FEATURES = {"max_cli_version": "9.9.9", "min_cli_version": "0.0.1"}
SERVER = {"features": [], "cliVersionInfo": FEATURES, "latestLocalVersionInfo": None}
VIEWER = {"id": "1", "entity": "lab", "username": "ada", "flags": "{}", "teams": {"edges": []}}


@dataclass
class Run:
    """What the peer has of one run."""

    project: dict[str, Any]
    lines: dict[int, dict[str, Any]] = field(default_factory=dict)  # by their offset in the client's stream
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    state: str = "running"
    preempting: bool = False

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [self.lines[offset] for offset in sorted(self.lines)]


class Peer:
    """The server; `behave` says how it answers from now on.

    Attributes:
        runs: what it got, by run id.
        projects: names of those that can be asked for.
        views: what it was sent of saved views, by their names.
        requests: how often it was asked, refusals included.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.projects: set[str] = set()
        self.views: dict[str, dict[str, Any]] = {}
        self.requests = 0
        self._behaviour: str | int = "well"
        self._go_on = threading.Event()
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listens, after `stop` at the same port as before."""
        self._server = _Server(("127.0.0.1", self.port), _handler(self))
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Dies: the port is closed, and connections that wait are cut."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        self._go_on.set()

    def behave(self, how: str | int) -> None:
        """`well`, `hang` (answers nothing, for up to two minutes), or a status with which every request is answered."""
        with self._lock:
            self._behaviour = how
            self._go_on.set()
            self._go_on = threading.Event()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and content of the answer to one request."""
        with self._lock:
            self.requests += 1
            behaviour, go_on = self._behaviour, self._go_on
        if behaviour == "hang":
            go_on.wait(120)
            return 503, {"errors": [{"message": "too late"}]}
        if isinstance(behaviour, int):
            return behaviour, {"errors": [{"message": f"told to answer {behaviour}"}]}
        with self._lock:
            return self._serve(method, path, body)

    def _serve(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/graphql":
            message = json.loads(body)
            return 200, {"data": self._graphql(message["query"], message.get("variables") or {})}
        parts = path.strip("/").split("/")
        if parts[0] == "files" and parts[-1] == "file_stream":
            self._stream(self.runs[parts[-2]], json.loads(body))
            return 200, {"exitcode": None, "limits": {}}
        if parts[0] == "upload" and method == "PUT":
            self.runs[parts[1]].files["/".join(parts[2:])] = body
            return 200, {}
        return 404, {}

    def _stream(self, run: Run, message: dict[str, Any]) -> None:
        files = message.get("files") or {}
        if part := files.get("wandb-history.jsonl"):
            run.lines.update({part["offset"] + n: json.loads(line) for n, line in enumerate(part["content"])})
        if part := files.get("wandb-summary.json"):
            run.summary = json.loads(part["content"][-1])
        run.preempting |= bool(message.get("preempting"))
        if message.get("complete"):
            failed = "preempted" if run.preempting else "failed"
            run.state = failed if message.get("exitcode") else "finished"

    def _graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query:
            return {"upsertBucket": self._upsert(given)}
        if "createRunFiles" in query:
            run = given["run"]
            links = [{"name": name, "uploadUrl": f"{self.url}/upload/{run}/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": links}}
        if "upsertView" in query:
            self.views[given["name"]] = given | {"spec": json.loads(given["spec"])}
            return {"upsertView": {"view": {"id": "VjE=", "name": given["name"]}, "inserted": True}}
        name = given.get("name")
        if "query GetProject(" in query:
            return {"project": _project(name) if name in self.projects else None}
        run = self.runs.get(name or "")
        if "historyTail" in query:  # asked by init(resume="allow")
            return {"model": run and run.project | {"bucket": _resume_status(name, run)}}
        if "project(" in query and name:  # asked by the public API
            return {"project": run and run.project | {"run": _public(name, run, given)}}
        return {"viewer": VIEWER, "serverInfo": SERVER}

    def _upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["name"]
        project = _project(given.get("project") or "uncategorized")
        new = name not in self.runs
        run = self.runs.setdefault(name, Run(project))
        run.state = "running"
        run.config.update(json.loads(given.get("config") or "{}"))
        return {"bucket": _resume_status(name, run) | {"project": run.project}, "inserted": new}


def _project(name: str) -> dict[str, Any]:
    shown = {"entityName": "lab", "createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None}
    return {"id": "UDE=", "name": name, "entity": {"id": "RTE=", "name": "lab"}, **shown}


def _resume_status(name: str | None, run: Run) -> dict[str, Any]:
    return {
        "id": base64.b64encode(str(name).encode()).decode(),
        "name": name,
        "displayName": name,
        "description": "",
        "sweepName": None,
        "summaryMetrics": json.dumps(run.summary),
        "logLineCount": 0,
        "historyLineCount": len(run.lines),
        "eventsLineCount": 0,
        "historyTail": json.dumps([json.dumps(row) for row in run.rows[-1:]]),
        "eventsTail": "[]",
        "config": json.dumps(run.config),
        "tags": [],
        "notes": "",
        "wandbConfig": json.dumps({"t": 1}),
    }


def _public(name: str | None, run: Run, given: dict[str, Any]) -> dict[str, Any]:
    keys = [json.loads(spec)["keys"] for spec in given.get("specs", [])]
    return _resume_status(name, run) | {
        "projectId": 1,
        "state": run.state,
        "historyKeys": {"lastStep": run.rows[-1]["_step"] if run.lines else -1},
        "systemMetrics": "{}",
        "user": {"name": "ada", "username": "ada"},
        "sampledHistory": [
            [{k: row[k] for k in wanted} for row in run.rows if row.keys() >= set(wanted)] for wanted in keys
        ],
    }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client that is gone is what these tests are about."""


def _handler(peer: Peer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            status, content = peer.answer(self.command, self.path, self._body())
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                data = b""
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

        do_GET = do_POST = do_PUT = _answer

        def log_message(self, *arguments: Any) -> None:
            pass

    return Handler
