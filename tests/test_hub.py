"""A Hub that is silent or breaks off: one paragraph with the ways out, and soon."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading

import pytest

PROGRAM = """
import sys, time
from dialogue_summarization import data, models
for fetch, source in ((models.resolve, "someone/model"), (data.load_source, "someone/dialogues")):
    start = time.perf_counter()
    try:
        fetch(source)
    except Exception as error:
        print(f"{time.perf_counter() - start:.1f} {type(error).__name__} {error}")
"""


class BreaksOff(http.server.BaseHTTPRequestHandler):
    """A Hub that lists files and sends half of each, then closes the connection."""

    FILES = ("config.json", "model.safetensors", "train.jsonl", "validation.jsonl", "test.jsonl")
    SIZE = 1 << 20

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.say([{"type": "file", "path": name, "size": self.SIZE, "oid": "0" * 40} for name in self.FILES])

    def say(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, head=False):
        if self.path.startswith("/api"):
            files = [{"type": "file", "path": name, "size": self.SIZE, "oid": "0" * 40} for name in self.FILES]
            siblings = [{"rfilename": name} for name in self.FILES]
            whole = {"id": "someone/model", "sha": "1" * 40, "siblings": siblings, "private": False, "tags": []}
            return self.say(files if "/tree/" in self.path else whole)
        name = self.path.partition("?")[0].rpartition("/")[2]
        if "/resolve/" in self.path and name not in self.FILES:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", "1" * 40)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        self.send_response(200)
        self.send_header("X-Repo-Commit", "1" * 40)
        self.send_header("ETag", f'"{name}"')
        self.send_header("Content-Length", str(self.SIZE))
        self.end_headers()
        if not head:
            self.wfile.write(b"x" * (self.SIZE // 2))
            self.close_connection = True
        return None

    def log_message(self, *_):
        """Nothing."""


def fetch(port, home):
    environment = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home), "HF_HUB_OFFLINE": ""}
    environment |= {"HF_HUB_DISABLE_XET": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What is said of each kind of trouble, and the seconds until then."""
    silent = socket.create_server(("127.0.0.1", 0))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), BreaksOff)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ports = {"silent": silent.getsockname()[1], "breaks off": server.server_port}
    running = {kind: fetch(port, tmp_path_factory.mktemp("home")) for kind, port in ports.items()}
    said = {kind: process.communicate()[0].splitlines() for kind, process in running.items()}
    server.shutdown()
    silent.close()
    return said


@pytest.mark.parametrize("kind", ["silent", "breaks off"])
def test_what_is_read_when_the_hub_is_in_trouble(printed, kind):
    assert len(printed[kind]) == 2, printed[kind]
    for line, what, way_out in zip(printed[kind], ("Model", "Data"), ("--model PATH", "--dataset PATH"), strict=True):
        seconds, error, message = line.split(" ", 2)
        assert error == f"{what}Error" and float(seconds) < 30
        assert way_out in message and "quickstart" in message and "Try again" in message
        assert kind == "breaks off" or "does not answer" in message
