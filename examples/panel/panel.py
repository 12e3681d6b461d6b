#!/usr/bin/env python3
"""A panel's backend: makes a server on a lightd node, hears what becomes of it, lets a browser at its console."""
import hmac, json, os, threading, time, urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
LIGHTD, TOKEN, SECRET = os.environ["LIGHTD"], os.environ["TOKEN"], os.environ["SIGNING_SECRET"].encode()
servers = {}  # by id: what a real panel has in its database
def lightd(method, path, body=None):
    headers = {"Authorization": "Bearer " + TOKEN, "Accept": "Application/vnd.pkglatv1+json"}
    data = json.dumps(body).encode() if body else None
    return json.load(urllib.request.urlopen(urllib.request.Request(LIGHTD + path, data, headers, method=method), timeout=30))
def is_signed(header, body):
    t, v1 = (header.split(",") + [""])[:2]
    wanted = hmac.new(SECRET, t[2:].encode() + b"." + body, "sha256").hexdigest()
    return hmac.compare_digest(v1, "v1=" + wanted) and abs(time.time() - int(t[2:])) < 300
class Panel(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        server = self.path.removeprefix("/console/")
        if self.path == "/api/health":
            self.answer({"status": 200, "endpoint": "active"})
        elif server in servers:  # a token for this one console, for a quarter of an hour
            scope = {"containers": [server], "permissions": ["console.read", "console.write"], "ttl": "15m"}
            token = lightd("POST", "/auth/tokens", scope)["token"]
            self.answer({"socket": f"ws{LIGHTD.removeprefix('http')}/ws/{server}?token={token}"})
        else:
            self.answer(servers)
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not is_signed(self.headers.get("X-Lightd-Signature", ""), body):
            return self.answer({"error": "this is not from my node"}, 401)
        update, sequence = json.loads(body), int(self.headers["X-Lightd-Sequence"])
        server, status = update["server"], update.get("status") or update["error"] + ": " + update["data"]
        if sequence > servers.get(server, {"sequence": 0})["sequence"]:  # else a repeat: that is done
            if status == "ready":
                lightd("POST", f"/containers/{server}/start")
            servers[server] = {"sequence": sequence, "status": status}
        self.answer({})
    def answer(self, value, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(json.dumps(value))))
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())
for seen in lightd("GET", "/sync/snapshot")["containers"]:  # what became of them while nobody was here
    servers[seen["internal_id"]] = {"sequence": seen["last_sequence"], "status": seen["state"]}
    if seen["state"] == "offline" and not seen["last_exit"]:  # ready, and never started
        lightd("POST", f"/containers/{seen['internal_id']}/start")
threading.Thread(target=ThreadingHTTPServer(("127.0.0.1", 9000), Panel).serve_forever).start()
if "mine" not in servers:
    lightd("POST", "/containers", {"internal_id": "mine", "volume_id": lightd("POST", "/volumes")["volume_id"],
           "image": "lightd-demo:1", "startup_command": "echo Hello; while read line; do echo You said $line; done"})
