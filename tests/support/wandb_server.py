"""A stand-in for W&B's server, on the loopback: what the real client says to it is kept, to be
looked at. An operation that it does not know is an error, to the client and to the test."""

import base64
import http.server
import itertools
import json
import random
import re
import threading
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

KEY = "0123456789" * 4
ENTITY = "somebody"
LONGEST_NAME, LONGEST_TAG = 128, 64  # characters
ARTIFACT = re.compile(r"[\w.-]{1,128}", re.ASCII)
# The answers to these alone tell what the server can do, and none of it is needed.
FEATURES: list[dict[str, Any]] = []


@dataclass
class Fault:
    """What the server does to requests from the moment that it holds `after` rows of history.

    Attributes:
        status: that it answers with; 0 drops the connection.
        delay: seconds before it answers.
        only: the one operation, by name, that it does this to.
    """

    status: int | None = None
    delay: float = 0
    after: int = 0
    only: str = ""


@dataclass
class Run:
    """A run as the server holds it. `config` and `summary` are values by name."""

    id: str
    project: str
    name: str = ""
    group: str = ""
    sweep: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    streams: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    exit: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.streams["wandb-history.jsonl"]]

    def column(self, key: str) -> list[Any]:
        """The values that were logged under a key, in their order."""
        return [row[key] for row in self.history if key in row]


class Refused(Exception):
    """What the server does not take: it answers so."""

    def __init__(self, said: str, status: int = 400):
        self.said, self.status = said, status


class Server:
    """It serves while it is a context. `url` goes into WANDB_BASE_URL, `KEY` into WANDB_API_KEY.

    `runs` are by id, `artifacts` by name, each version a dict of type, run, state and the bytes of
    its files; `reports` are the views that were saved; `sweeps` by id. `asked` names every
    operation, `unknown` those that the server does not know, `refused` why it took something not.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.reports: list[dict[str, Any]] = []
        self.sweeps: dict[str, dict[str, Any]] = {}
        self.projects: dict[str, None] = {}
        self.agents: dict[str, str] = {}
        self.made: dict[str, dict[str, Any]] = {}  # artifacts by id
        self.stored: dict[str, bytes] = {}  # what was uploaded, by path
        self.asked: list[str] = []
        self.unknown: list[str] = []
        self.refused: list[str] = []
        self.fault = Fault()
        self.lock = threading.RLock()

    def __enter__(self):
        handler = type("Handler", (Handler,), {"held": self})
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def environment(self, **more: str | None) -> dict[str, str | None]:
        """For a client: online, here."""
        here = {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_MODE": None}
        return {**here, **more}

    def rows(self) -> int:
        return sum(len(run.history) for run in self.runs.values())

    def failing(self, operation: str) -> Fault | None:
        fault = self.fault
        hit = fault.only in ("", operation) and self.rows() >= fault.after
        return fault if hit else None

    # GraphQL: one method an operation.

    def answer(self, name: str, query: str, given: dict[str, Any]) -> dict[str, Any]:
        method = getattr(self, f"gql_{name}", None)
        if method is None:
            self.unknown.append(f"{name}: {query} {given}")
            raise Refused(f"the stand-in knows no operation {name}")
        return method(given)

    def gql_Viewer(self, given) -> dict:
        return {"viewer": viewer()}

    gql_GetDefaultEntity = gql_Viewer

    def gql_ServerFeaturesQuery(self, given) -> dict:
        return {"serverInfo": {"features": FEATURES}}

    def gql_RunResumeStatus(self, given) -> dict:
        if given["project"] not in self.projects:
            return {"model": None}
        run = self.runs.get(given["name"])
        about = project_of(given["project"])
        return {"model": about | {"bucket": self.resumed(run) if run else None}}

    def resumed(self, run: Run) -> dict[str, Any]:
        history, events = run.streams["wandb-history.jsonl"], run.streams["wandb-events.jsonl"]
        about = {"summaryMetrics": json.dumps(run.summary), "tags": run.tags, "notes": None}
        about |= {"logLineCount": len(run.streams["output.log"]), "wandbConfig": '{"t": 1}'}
        about |= {"eventsLineCount": len(events), "eventsTail": json.dumps(events[-1:])}
        return self.bucket(run) | about | {"historyTail": json.dumps(history[-1:])}

    def bucket(self, run: Run) -> dict[str, Any]:
        return {
            "id": f"run-{run.id}",
            "name": run.id,
            "displayName": run.name,
            "description": None,
            "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
            "sweepName": run.sweep or None,
            "project": project_of(run.project),
            "historyLineCount": len(run.streams["wandb-history.jsonl"]),
        }

    def gql_UpsertBucket(self, given) -> dict:
        for what in ("displayName", "groupName", "project"):
            bounded(what, given.get(what), LONGEST_NAME)
        for tag in given.get("tags") or ():
            bounded("tag", tag, LONGEST_TAG, at_least=1)
        if re.search(r"[/\\#?%:]", given.get("project") or ""):
            raise Refused("project names may not hold / \\ # ? % :")
        name = (given.get("id") or "").removeprefix("run-") or given["name"]
        new = name not in self.runs
        run = self.runs.setdefault(name, Run(name, given.get("project") or "uncategorized"))
        if given.get("project") not in (None, run.project):  # it would be another run there
            self.unknown.append(f"run {name} of {run.project}, in {given['project']}")
        self.projects[run.project] = None
        run.name = given.get("displayName") or run.name or run.id
        run.group = given.get("groupName") or run.group
        run.sweep = given.get("sweep") or run.sweep
        run.tags = given.get("tags") or run.tags
        config = json.loads(given.get("config") or "{}")
        run.config |= {key: held["value"] for key, held in config.items()}
        if given.get("summaryMetrics"):
            run.summary = json.loads(given["summaryMetrics"])
        return {"upsertBucket": {"bucket": self.bucket(run), "inserted": new}}

    def gql_CreateRunFiles(self, given) -> dict:
        places = {name: self.place(f"files/{given['run']}/{name}") for name in given["files"]}
        files = [{"name": name, "uploadUrl": place} for name, place in places.items()]
        about = {"runID": f"run-{given['run']}", "uploadHeaders": [], "files": files}
        return {"createRunFiles": about}

    def gql_NotifyScriptableRunAlert(self, given) -> dict:
        self.runs[given["runName"]].alerts.append(given)
        return {"notifyScriptableRunAlert": {"success": True}}

    def gql_OrganizationCoreWeaveOrganizationID(self, given) -> dict:
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    # Artifacts.

    def gql_ArtifactType(self, given) -> dict:
        versions = self.artifacts.get(given["name"].partition(":")[0])
        kind = {"artifactType": {"name": versions[-1]["type"]}} if versions else None
        return {"project": {"artifact": kind}}

    def gql_CreateArtifact(self, given) -> dict:
        about = given["input"]
        name = (about.get("artifactCollectionNames") or [None])[0] or about[
            "artifactCollectionName"
        ]
        if not ARTIFACT.fullmatch(name):
            raise Refused(f"invalid artifact name {name}")
        number = f"artifact-{len(self.made)}"
        held = {"name": name, "type": about["artifactTypeName"], "state": "PENDING", "files": {}}
        self.made[number] = held | {"run": about.get("runName"), "id": number}
        self.artifacts[name].append(self.made[number])
        said = {"id": number, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": said}}

    def gql_CreateArtifactManifest(self, given) -> dict:
        number = given.get("artifactID") or given["artifactManifestID"]
        file = {"id": "f", "uploadUrl": self.place(f"manifests/{number}"), "uploadHeaders": []}
        made = {"artifactManifest": {"id": number, "file": file}}
        return {"createArtifactManifest": made, "updateArtifactManifest": made}

    gql_UpdateArtifactManifest = gql_CreateArtifactManifest

    def gql_CreateArtifactFiles(self, given) -> dict:
        edges = []
        for file in given["input"]["artifactFiles"]:
            place = f"artifacts/{file['artifactID']}/{file['name']}"
            node = {"storagePath": place, "uploadUrl": self.place(place), "uploadHeaders": []}
            node |= {"uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}}
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def gql_CommitArtifact(self, given) -> dict:
        made = self.made[given["artifactID"]]
        manifest = json.loads(self.stored[f"manifests/{made['id']}"])
        for name, entry in manifest["contents"].items():
            made["files"][name] = self.stored[f"artifacts/{made['id']}/{name}"]
            assert len(made["files"][name]) == entry["size"]
        made["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": made["id"], "digest": "d"}}}

    # Sweeps, their agents, projects and reports.

    def gql_UpsertSweep(self, given) -> dict:
        name, config = f"sweep{len(self.sweeps)}", yaml.safe_load(given["config"])
        points = points_of(config["method"], config["parameters"], config.get("run_cap", 2))
        program = config["program"]
        self.sweeps[name] = {"config": given["config"], "left": points, "program": program}
        self.projects[given["projectName"]] = None
        about = {"name": name, "project": project_of(given["projectName"])}
        return {"upsertSweep": {"sweep": about, "configValidationWarnings": []}}

    def gql_SweepWithRuns(self, given) -> dict:
        sweep = self.sweeps.get(given["sweep"])
        about = {"id": given["sweep"], "name": given["sweep"], "state": "RUNNING"}
        runs = {"edges": []}
        said = about | {"config": sweep["config"], "runs": runs} if sweep else None
        return {"project": {"sweep": said}}

    def gql_CreateAgent(self, given) -> dict:
        agent = f"agent{len(self.agents)}"
        self.agents[agent] = given["sweep"]
        return {"createAgent": {"agent": {"id": agent}}}

    def gql_Heartbeat(self, given) -> dict:
        """A point of the sweep for an agent that runs none; the end where there is none left."""
        sweep, commands = self.sweeps[self.agents[given["id"]]], []
        if not json.loads(given["runState"]):
            commands = [{"type": "exit"}]
            if sweep["left"]:
                values = {key: {"value": value} for key, value in sweep["left"].pop(0).items()}
                number = f"{self.agents[given['id']]}r{len(sweep['left'])}"
                about = {"type": "run", "run_id": number, "program": sweep["program"]}
                commands = [about | {"args": values}]
        return {"agentHeartbeat": {"agent": {"id": given["id"]}, "commands": json.dumps(commands)}}

    def gql_GetProjects(self, given) -> dict:
        edges = [{"node": project_of(name)} for name in self.projects]
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        return {"models": {"pageInfo": page, "edges": edges}}

    def gql_CreateProject(self, given) -> dict:
        self.projects[given["input"]["name"]] = None
        made = project_of(given["input"]["name"])
        return {"result": {"project": made, "model": made, "inserted": True}}

    def gql_upsertView(self, given) -> dict:
        bounded("report title", given["displayName"], LONGEST_NAME)
        held = given | {"id": f"view{len(self.reports)}", "spec": json.loads(given["spec"])}
        self.reports.append(held)
        about = {key: given[key] for key in ("type", "name", "displayName", "description", "spec")}
        about |= {"id": held["id"], "project": project_of(given["projectName"]), "updatedAt": None}
        return {"upsertView": {"view": about, "inserted": True}}

    # Uploads and the stream of a run.

    def place(self, path: str) -> str:
        return f"{self.url}/storage/{path}"

    def put(self, path: str, body: bytes) -> None:
        self.stored[path] = body
        kind, _, rest = path.partition("/")
        if kind == "files":
            run, _, name = rest.partition("/")
            self.runs[run].files[name] = body

    def stream(self, run: Run, said: dict[str, Any]) -> None:
        for name, chunk in said.get("files", {}).items():
            lines, at = run.streams[name], chunk["offset"]
            if at > len(lines):
                raise ValueError(f"{name} of {run.id}: lines {len(lines)} to {at} were left out")
            lines[at : at + len(chunk["content"])] = chunk["content"]
            if name == "wandb-summary.json":
                run.summary = json.loads(chunk["content"][-1])
        if said.get("complete"):
            run.exit = said.get("exitcode")


def project_of(name: str) -> dict[str, Any]:
    about = {"__typename": "Project", "id": "p", "name": name, "entityName": ENTITY}
    about |= {"createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None}
    return about | {"entity": {"id": "e", "name": ENTITY}}


def points_of(method: str, parameters: dict[str, Any], cap: int) -> list[dict[str, Any]]:
    """What a sweep has its agents run: the grid, or as many points as it is bounded to."""
    if method == "grid":
        values = (about["values"] for about in parameters.values())
        return [dict(zip(parameters, point, strict=True)) for point in itertools.product(*values)]
    draw = random.Random(0)

    def value(about: dict[str, Any]):
        return (
            draw.choice(about["values"])
            if "values" in about
            else draw.uniform(about["min"], about["max"])
        )

    return [{key: value(about) for key, about in parameters.items()} for _ in range(cap)]


def viewer() -> dict[str, Any]:
    teams = {"edges": [{"node": {"name": ENTITY}}]}
    about = {"id": "v", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}
    return about | {"teams": teams}


def bounded(what: str, text: str | None, longest: int, at_least: int = 0) -> None:
    if text is not None and not at_least <= len(text) <= longest:
        raise Refused(f"{what} {text!r} must be {at_least} to {longest} characters long")


class Handler(http.server.BaseHTTPRequestHandler):
    held: Server
    protocol_version = "HTTP/1.1"

    def answer(self):
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        is_json = self.command == "POST" and self.headers.get_content_type() == "application/json"
        said = json.loads(body) if is_json and body else {}
        query = said.get("query", "")
        named = re.search(r"(?:query|mutation)\s+(\w+)", query)
        operation = named[1] if named else path.rsplit("/", 1)[-1]
        with self.held.lock:
            self.held.asked.append(operation)
            fault = self.held.failing(operation)
        if fault:
            time.sleep(fault.delay)
            if fault.status == 0:
                self.close_connection = True
                self.connection.close()
                return
            if fault.status:
                self.send({"error": "as the test has it"}, fault.status)
                return
        status = 200
        try:
            with self.held.lock:
                told = self.told(path, said, body, operation)
        except Refused as no:
            self.held.refused.append(no.said)
            told, status = {"errors": [{"message": no.said}], "error": no.said}, no.status
        except Exception as error:  # what the stand-in did not foresee
            self.held.unknown.append(f"{operation}: {error!r}")
            told, status = {"errors": [{"message": repr(error)}]}, 500
        self.send(told, status)

    do_HEAD = do_GET = do_POST = do_PUT = answer

    def told(self, path: str, said: dict[str, Any], body: bytes, operation: str) -> dict[str, Any]:
        """What the server answers to this."""
        held = self.held
        needs_key = (path == "/graphql" and said) or path.endswith("/file_stream")
        key = base64.b64decode(self.headers.get("Authorization", "")[6:]).decode()
        if needs_key and key != f"api:{KEY}":
            raise Refused("invalid API key", 401)
        if path == "/graphql" and said:
            return {"data": held.answer(operation, said["query"], said.get("variables") or {})}
        if path.startswith("/storage/"):
            held.put(path.removeprefix("/storage/"), body)
            return {}
        if found := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path):
            held.stream(held.runs[found[1]], said)
            return {}
        if self.command == "HEAD" or path.startswith("/sdk/otel/"):  # the client's own, of itself
            return {}
        held.unknown.append(f"{self.command} {path}")
        raise Refused(f"the stand-in knows no {self.command} {path}", 404)

    def send(self, said: dict[str, Any], status: int = 200) -> None:
        text = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def handle(self):
        with suppress(ConnectionError):  # a client that has ended
            super().handle()

    def log_message(self, *_):
        pass
