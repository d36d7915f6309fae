"""Stands in for `python3 -m dynamo.frontend`: finds workers in etcd, sends each request through a prefill and a decode worker.

SHIM_AGGREGATED=1 makes it do what real frontends have done silently: serve without prefill workers, once a first request (the
canary) has gone well.
"""

import argparse
import itertools
import json
import os

import shim

parser = argparse.ArgumentParser()
parser.add_argument("--http-host", default="0.0.0.0")
parser.add_argument("--http-port", type=int, required=True)
parser.add_argument("--router-mode", choices=["round-robin", "least-loaded"])
args = parser.parse_args()
shim.check((args.router_mode is None) == (shim.dialect() == "0.6"), "the router's mode belongs to dialect 1")
shim.check_dynamo_environment()
shim.note("frontend")
turn = itertools.count()


def workers():
    found = shim.ask(os.environ["ETCD_ENDPOINTS"] + "/shim/instances")
    prefill = [w for w in found if w["component"] in ("prefill", "tensorrt_llm_next")]
    decode = [w for w in found if w["component"] in ("backend", "tensorrt_llm")]
    return prefill, decode


class Frontend(shim.Handler):
    def do_GET(self):
        prefill, decode = workers()
        if self.path == "/health":
            instances = [{"component": w["component"], "endpoint": "generate", "namespace": "dynamo"} for w in prefill + decode]
            return self.answer({"status": "healthy", "instances": instances})
        if self.path.startswith("/v1/models/") and self.path.endswith("/ready") and shim.dialect() == "1":
            types = {"prefill": {"workers": len(prefill)}, "decode": {"workers": len(decode)}}
            return self.answer({"ready": bool(prefill and decode), "namespaces": {"dynamo": {"worker_types": types}}})
        return self.answer({"message": "not found"}, 404)

    def do_POST(self):
        body = self.body()
        prefill, decode = workers()
        n = next(turn)
        first, second = prefill[n % len(prefill)], decode[n % len(decode)]
        if shim.dialect() == "1" and "ignore_eos" in body.get("nvext", {}):
            return self.answer({"message": "nvext.ignore_eos is not supported"}, 400)
        aggregated = os.environ.get("SHIM_AGGREGATED") and n > 0
        if not aggregated:
            shim.ask(first["url"] + "/generate", {"n_tokens": 1})
        n_tokens = body["max_tokens"]
        shim.check(body.get("min_tokens") == n_tokens and body.get("ignore_eos"), "the output has no fixed length")
        shim.ask(second["url"] + "/generate", {"n_tokens": n_tokens})
        ids = {"prefill_worker_id": first["id"], "decode_worker_id": second["id"]}
        usage = {"completion_tokens": n_tokens, "prompt_tokens": None, "total_tokens": n_tokens}
        if not body.get("stream"):
            message = {"role": "assistant", "content": "x" * n_tokens}
            choice = {"index": 0, "message": message, "finish_reason": "length"}
            return self.answer({"id": "c", "choices": [choice], "usage": usage, "nvext": {"worker_id": ids}})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for i in range(n_tokens):
            choice = {"index": 0, "delta": {"content": "x"}, "finish_reason": "length" if i + 1 == n_tokens else None}
            self.event({"id": "c", "object": "chat.completion.chunk", "choices": [choice]})
        self.event({"id": "c", "object": "chat.completion.chunk", "choices": [], "usage": usage})
        self.chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, value):
        self.chunk(b"data: " + json.dumps(value).encode() + b"\n\n")

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


shim.Server((args.http_host, args.http_port), Frontend).serve_forever()
