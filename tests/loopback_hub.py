"""A Hub in memory for the real client: create, commit, LFS, tree, resolve, of models and Spaces, on the loopback
interface. A Space is under `spaces/` and its name.

It does not cover Xet, permissions, card validation by the server, or anything else of the real Hub.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


def git_oid(b):
    return hashlib.sha1(b"blob %d\0" % len(b) + b).hexdigest()


class FakeHub:
    def __init__(self):
        self.repos, self.blobs, self.log, self.private = {}, {}, [], {}  # repos[id] = [(sha, {path: bytes}, lfs_paths)]
        hub = self

        class H(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *a):
                pass

            def do(self):
                n = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(n) if n else b""
                path = unquote(urlsplit(self.path).path)
                code, hdr, out = hub.route(self.command, path, body)
                hub.log.append((self.command, path, code))
                if isinstance(out, (dict, list)):
                    out = json.dumps(out).encode()
                    hdr = {"Content-Type": "application/json", **hdr}
                self.send_response(code)
                for k, v in hdr.items():
                    self.send_header(k, v)
                if "Content-Length" not in hdr:
                    self.send_header("Content-Length", str(len(out)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(out)

            do_GET = do_POST = do_PUT = do_HEAD = do

        self.srv = ThreadingHTTPServer(("127.0.0.1", 0), H)
        self.url = f"http://127.0.0.1:{self.srv.server_port}"

    def __enter__(self):
        threading.Thread(target=self.srv.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *a):
        self.srv.shutdown()
        self.srv.server_close()

    def err(self, code, kind):
        return code, {"X-Error-Code": kind}, {"error": kind}

    def commit(self, repo, rev):
        hist = self.repos[repo]
        if rev in ("main", None):
            return hist[-1]
        return next((c for c in hist if c[0] == rev), None)

    def route(self, method, path, body):
        if path == "/api/whoami-v2":
            return (
                200,
                {},
                {
                    "name": "tester",
                    "type": "user",
                    "orgs": [{"name": "org"}],
                    "auth": {"accessToken": {"role": "write"}},
                },
            )
        if path == "/api/validate-yaml":
            return 200, {}, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            j = json.loads(body)
            rid = f"{j.get('organization') or 'tester'}/{j['name']}"
            if j.get("type") == "space":
                if j.get("sdk") != "gradio":
                    return 400, {}, {"error": "sdk"}
                rid = f"spaces/{rid}"
            if rid in self.repos:
                return 409, {}, {"error": "exists", "url": f"{self.url}/{rid}"}
            self.private[rid] = j.get("private") or j.get("visibility") == "private"
            self.repos[rid] = [(hashlib.sha1(rid.encode()).hexdigest(), {}, set())]
            return 200, {}, {"url": f"{self.url}/{rid}", "name": rid, "id": rid}
        if m := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            if hashlib.sha256(body).hexdigest() != m[1]:
                return 422, {}, {"error": "sha256"}
            self.blobs[m[1]] = body
            return 200, {}, {}
        if m := re.fullmatch(r"/((?:spaces/)?[^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            objs = [
                {
                    "oid": o["oid"],
                    "size": o["size"],
                    **(
                        {}
                        if o["oid"] in self.blobs
                        else {"actions": {"upload": {"href": f"{self.url}/lfs/{o['oid']}"}}}
                    ),
                }
                for o in json.loads(body)["objects"]
            ]
            return 200, {}, {"transfer": "basic", "objects": objs}
        inside = r"([^/]+/[^/]+)(?:/(preupload|commit|tree|revision|branch)/(.+))?"
        if m := re.fullmatch(rf"/api/(models/|spaces/){inside}", path):
            repo, what, rest = m[1].removeprefix("models/") + m[2], m[3], m[4]
            if repo not in self.repos:
                return self.err(404, "RepoNotFound")
            rev, _, sub = (rest or "main").partition("/")
            c = self.commit(repo, rev)
            if c is None:
                return self.err(404, "RevisionNotFound")
            if what == "preupload":
                return (
                    200,
                    {},
                    {
                        "files": [
                            {
                                "path": f["path"],
                                "uploadMode": "lfs"
                                if re.search(r"\.(safetensors|bin|pt|arrow|parquet|npz)$", f["path"])
                                or f["size"] > 10 << 20
                                else "regular",
                                "shouldIgnore": False,
                                "oid": git_oid(c[1][f["path"]]) if f["path"] in c[1] else None,
                            }
                            for f in json.loads(body)["files"]
                        ]
                    },
                )
            if what == "commit":
                files, lfs = dict(c[1]), set(c[2])
                for line in map(json.loads, body.splitlines()):
                    v = line["value"]
                    if line["key"] == "file":
                        files[v["path"]] = base64.b64decode(v["content"])
                        lfs.discard(v["path"])
                    elif line["key"] == "lfsFile":
                        files[v["path"]] = self.blobs[v["oid"]]
                        lfs.add(v["path"])
                    elif line["key"] == "deletedFile":
                        files.pop(v["path"], None)
                sha = hashlib.sha1(
                    (
                        c[0] + str(len(self.repos[repo])) + repr(sorted((k, git_oid(b)) for k, b in files.items()))
                    ).encode()
                ).hexdigest()
                self.repos[repo].append((sha, files, lfs))
                return 200, {}, {"commitUrl": f"{self.url}/{repo}/commit/{sha}", "commitOid": sha, "success": True}
            if what == "tree":
                out = []
                for p, b in sorted(c[1].items()):
                    e = {"type": "file", "path": p, "size": len(b), "oid": git_oid(b)}
                    if p in c[2]:
                        e["lfs"] = {"oid": hashlib.sha256(b).hexdigest(), "size": len(b), "pointerSize": 130}
                    out.append(e)
                return 200, {}, out
            return (
                200,
                {},
                {
                    "id": repo.removeprefix("spaces/"),
                    "modelId": repo,
                    "sha": c[0],
                    "private": bool(self.private[repo]),
                    "tags": [],
                    "siblings": [{"rfilename": p} for p in sorted(c[1])],
                },
            )
        if m := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo, rev, name = m.groups()
            if repo not in self.repos:
                return self.err(404, "RepoNotFound")
            c = self.commit(repo, rev)
            if c is None:
                return self.err(404, "RevisionNotFound")
            if name not in c[1]:
                return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": c[0]}, {"error": "EntryNotFound"}
            b = c[1][name]
            etag = hashlib.sha256(b).hexdigest() if name in c[2] else git_oid(b)
            return (
                200,
                {"ETag": f'"{etag}"', "X-Repo-Commit": c[0], "Content-Length": str(len(b)), "Accept-Ranges": "none"},
                b,
            )
        return 404, {}, {"error": "unknown route"}
