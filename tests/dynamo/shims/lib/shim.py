"""What the stand-ins share: each notes what it was given, refuses what is wrong, and notes its end.

They stand in for programs that need GPUs (TensorRT-LLM, Dynamo's workers) so that everything around them runs for real: Slurm,
PMIx, the job's environment, configuration files, ports, readiness, load, teardown. SHIM_SEEN names the folder of the notes.
"""

import json
import os
import signal
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SEEN = os.environ.get("SHIM_SEEN", "")


def note(program, **more):
    """Writes what this process was given to a file of its own."""
    if not SEEN:
        refuse("SHIM_SEEN is not set: --env did not arrive")
    step, rank = os.environ.get("SLURM_JOB_NAME", "?"), os.environ.get("SLURM_PROCID", "0")
    seen = {"program": program, "argv": sys.argv[1:], "env": dict(os.environ), "step": step, "rank": int(rank), **more}
    path = os.path.join(SEEN, f"{program}-{step}-{rank}.json")
    with open(path + ".tmp", "w") as file:
        json.dump(seen, file)
    os.rename(path + ".tmp", path)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=end, args=(program,)).start())


def end(program):
    with open(os.path.join(SEEN, "ends"), "a") as file:
        file.write(program + "\n")
    os._exit(0)


def refuse(why):
    print(f"SHIM REFUSES: {why}", flush=True)
    os._exit(9)


def check(holds, why):
    if not holds:
        refuse(why)


def host_port(url):
    host, port = url.split("://", 1)[-1].rsplit(":", 1)
    return host, int(port)


class Handler(BaseHTTPRequestHandler):
    """JSON in and out, one connection kept for many requests."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def body(self):
        return json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")

    def answer(self, value, status=200, kind="application/json"):
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


def ask(url, value=None, method=None):
    data = None if value is None else json.dumps(value).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, data, method=method), timeout=20) as answer:
        return json.loads(answer.read() or b"null")


def dialect():
    """1 when the launcher speaks to Dynamo 1.x, else 0.6."""
    return "1" if "DYN_DISCOVERY_BACKEND" in os.environ else "0.6"


def check_dynamo_environment():
    env = os.environ
    check(env.get("ETCD_ENDPOINTS", "").startswith("http://"), "ETCD_ENDPOINTS is missing")
    check(ask(env["ETCD_ENDPOINTS"] + "/health")["health"] == "true", "etcd is not healthy")
    if dialect() == "0.6":
        import socket

        with socket.create_connection(host_port(env.get("NATS_SERVER", "nats://127.0.0.1:1")), timeout=10) as nats:
            check(nats.recv(4) == b"INFO", "NATS does not greet")
    else:
        check(env["DYN_DISCOVERY_BACKEND"] == "etcd", "discovery over several nodes needs etcd")
        hosts = ["DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST", "DYN_EVENT_PLANE_HOST", "DYN_HTTP_RPC_HOST"]
        check(len({env.get(host) for host in hosts}) == 1 and env.get(hosts[0]), "the addresses of this node differ or are missing")
    check(env.get("HF_HUB_OFFLINE") == "1", "it would ask the network for the model")
    foreign = [name for name in env if name.startswith(("SBATCH_", "CARGO", "VIRTUAL_ENV")) or "SECRET" in name]
    check(not foreign, f"variables of the login shell arrived: {foreign}")
