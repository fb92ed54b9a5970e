"""A stand-in for the hub's API, on the loopback, as far as sending a data set goes: what the real
client says to it is kept, to be looked at. A call that it does not know is an error, to the client
and to the test."""

import base64
import http.server
import json
import re
import threading
from typing import Any

import yaml

TOKEN = "hf_" + "a" * 34
OID = "0" * 40


class Hub:
    """It serves while it is a context. `private` has the data sets that are there, by name;
    `files` the bytes of what was committed, by data set and name; `asked` every call, `unknown`
    those that the stand-in does not know. `status` is what it answers to commits, if not 200."""

    def __init__(self) -> None:
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.unknown: list[str] = []
        self.status = 200

    def __enter__(self):
        handler = type("Handler", (Handler,), {"hub": self})
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def told(self, call: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """The status and what is answered to a call, such as `GET /api/datasets/org/name`."""
        if call == "POST /api/validate-yaml":
            front = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
            valid = front and isinstance(yaml.safe_load(front[1]), dict)
            faults = [] if valid else [{"message": "no front matter"}]
            return 200 if valid else 400, {"errors": faults, "warnings": []}
        if call == "POST /api/repos/create":
            return self.create(json.loads(body))
        if not (found := re.fullmatch(r"(\w+) /api/datasets/([\w.-]+/[\w.-]+)(/.+)?", call)):
            self.unknown.append(call)
            return 404, {"error": f"the stand-in knows no {call}"}
        verb, name, what = found.groups()
        if name not in self.private:
            return 404, {"error": "Repository not found"}
        match verb, what:
            case "GET", None | "/revision/main":
                about = {"id": name, "private": self.private[name], "sha": OID, "siblings": []}
                return 200, about
            case "POST", "/preupload/main":
                about = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
                files = json.loads(body)["files"]
                return 200, {"files": [about | {"path": file["path"]} for file in files]}
            case "POST", "/commit/main" if self.status == 200:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        self.files.setdefault(name, {})[line["value"]["path"]] = content
                return 200, {"commitUrl": f"{self.url}/datasets/{name}/commit/{OID}"} | {
                    "commitOid": OID
                }
            case "POST", "/commit/main":
                return self.status, {"error": "as the test has it"}
        self.unknown.append(call)
        return 404, {"error": f"the stand-in knows no {call}"}

    def create(self, said: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        assert said["type"] == "dataset"
        name = f"{said['organization']}/{said['name']}"
        address = {"url": f"{self.url}/datasets/{name}"}
        if name in self.private:
            return 409, address | {"error": "You already created this dataset repo"}
        self.private[name] = said.get("private", False) or said.get("visibility") == "private"
        return 200, address


class Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        call = f"{self.command} {self.path.partition('?')[0]}"
        self.hub.asked.append(call)
        open_to_all = call == "POST /api/validate-yaml"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and not open_to_all:
            status, said = 401, {"error": "Invalid credentials in Authorization header"}
        else:
            status, said = self.hub.told(call, body)
        text = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if said.get("error") == "Repository not found":
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = answer

    def log_message(self, *_):
        pass
