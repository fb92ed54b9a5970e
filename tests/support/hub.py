"""A stand-in for the hub's API, on the loopback, as far as sending a data set or a model goes: what
the real client says to it is kept, to be looked at. A call that it does not know is an error, to
the client and to the test."""

import base64
import hashlib
import http.server
import json
import re
import threading
from typing import Any

import yaml
from huggingface_hub.utils import sha

TOKEN = "hf_" + "a" * 34


class Hub:
    """It serves while it is a context. `private` has the data sets and models that are there, by
    name; `files` the bytes of what was committed, by repository and name; `asked` every call,
    `unknown` those that the stand-in does not know. `status` is what it answers to commits, if not
    200. Large files come as the client sends them without Xet (HF_HUB_DISABLE_XET), and stay in
    `stored` by their SHA-256 when the commit fails."""

    def __init__(self) -> None:
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.stored: dict[str, bytes] = {}
        self.commits = 0
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
        if oid := re.fullmatch(r"PUT /stored/(\w{64})", call):
            assert hashlib.sha256(body).hexdigest() == oid[1]
            self.stored[oid[1]] = body
            return 200, {}
        if re.fullmatch(r"POST /[\w.-]+/[\w.-]+\.git/info/lfs/objects/batch", call):
            return 200, {
                "transfer": "basic",
                "objects": [*map(self.lfs, json.loads(body)["objects"])],
            }
        if not (
            found := re.fullmatch(r"(\w+) /api/(?:dataset|model)s/([\w.-]+/[\w.-]+)(/.+)?", call)
        ):
            self.unknown.append(call)
            return 404, {"error": f"the stand-in knows no {call}"}
        verb, name, what = found.groups()
        if name not in self.private:
            return 404, {"error": "Repository not found"}
        match verb, what:
            case "GET", None | "/revision/main":
                about = {"id": name, "private": self.private[name], "siblings": []}
                return 200, about | {"sha": f"{self.commits:040x}"}
            case "POST", "/preupload/main":
                paths = [file["path"] for file in json.loads(body)["files"]]
                return 200, {"files": [self.known(name, path) for path in paths]}
            case "POST", "/commit/main" if self.status == 200:
                for line in map(json.loads, body.splitlines()):
                    there, of = self.files.setdefault(name, {}), line["value"]
                    if line["key"] == "file":
                        there[of["path"]] = base64.b64decode(of["content"])
                    elif line["key"] == "lfsFile":
                        there[of["path"]] = self.stored[of["oid"]]
                self.commits += 1
                oid = f"{self.commits:040x}"
                return 200, {"commitUrl": f"{self.url}/{name}/commit/{oid}", "commitOid": oid}
            case "POST", "/commit/main":
                return self.status, {"error": "as the test has it"}
        self.unknown.append(call)
        return 404, {"error": f"the stand-in knows no {call}"}

    def known(self, name: str, path: str) -> dict[str, Any]:
        """How a file is to be sent, and the hash of the one of that name that is there."""
        large, there = path.endswith((".safetensors", ".gguf")), self.files.get(name, {}).get(path)
        oid = None
        if there is not None:
            oid = hashlib.sha256(there).hexdigest() if large else sha.git_hash(there)
        mode = "lfs" if large else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def lfs(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Where a large file is to be sent to; nowhere if it is there."""
        oid, upload = asked["oid"], {"href": f"{self.url}/stored/{asked['oid']}"}
        wanted = {} if oid in self.stored else {"actions": {"upload": upload}}
        return {"oid": oid, "size": asked["size"], "authenticated": True, **wanted}

    def create(self, said: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        name, of = f"{said['organization']}/{said['name']}", said.get("type", "model")
        if said["organization"] == "nobody":
            return 403, {"error": "you may not create one there"}
        address = {"url": f"{self.url}/{'datasets/' * (of == 'dataset')}{name}"}
        if name in self.private:
            return 409, address | {"error": f"You already created this {of} repo"}
        self.private[name] = said.get("private", False) or said.get("visibility") == "private"
        return 200, address


class Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        call = f"{self.command} {self.path.partition('?')[0]}"
        self.hub.asked.append(call)
        open_to_all = call == "POST /api/validate-yaml" or call.startswith("PUT /stored/")
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

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *_):
        pass
