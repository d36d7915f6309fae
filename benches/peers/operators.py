#!/usr/bin/env python3
"""The operators of `tandem bench operators` beside PyTorch's, on the same GPU, timed the same way: many launches in one CUDA graph, over
copies of the weights that together exceed the L2 cache twice; median of nine.

usage: operators.py TABLES/<gpu> OUT.csv      (needs torch with CUDA; reads the CSV that `tandem bench operators` wrote there)

Not alike, and said in the column `peer`: torch's experts are its two grouped products alone (one scale a row, CUTLASS), without gathering,
silu, quantisation and weighted sum, which Tandem's time holds; absorbed decode attention has no fused kernel in torch.
"""
import csv
import statistics
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

L2 = 50 << 20
FP8 = torch.float8_e4m3fn


def timed(run, copies, least=500e-6):
    """Median seconds of run(i)."""
    run(0)
    torch.cuda.synchronize()
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record(), run(copies - 1), stop.record(), torch.cuda.synchronize()
    n = min(256, max(copies, int(least / max(1e-6, start.elapsed_time(stop) * 1e-3)) + 1))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(n):
            run(i % copies)
    graph.replay()
    times = []
    for _ in range(9):
        start.record(), graph.replay(), stop.record(), torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) * 1e-3 / n)
    return statistics.median(times)


def copies_of(n_bytes, most=160):
    return max(1, min(most, -(-2 * L2 // n_bytes)))


def rand(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def rand8(*shape):
    # By parts: a float copy of all weights would not fit.
    out = torch.empty(*shape, device="cuda", dtype=FP8)
    for part in out.view(shape[0], -1).split(max(1, (1 << 28) // (out.numel() // shape[0]))):
        part.copy_(torch.randn(part.shape, device="cuda"))
    return out


def gemm(row):
    m, n, k = int(row["m"]), int(row["n"]), int(row["k"])
    if row["gemm_dtype"] == "bfloat16":
        copies = copies_of(2 * n * k)
        x, w = rand(m, k), rand(copies, n, k)
        return timed(lambda i: x @ w[i].t(), copies), "torch.matmul"
    copies = copies_of(n * k)
    if m % 4:
        return None
    x, w = rand8(m, k), rand8(copies, n, k)
    sx = torch.ones(k // 128, m, device="cuda").t()
    sw = torch.ones(-(-n // 128), (k // 128 + 3) // 4 * 4, device="cuda")[:, : k // 128].t()
    return timed(lambda i: torch._scaled_mm(x, w[i].t(), scale_a=sx, scale_b=sw, out_dtype=torch.bfloat16), copies), "torch._scaled_mm 1x128, 128x128"


def mla_bmm(row):
    m, h = int(row["num_tokens"]), int(row["num_heads"])
    if row["bmm_dtype"] != "bfloat16":
        return None
    n, k = (512, 128) if row["op_name"].endswith("pre") else (128, 512)
    copies = copies_of(2 * h * n * k)
    x, w = rand(m, h, k).transpose(0, 1), rand(copies, h, n, k)
    return timed(lambda i: torch.bmm(x, w[i].transpose(1, 2)), copies), "torch.bmm"


def context(row):
    b, h, s = int(row["batch_size"]), int(row["num_heads"]), int(row["isl"])
    q, k, v = rand(b, s, h, 192).transpose(1, 2), rand(b, s, h, 192).transpose(1, 2), rand(b, s, h, 128).transpose(1, 2)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return timed(lambda i: F.scaled_dot_product_attention(q, k, v, is_causal=True), 1), f"cuDNN {torch.backends.cudnn.version()} SDPA"


def generation(row):
    b, h, s = int(row["batch_size"]), int(row["num_heads"]), int(row["isl"]) + int(row["step"])
    copies = copies_of(b * s * 576 * 2, 64)
    q, kv = rand(b, h, 576), rand(copies, b, s, 576)
    # The cheapest correct form: BF16 scores, softmax in FP32.
    run = lambda i: torch.softmax(torch.bmm(q, kv[i].transpose(1, 2)).float() * 0.072, -1).to(torch.bfloat16) @ kv[i, :, :, :512]
    return timed(run, copies), "two torch.bmm and softmax"


def moe(row):
    tokens, hidden, inter, topk, experts = (int(row[c]) for c in ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts"))
    tp, ep = int(row["moe_tp_size"]), int(row["moe_ep_size"])
    local, rows = experts // ep, tokens * topk // ep
    if row["distribution"] != "balanced" or tp != 1 or rows % local or rows // local % 16:
        return None
    x, a = rand8(rows, hidden), rand8(rows, inter)
    w1, w2 = rand8(local, 2 * inter, hidden), rand8(local, hidden, inter)
    offs = torch.arange(1, local + 1, device="cuda", dtype=torch.int32) * (rows // local)
    one, s1, s2 = torch.ones(rows, device="cuda"), torch.ones(local, 2 * inter, device="cuda"), torch.ones(local, hidden, device="cuda")

    def run(i):
        torch._scaled_grouped_mm(x, w1.transpose(1, 2), one, s1, offs=offs, out_dtype=torch.bfloat16)
        torch._scaled_grouped_mm(a, w2.transpose(1, 2), one, s2, offs=offs, out_dtype=torch.bfloat16)

    return timed(run, 1), "two torch._scaled_grouped_mm"


# Rows of each table that are put beside torch: enough to see small, middle and large.
WANTED = {
    "gemm": (gemm, lambda r: r["m"] in ("4", "8", "64", "128", "1024", "4096", "8192") and (r["n"], r["k"]) in {("2112", "7168"), ("24576", "1536"), ("7168", "16384"), ("4096", "7168"), ("7168", "2048"), ("36864", "7168"), ("7168", "18432")}),
    "mla_bmm": (mla_bmm, lambda r: r["num_heads"] in ("128", "16") and r["num_tokens"] in ("8", "128", "1024", "8192")),
    "context_mla": (context, lambda r: r["num_heads"] in ("128", "16") and r["batch_size"] in ("1", "4") and r["isl"] in ("1024", "4096", "8192", "16384")),
    "generation_mla": (generation, lambda r: r["num_heads"] in ("128", "16") and r["batch_size"] in ("1", "32", "128") and r["step"] in ("1023", "4095", "8191")),
    "moe": (moe, lambda r: r["moe_ep_size"] in ("8", "32") and r["num_tokens"] in ("512", "2048", "4096", "8192", "16384", "32768")),
}


def main(tables, out):
    print(torch.__version__, torch.cuda.get_device_name(), "cuDNN", torch.backends.cudnn.version())
    rows = []
    for name, (run, wanted) in WANTED.items():
        try:
            table = list(csv.DictReader(open(f"{tables}/{name}/{name}_perf.csv")))
        except FileNotFoundError:
            continue
        ratios = {}
        for row in filter(wanted, table):
            try:
                found = run(row)
            except Exception as error:  # what torch refuses is said and left out
                print(name, "torch:", str(error).splitlines()[0][:120])
                found = None
            torch.cuda.empty_cache()
            if found is None:
                continue
            seconds, peer = found
            key = list(row)[: list(row).index("latency")]
            ours = float(row["latency"]) * 1e-3
            rows.append([name, " ".join(row[c] for c in key), f"{ours * 1e6:.2f}", f"{seconds * 1e6:.2f}", f"{seconds / ours:.3f}", peer])
            ratios.setdefault(peer.split(" 1x")[0], []).append(seconds / ours)
        for peer, all_of in ratios.items():
            all_of.sort()
            print(f"{name}: {peer}: {len(all_of)} sizes, its time / Tandem's: median {statistics.median(all_of):.2f}, {all_of[0]:.2f} to {all_of[-1]:.2f}")
    with open(out, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["operator", "sizes", "tandem_us", "peer_us", "peer_over_tandem", "peer"])
        writer.writerows(rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
