"""Makes the GGUF files that llama.py gives to llama.cpp: `nano` (this repository's model, dequantised by the converter)
and `mid` (mid/config.json with random weights), each in F32, F16 and Q8_0.

Run by llama.py with the Python of target/peers/convert-venv: make_models.py LLAMA_DIR NANO_DIR OUT_DIR.
It is llama.cpp's own converter with one step replaced: no vocabulary is written, because benchmarks feed token ids and
the converter knows byte-level tokenizers only by hash. The weights' values hardly matter for speed; their shapes do.
"""

import json
import math
import os
import pathlib
import shutil
import subprocess
import sys

import torch
from safetensors.torch import save_file

MID = pathlib.Path(__file__).parent / "mid" / "config.json"


def random_weights(c):
    """Names and tensors of a checkpoint of config `c`: unit-gain projections, norms of one, a small routing bias."""
    generator = torch.Generator().manual_seed(1)
    out = {}

    def matrix(name, rows, cols):
        out[name + ".weight"] = torch.randn(rows, cols, generator=generator) / math.sqrt(cols)

    def norm(name, n):
        out[name + ".weight"] = torch.ones(n)

    def mlp(prefix, width):
        matrix(prefix + ".gate_proj", width, c["hidden_size"])
        matrix(prefix + ".up_proj", width, c["hidden_size"])
        matrix(prefix + ".down_proj", c["hidden_size"], width)

    d, heads, rope = c["hidden_size"], c["num_attention_heads"], c["qk_rope_head_dim"]
    nope, v, ranks = c["qk_nope_head_dim"], c["v_head_dim"], (c["q_lora_rank"], c["kv_lora_rank"])
    out["model.embed_tokens.weight"] = torch.randn(c["vocab_size"], d, generator=generator)
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        norm(layer + ".input_layernorm", d)
        norm(layer + ".post_attention_layernorm", d)
        attention = layer + ".self_attn"
        matrix(attention + ".q_a_proj", ranks[0], d)
        norm(attention + ".q_a_layernorm", ranks[0])
        matrix(attention + ".q_b_proj", heads * (nope + rope), ranks[0])
        matrix(attention + ".kv_a_proj_with_mqa", ranks[1] + rope, d)
        norm(attention + ".kv_a_layernorm", ranks[1])
        matrix(attention + ".kv_b_proj", heads * (nope + v), ranks[1])
        matrix(attention + ".o_proj", d, heads * v)
        if i < c["first_k_dense_replace"]:
            mlp(layer + ".mlp", c["intermediate_size"])
            continue
        matrix(layer + ".mlp.gate", c["n_routed_experts"], d)
        out[layer + ".mlp.gate.e_score_correction_bias"] = 0.1 * torch.randn(c["n_routed_experts"], generator=generator)
        mlp(layer + ".mlp.shared_experts", c["moe_intermediate_size"] * c["n_shared_experts"])
        for e in range(c["n_routed_experts"]):
            mlp(f"{layer}.mlp.experts.{e}", c["moe_intermediate_size"])
    norm("model.norm", d)
    matrix("lm_head", c["vocab_size"], d)
    return out


def convert(llama, model, out):
    """HF directory `model` -> F32 GGUF `out` by llama.cpp's converter without its vocabulary step."""
    code = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/gguf-py']\n"
        "from conversion.deepseek import DeepseekV2Model\n"
        "DeepseekV2Model.set_vocab = lambda self: self._set_vocab_none()\n"
        "import convert_hf_to_gguf as c\n"
        "sys.argv = ['convert_hf_to_gguf', sys.argv[2], '--outtype', 'f32', '--outfile', sys.argv[3]]\n"
        "c.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, llama, model, out], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"the converter ended with {done.returncode}\n{done.stderr[-2000:]}")


def main():
    llama, nano, out = (pathlib.Path(p).resolve() for p in sys.argv[1:4])
    out.mkdir(parents=True, exist_ok=True)
    mid = out / "mid"
    mid.mkdir(exist_ok=True)
    config = json.loads(MID.read_text())
    # Tandem's random weights are FP8 with block scales; these are F32, so the converter must not look for scales.
    del config["quantization_config"]
    (mid / "config.json").write_text(json.dumps(config))
    if not (mid / "model.safetensors").exists():
        weights = random_weights(config)
        print(f"mid: {sum(t.numel() for t in weights.values()) / 1e6:.1f} M parameters")
        save_file(weights, mid / "model.safetensors", {"format": "pt"})
    # The converter wants config and weights alone: what else is in the directory it would try to read.
    plain = out / "nano"
    plain.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(nano / name, plain / name)
    for name in ("nano", "mid"):
        f32 = out / f"{name}-F32.gguf"
        if not f32.exists():
            convert(str(llama), str(out / name), str(out / f"{name}.part"))
            os.replace(out / f"{name}.part", f32)
        for kind in ("F16", "Q8_0"):
            target = out / f"{name}-{kind}.gguf"
            if not target.exists():
                subprocess.run([llama / "build/bin/llama-quantize", f32, target, kind], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
