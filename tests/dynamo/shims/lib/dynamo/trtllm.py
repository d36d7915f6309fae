"""Stands in for `python3 -m dynamo.trtllm`: checks flags, configuration file, ranks and environment, registers, and answers."""

import argparse
import os
import threading
import time

import shim

parser = argparse.ArgumentParser(allow_abbrev=False)
for flag in ["--model-path", "--served-model-name", "--extra-engine-args"]:
    parser.add_argument(flag, required=True)
for flag in ["--max-num-tokens", "--max-batch-size", "--max-seq-len"]:
    parser.add_argument(flag, type=int, required=True)
parser.add_argument("--disaggregation-mode", choices=["prefill", "decode"], required=True)
args = parser.parse_args()
role = args.disaggregation_mode


def top_level(text):
    """Keys of a YAML mapping that are not nested; the value of a nested one is empty."""
    pairs = [line.split(":", 1) for line in text.splitlines() if ":" in line and line[0] not in " -"]
    return {key: value.strip() for key, value in pairs}


with open(args.extra_engine_args) as file:
    text = file.read()
config = top_level(text)
for key in ["max_num_tokens", "max_batch_size", "max_seq_len"]:
    shim.check(config[key] == str(getattr(args, key)), f"{key}: the flag says {getattr(args, key)}, the file {config[key]}")
world = int(config["tensor_parallel_size"]) * int(config["pipeline_parallel_size"])
shim.check(world == int(os.environ["SLURM_NTASKS"]), f"the file wants {world} ranks, the step has {os.environ['SLURM_NTASKS']}")
devices = len(os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","))
per_node = world // int(os.environ["SLURM_STEP_NUM_NODES"])
shim.check(devices >= per_node, f"{per_node} ranks on this node, {devices} devices")
shim.check(int(config["moe_expert_parallel_size"]) <= world, "more expert parallelism than ranks")
shim.check("cache_transceiver_config" in config and "backend: DEFAULT" in text, "no KV transceiver")
shim.check("print_iter_log" in config, "no iteration lines")
only_prefill = {"disable_overlap_scheduler", "enable_chunked_prefill"}
only_decode = {"cuda_graph_config", "stream_interval"}
wanted, unwanted = (only_prefill, only_decode) if role == "prefill" else (only_decode, only_prefill)
shim.check(wanted <= config.keys() and not unwanted & config.keys(), f"{args.extra_engine_args} is no file of a {role} server")
shim.check("UCX_TLS" not in os.environ, "UCX_TLS is set")
shim.check(os.environ.get("TLLM_LOG_LEVEL") == "INFO", "TLLM_LOG_LEVEL is not INFO")
caches = [os.environ["FLASHINFER_WORKSPACE_BASE"], os.environ["TRITON_CACHE_DIR"]]
shim.check(all(os.environ["SLURM_JOB_NAME"] in cache for cache in caches), f"caches of two servers may meet: {caches}")
shim.check(os.path.isdir(args.model_path), f"no model at {args.model_path}")
shim.check_dynamo_environment()
shim.note("trtllm", config=config, config_text=text)

lock, served, iteration = threading.Lock(), 0, 0


def step(n_ctx, n_gen):
    """One line in TensorRT-LLM's form."""
    global iteration
    iteration += 1
    requests = max(1, n_gen)
    print(
        f"[TRT-LLM] [I] iter = {iteration}, global_rank = 0, rank = 0, currank_total_requests = {requests}/{requests}, "
        f"host_step_time = 2.5ms, prev_device_step_time = 2.0ms, timestamp = {time.strftime('%Y-%m-%d %H:%M:%S')}, "
        f"num_scheduled_requests: {requests}, states = {{'num_ctx_requests': {int(n_ctx > 0)}, 'num_ctx_tokens': {n_ctx}, "
        f"'num_generation_tokens': {n_gen}}}",
        flush=True,
    )


class Worker(shim.Handler):
    def do_GET(self):
        labels = f'dynamo_component="{component}",dynamo_endpoint="generate"'
        self.answer(f"dynamo_component_requests_total{{{labels}}} {served}\n", kind="text/plain")

    def do_POST(self):
        global served
        n_tokens = self.body()["n_tokens"]
        with lock:
            served += 1
            if role == "prefill":
                step(args.max_num_tokens, 0)
            else:
                for _ in range(n_tokens):
                    step(0, 1)
        self.answer({})


names = {"0.6": {"prefill": "tensorrt_llm_next", "decode": "tensorrt_llm"}, "1": {"prefill": "prefill", "decode": "backend"}}
component = names[shim.dialect()][role]
server = shim.Server(("127.0.0.1", 0), Worker)
if shim.dialect() == "1":
    status = shim.Server((os.environ["DYN_SYSTEM_HOST"], int(os.environ["DYN_SYSTEM_PORT"])), Worker)
    threading.Thread(target=status.serve_forever, daemon=True).start()
me = {"id": os.getpid(), "component": component, "url": f"http://127.0.0.1:{server.server_port}"}
shim.ask(f"{os.environ['ETCD_ENDPOINTS']}/shim/instances", me, "POST")
server.serve_forever()
