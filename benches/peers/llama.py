"""Tandem's CPU engine beside llama.cpp: the same shapes, thread counts and batch sizes, in turn, on this machine.

Usage: benches/peers/install-llama.sh && python3 benches/peers/llama.py [--rounds N] [--models nano,mid] [--threads 1,2] [--raw FILE]

A round runs llama.cpp in each number format and Tandem once, in alternating order; the table holds the median over the
rounds. Prefill is one sequence of 512 tokens; decode is B sequences over contexts 128 to 192. Without llama.cpp's
programs its columns say so. What it does not check is that the engines compute the same text: see README.md here.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

from machine import PEERS, ROOT, Others, describe, own_session

BATCHES = (1, 4, 8, 16, 32)
ROWS = ["prefill 512"] + [f"decode B={n}" for n in BATCHES]
BIN = PEERS / "llama/build/bin"
MODELS = PEERS / "gguf"


def run(command):
    """Standard output of a program, and the share of the cores that others had meanwhile."""
    own = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    before, others = own(), Others()
    done = subprocess.run([str(c) for c in command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nended with {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout, others.share(own() - before)


def llama(model, threads, kind):
    """Tokens per second of each row by llama.cpp."""
    path = MODELS / f"{model}-{kind}.gguf"
    text, share = run([BIN / "llama-bench", "-m", path, "-t", threads, "-p", 512, "-n", 0, "-r", 5, "-o", "json"])
    rates = {ROWS[0]: json.loads(text)[0]["avg_ts"]}
    sizes = ["-c", 16384, "-b", 2048, "-ub", 512, "-npp", 128, "-ntg", 64, "-npl", ",".join(map(str, [*BATCHES, 1, 1]))]
    # The program may end before its log thread has written the last line, so the last two points are not wanted.
    text, share2 = run([BIN / "llama-batched-bench", "-m", path, *sizes, "-t", threads, "--output-format", "jsonl"])
    for line in text.splitlines():
        if line.startswith("{"):
            point = json.loads(line)
            rates.setdefault(f"decode B={point['pl']}", point["speed_tg"])
    if missing := set(ROWS) - set(rates):
        sys.exit(f"llama-batched-bench on {path} says nothing of {', '.join(sorted(missing))}\n{text[-2000:]}")
    return rates, max(share, share2)


def tandem(program, model, threads):
    """Tokens per second of each row by Tandem, and what it says about itself."""
    name = model if model == "nano" else ROOT / "benches/peers/mid/config.json"
    text, share = run([program, name, threads])
    rates, facts = {}, {}
    for line in text.splitlines():
        word, *rest = line.split("\t")
        if word == "prefill":
            rates[ROWS[0]] = float(rest[2])
        elif word == "decode":
            rates[f"decode B={rest[1]}"] = float(rest[2])
        else:
            facts[word] = rest[0]
    return rates, share, facts


def build():
    """The bench program `rows`."""
    command = ["cargo", "bench", "-q", "-p", "tandem-engine", "--bench", "rows", "--no-run", "--message-format=json"]
    text = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    built = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [m["executable"] for m in built if m.get("executable") and m["target"]["name"] == "rows"][-1]


def versions(have_llama):
    rustc = subprocess.run(["rustc", "--version"], capture_output=True, text=True).stdout.strip()
    peer = "not run: no programs in target/peers, see install-llama.sh"
    if have_llama:
        shown = subprocess.run([BIN / "llama-bench", "--version"], capture_output=True, text=True)
        words = (shown.stdout + shown.stderr).strip().splitlines()
        compiler = subprocess.run(["c++", "--version"], capture_output=True, text=True).stdout.splitlines()[0]
        peer = f"as in llama-cpp-python 0.3.36 ({next((w for w in words if 'version' in w), 'no version given')}), {compiler}"
    return [f"tandem   {rustc}, release", f"llama    {peer}"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", default="nano,mid")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--kinds", default="Q8_0,F16,F32", help="number formats of llama.cpp's weights")
    parser.add_argument("--raw", help="append every single measurement as a JSON line")
    args = parser.parse_args()
    own_session()
    program = build()
    have_llama = (BIN / "llama-batched-bench").exists()
    if have_llama:
        maker = [PEERS / "convert-venv/bin/python", ROOT / "benches/peers/make_models.py", PEERS / "llama", ROOT / "models/nano", MODELS]
        subprocess.run(maker, check=True, stdout=sys.stderr)
    print("\n".join([*describe(), *versions(have_llama)]), flush=True)
    shares = []
    for model in args.models.split(","):
        for threads in map(int, args.threads.split(",")):
            shares += compare(program, model, threads, args, have_llama)
    print(f"\nshare of all cores that other processes had during a run: median {statistics.median(shares):.2f}, max {max(shares):.2f}")


def compare(program, model, threads, args, have_llama):
    """Measures and prints one table; returns what others had of the machine."""
    sides = [("tandem", lambda: tandem(program, model, threads))]
    if have_llama:
        sides = [(k, lambda k=k: llama(model, threads, k)) for k in args.kinds.split(",")] + sides
    samples, shares, facts = {name: {row: [] for row in ROWS} for name, _ in sides}, [], {}
    for n in range(args.rounds):
        for name, measure in sides if n % 2 == 0 else sides[::-1]:
            rates, share, *about = measure()
            facts.update(about[0] if about else {})
            shares.append(share)
            for row, rate in rates.items():
                samples[name][row].append(rate)
            if args.raw:
                point = {"at": time.time(), "model": model, "threads": threads, "round": n, "side": name, "others": round(share, 3), "tokens_per_s": rates}
                with open(args.raw, "a") as raw:
                    raw.write(json.dumps(point) + "\n")
    about = f"Tandem: weights {int(facts['weight_bytes']) / 1e6:.0f} MB as computed with, KV {facts['kv']}, {facts['kernels']}"
    print(f"\n{model}, {threads} thread(s), tokens/s, median of {args.rounds} rounds [min .. max]. {about}; llama.cpp: KV F16")
    names = [name for name, _ in sides]
    head = "".join(f"{n if n == 'tandem' else 'llama ' + n:>26}" for n in names)
    print(f"{'':12}{head}" + ("   tandem / llama " + args.kinds if have_llama else ""))
    for row in ROWS:
        middle = {n: statistics.median(samples[n][row]) for n in names}
        cells = "".join(f"{middle[n]:10.0f} [{min(samples[n][row]):6.0f}..{max(samples[n][row]):6.0f}]" for n in names)
        ratios = "  ".join(f"{middle['tandem'] / middle[k]:5.2f}" for k in names if k != "tandem")
        print(f"{row:12}{cells}   {ratios}", flush=True)
    return shares


if __name__ == "__main__":
    main()
