"""A Hub that is silent or ends in mid-download: one paragraph with the ways out, and soon; a slow one is waited for."""

import errno
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time

import forked
import httpx2
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import hf_raise_for_status

from dialogue_summarization import hub

# What is said of a model and of data of each owner, and the seconds until then; of all owners at the same time.
PROGRAM = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
from dialogue_summarization import data, models
def fetch(owner):
    said = []
    for fetch, name in ((models.local_snapshot, "model"), (data.load_source, "dialogues")):
        start = time.perf_counter()
        try:
            outcome = f"fetched {fetch(f'{owner}/{name}')}"
        except Exception as error:
            outcome = f"{type(error).__name__} {error}"
        said.append(f"{time.perf_counter() - start:.1f} {outcome}")
    return said
owners = sys.argv[1:]
with ThreadPoolExecutor(len(owners)) as pool:
    print(json.dumps(dict(zip(owners, pool.map(fetch, owners)))))
"""


class Troubled(http.server.BaseHTTPRequestHandler):
    """A Hub that lists files. What it sends of each depends on whose it is."""

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
            self.send()
        return None

    def send(self):
        owner = next(owner for owner in ("breaks-off", "falls-silent", "is-slow") if f"/{owner}/" in self.path)
        if owner == "is-slow":  # nearly 2 s for a file, longer than the client waits for anything
            content = json.dumps({"model_type": "t5"}).encode().ljust(self.SIZE)
            for start in range(0, self.SIZE, self.SIZE // 8):
                self.wfile.write(content[start : start + self.SIZE // 8])
                self.wfile.flush()
                time.sleep(0.25)
            return
        self.wfile.write(b"x" * (self.SIZE // 2))
        if owner == "falls-silent":  # and does not close the connection, where the client waits for 1 s
            self.wfile.flush()
            time.sleep(3)
        self.close_connection = True

    def log_message(self, *_):
        """Nothing."""


def fetch(port, home, *owners):
    environment = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home), "HF_HUB_OFFLINE": ""}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *owners],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What is said of each kind of trouble, and the seconds until then."""
    silent = socket.create_server(("127.0.0.1", 0))
    troubled = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Troubled)
    threading.Thread(target=troubled.serve_forever, daemon=True).start()
    running = [
        fetch(silent.getsockname()[1], tmp_path_factory.mktemp("home"), "silent"),
        fetch(troubled.server_port, tmp_path_factory.mktemp("home"), "breaks-off", "falls-silent", "is-slow"),
    ]
    said = [process.communicate()[0] for process in running]
    troubled.shutdown()
    silent.close()
    return json.loads(said[0]) | json.loads(said[1])


@pytest.mark.parametrize("kind", ["silent", "breaks-off", "falls-silent"])
def test_what_is_read_when_the_hub_is_in_trouble(printed, kind):
    assert len(printed[kind]) == 2, printed[kind]
    for line, what, way_out in zip(printed[kind], ("Model", "Data"), ("--model PATH", "--dataset PATH"), strict=True):
        seconds, error, message = line.split(" ", 2)
        assert error == f"{what}Error" and float(seconds) < 30
        assert way_out in message and "quickstart" in message and "Try again" in message
        assert kind != "silent" or "does not answer" in message


def test_a_slow_hub_is_waited_for(printed):
    seconds, outcome, _ = printed["is-slow"][0].split(" ", 2)
    assert outcome == "fetched" and float(seconds) > 1.5, printed["is-slow"]


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (
            401,
            {"X-Error-Code": "GatedRepo"},
            "It is gated: accept its terms at https://huggingface.co/some/model, and log in",
        ),
        (403, {"X-Error-Code": "GatedRepo"}, "It is gated"),
        (
            401,
            {"X-Error-Message": "Invalid username or password."},
            "check its spelling, as owner/name. If it is private",
        ),
        (404, {"X-Error-Code": "RepoNotFound"}, "check its spelling"),
        (401, {"X-Error-Message": 'User Access Token "laptop" is expired'}, "has expired: unset HF_TOKEN"),
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "does not take your access token"),
        (403, {"X-Error-Message": "Forbidden"}, "nothing of that name that you may read"),
        (429, {}, "too many requests from here: wait some minutes"),
        (503, {}, "Try again when it answers"),
    ],
)
def test_what_the_hub_refuses_says_what_to_do(status, headers, said):
    url = "https://huggingface.co/api/models/some/model"
    response = httpx2.Response(status, headers=headers, request=httpx2.Request("GET", url))
    with pytest.raises(OSError) as caught:
        hf_raise_for_status(response)
    wrapped = LocalEntryNotFoundError("An error happened while trying to locate the files on the Hub.")
    wrapped.__cause__ = caught.value  # as a download raises it
    assert said in hub.advice(caught.value, "some/model") and said in hub.advice(wrapped, "some/model")


def test_a_cache_that_cannot_be_written_is_not_the_hubs_fault():
    advice = hub.advice(PermissionError(errno.EACCES, "Permission denied", "/home/me/.cache"), "some/model")
    assert "set HF_HOME to a folder" in advice and "Try again" not in advice


def test_a_socks_proxy_is_named():
    told = {"ALL_PROXY": "socks5://127.0.0.1:9", "HF_HUB_OFFLINE": ""}
    done = forked.python("from dialogue_summarization import hub; print(hub.go_offline_if_silent())", env=told)
    assert "SOCKS proxy is set" in done.stdout and "uv pip install socksio" in done.stdout, done.stdout + done.stderr
