#!/usr/bin/env python3
"""Small random DeepSeek-V2/V3 checkpoints of odd shapes, and what a numpy implementation computes with them.

    pip install numpy
    python generate.py            # rewrites the checkpoints beside this file (a few seconds)

Each variant differs from the others in what an engine could get wrong without noticing on one shape: head counts,
group counts, no low-rank query, plain rotary embedding, tied embeddings, tied routers, FP8 blocks that divide
nothing. Arithmetic is float64 on the stored numbers, so that ties and near ties are decided by the semantics and
not by rounding; expanded attention over the whole sequence, recomputed for each token, with no cache.

Writes NAME/config.json, NAME/model.safetensors (or shards with an index), NAME/golden.json (prompts and greedy
tokens) and NAME/golden.safetensors (logits of each prompt's last token and of the last step).
"""
import json, math, os, struct
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
N_OUT = 24


# ---------------------------------------------------------------- number formats
def e4m3_values():
    values = np.zeros(256)
    for b in range(256):
        e, m = (b >> 3) & 15, b & 7
        v = math.ldexp(m / 8, -6) if e == 0 else math.ldexp(1 + m / 8, e - 7)
        values[b] = (math.nan if b & 127 == 127 else v) * (-1 if b & 128 else 1)
    return values


E4M3 = e4m3_values()
E4M3_SORTED = np.argsort(np.where(np.isnan(E4M3), np.inf, E4M3), kind="stable")[:254]


def to_e4m3(x):
    """Codes of the nearest values (which of two equally near ones does not matter here)."""
    values = E4M3[E4M3_SORTED]
    i = np.clip(np.searchsorted(values, x), 1, len(values) - 1)
    i -= np.abs(x - values[i - 1]) < np.abs(x - values[i])
    return E4M3_SORTED[i].astype(np.uint8)


def to_bf16(x):
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(b):
    return (b.astype(np.uint32) << 16).view(np.float32)


class Stored:
    """A tensor as the file holds it, and the numbers that this means."""

    def __init__(self, dtype, raw, meaning):
        self.dtype, self.raw, self.meaning = dtype, raw, meaning.astype(np.float64)


def store(x, dtype):
    if dtype == "F32":
        raw = x.astype(np.float32)
        return Stored(dtype, raw, raw)
    if dtype == "F16":
        raw = x.astype(np.float16)
        return Stored(dtype, raw, raw)
    raw = to_bf16(x)
    return Stored("BF16", raw, from_bf16(raw))


def store_fp8(x, block):
    (rows, cols), (br, bc) = x.shape, block
    codes = np.empty(x.shape, np.uint8)
    scales = np.empty((-(-rows // br), -(-cols // bc)), np.float32)
    meaning = np.empty(x.shape)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            part = (slice(i * br, (i + 1) * br), slice(j * bc, (j + 1) * bc))
            scales[i, j] = np.abs(x[part]).max() / 448
            codes[part] = to_e4m3(x[part] / scales[i, j])
            meaning[part] = E4M3[codes[part]] * np.float64(scales[i, j])
    return Stored("F8_E4M3", codes, meaning), Stored("F32", scales, scales)


def write_safetensors(path, tensors):
    head, offset = {}, 0
    for name, t in tensors.items():
        head[name] = dict(dtype=t.dtype, shape=list(t.raw.shape), data_offsets=[offset, offset + t.raw.nbytes])
        offset += t.raw.nbytes
    text = json.dumps(head).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for t in tensors.values():
            f.write(t.raw.tobytes())


# ---------------------------------------------------------------- weights
def weights(c, rng, dtype):
    """All tensors by name; projections quantised when the config says so."""
    out = {}
    H, nh, L = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"]
    qk, v = c["qk_nope_head_dim"] + c["qk_rope_head_dim"], c["v_head_dim"]
    block = c.get("quantization_config", {}).get("weight_block_size")

    def plain(name, *shape, sigma=None, mean=0.0, kind=None):
        out[name] = store(mean + (sigma or shape[-1] ** -0.5) * rng.standard_normal(shape), kind or dtype)

    def proj(name, rows, cols):
        if block is None:
            return plain(name, rows, cols)
        # A few rows and columns are much larger, so that a scale of the wrong block shows.
        x = rng.standard_normal((rows, cols)) * cols ** -0.5 * np.exp(rng.standard_normal((rows, 1)) * 0.3)
        out[name], out[name + "_scale_inv"] = store_fp8(x * np.exp(rng.standard_normal((1, cols)) * 0.3), block)

    def norm(name, n):
        plain(name, n, sigma=0.2, mean=1.0)

    def mlp(p, width):
        proj(p + "gate_proj.weight", width, H)
        proj(p + "up_proj.weight", width, H)
        proj(p + "down_proj.weight", H, width)

    plain("model.embed_tokens.weight", c["vocab_size"], H, sigma=1.0)
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        a = p + "self_attn."
        norm(p + "input_layernorm.weight", H)
        norm(p + "post_attention_layernorm.weight", H)
        if c.get("q_lora_rank") is None:
            proj(a + "q_proj.weight", nh * qk, H)
        else:
            proj(a + "q_a_proj.weight", c["q_lora_rank"], H)
            norm(a + "q_a_layernorm.weight", c["q_lora_rank"])
            proj(a + "q_b_proj.weight", nh * qk, c["q_lora_rank"])
        proj(a + "kv_a_proj_with_mqa.weight", L + c["qk_rope_head_dim"], H)
        norm(a + "kv_a_layernorm.weight", L)
        proj(a + "kv_b_proj.weight", nh * (c["qk_nope_head_dim"] + v), L)
        proj(a + "o_proj.weight", H, nh * v)
        if not is_moe(c, i):
            mlp(p + "mlp.", c["intermediate_size"])
            continue
        E = c["n_routed_experts"]
        plain(p + "mlp.gate.weight", E, H)
        if c["topk_method"] == "noaux_tc":
            plain(p + "mlp.gate.e_score_correction_bias", E, sigma=0.1, kind="F32")
        if c.get("n_shared_experts"):
            mlp(p + "mlp.shared_experts.", c["moe_intermediate_size"] * c["n_shared_experts"])
        for e in range(E):
            mlp(p + f"mlp.experts.{e}.", c["moe_intermediate_size"])
    norm("model.norm.weight", H)
    if not c["tie_word_embeddings"]:
        plain("lm_head.weight", c["vocab_size"], H)
    return out


def is_moe(c, i):
    return c.get("n_routed_experts") is not None and i >= c["first_k_dense_replace"] and i % c["moe_layer_freq"] == 0


def tie_routers(c, w):
    """Pairs of experts get the same router row and bias: choices tie and the lower index must win."""
    for name, t in w.items():
        if name.endswith("mlp.gate.weight") or name.endswith("e_score_correction_bias"):
            t.raw[1::2] = t.raw[0::2]
            t.meaning[1::2] = t.meaning[0::2]


# ---------------------------------------------------------------- model
def rms(x, w, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class Model:
    def __init__(self, c, tensors):
        self.c = c
        self.w = {k: t.meaning for k, t in tensors.items() if not k.endswith("_scale_inv")}
        D, base = c["qk_rope_head_dim"], c["rope_theta"]
        inv = base ** (-np.arange(0, D, 2) / D)
        self.cos_factor, mscale = 1.0, 1.0
        r = c.get("rope_scaling")
        if r:
            F, M = r["factor"], r["original_max_position_embeddings"]
            dim_of = lambda rot: D * math.log(M / (rot * 2 * math.pi)) / (2 * math.log(base))
            lo, hi = max(math.floor(dim_of(r["beta_fast"])), 0), min(math.ceil(dim_of(r["beta_slow"])), D - 1)
            ramp = np.clip((np.arange(D // 2) - lo) / max(hi - lo, 0.001), 0, 1)
            inv = inv * (1 - ramp) + inv / F * ramp
            term = lambda m: 0.1 * m * math.log(F) + 1 if F > 1 else 1.0
            self.cos_factor, mscale = term(r["mscale"]) / term(r["mscale_all_dim"]), term(r["mscale_all_dim"])
        self.inv = inv
        self.scale = (c["qk_nope_head_dim"] + D) ** -0.5 * mscale ** 2

    def rope(self, x):
        angle = np.arange(x.shape[-2])[:, None] * self.inv
        co, si = np.cos(angle) * self.cos_factor, np.sin(angle) * self.cos_factor
        even, odd = x[..., 0::2], x[..., 1::2]
        return np.concatenate([even * co - odd * si, odd * co + even * si], -1)

    def attention(self, p, x):
        c, w = self.c, self.w
        nh, dn, dr, dv, L = (c[k] for k in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank"))
        T = len(x)
        if p + "q_proj.weight" in w:
            q = x @ w[p + "q_proj.weight"].T
        else:
            q = rms(x @ w[p + "q_a_proj.weight"].T, w[p + "q_a_layernorm.weight"], 1e-6) @ w[p + "q_b_proj.weight"].T
        q = q.reshape(T, nh, dn + dr).transpose(1, 0, 2)
        kv = x @ w[p + "kv_a_proj_with_mqa.weight"].T
        latent, key = rms(kv[:, :L], w[p + "kv_a_layernorm.weight"], 1e-6), self.rope(kv[:, L:])
        kvb = (latent @ w[p + "kv_b_proj.weight"].T).reshape(T, nh, dn + dv).transpose(1, 0, 2)
        scores = (q[..., :dn] @ kvb[..., :dn].transpose(0, 2, 1) + self.rope(q[..., dn:]) @ key.T) * self.scale
        out = softmax(np.where(np.tri(T, dtype=bool), scores, -np.inf)) @ kvb[..., dn:]
        return out.transpose(1, 0, 2).reshape(T, nh * dv) @ w[p + "o_proj.weight"].T

    def mlp(self, p, x):
        g = x @ self.w[p + "gate_proj.weight"].T
        return (g / (1 + np.exp(-g)) * (x @ self.w[p + "up_proj.weight"].T)) @ self.w[p + "down_proj.weight"].T

    def route(self, p, x):
        c = self.c
        E, G, kept, k = c["n_routed_experts"], c["n_group"], c["topk_group"], c["num_experts_per_tok"]
        logits = x @ self.w[p + "gate.weight"].T
        scores = 1 / (1 + np.exp(-logits)) if c["scoring_func"] == "sigmoid" else softmax(logits)
        choice = scores
        if c["topk_method"] == "noaux_tc":
            choice = scores + self.w[p + "gate.e_score_correction_bias"]
        if c["topk_method"] != "greedy":
            groups = choice.reshape(-1, G, E // G)
            best = np.sort(groups, -1)
            rank = best[..., -2:].sum(-1) if c["topk_method"] == "noaux_tc" else best[..., -1]
            keep = np.zeros_like(rank, bool)
            np.put_along_axis(keep, np.argsort(-rank, -1, kind="stable")[:, :kept], True, -1)
            choice = np.where(keep.repeat(E // G, -1), choice, -np.inf)
        ids = np.argsort(-choice, -1, kind="stable")[:, :k]
        weight = np.take_along_axis(scores, ids, -1)
        if c["norm_topk_prob"]:
            weight = weight / (weight.sum(-1, keepdims=True) + 1e-20)
        return ids, weight * c["routed_scaling_factor"]

    def moe(self, p, x):
        ids, weight = self.route(p, x)
        y = self.mlp(p + "shared_experts.", x) if self.c.get("n_shared_experts") else np.zeros_like(x)
        for e in np.unique(ids):
            t, j = np.nonzero(ids == e)
            y[t] += self.mlp(p + f"experts.{e}.", x[t]) * weight[t, j][:, None]
        return y

    def logits(self, ids):
        """Logits of the last token."""
        c, eps = self.c, self.c["rms_norm_eps"]
        x = self.w["model.embed_tokens.weight"][ids]
        for i in range(c["num_hidden_layers"]):
            p = f"model.layers.{i}."
            x = x + self.attention(p + "self_attn.", rms(x, self.w[p + "input_layernorm.weight"], eps))
            h = rms(x, self.w[p + "post_attention_layernorm.weight"], eps)
            x = x + (self.moe(p + "mlp.", h) if is_moe(c, i) else self.mlp(p + "mlp.", h))
        head = self.w["model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"]
        return rms(x[-1], self.w["model.norm.weight"], eps) @ head.T


# ---------------------------------------------------------------- variants
BASE = dict(
    model_type="deepseek_v3", vocab_size=200, hidden_size=96, intermediate_size=160, moe_intermediate_size=24,
    num_hidden_layers=3, num_attention_heads=4, n_shared_experts=1, n_routed_experts=12, num_experts_per_tok=3,
    n_group=3, topk_group=2, routed_scaling_factor=2.5, norm_topk_prob=True, scoring_func="sigmoid", topk_method="noaux_tc",
    first_k_dense_replace=1, moe_layer_freq=1, q_lora_rank=40, kv_lora_rank=32, qk_nope_head_dim=24, qk_rope_head_dim=8,
    v_head_dim=20, rms_norm_eps=1e-6, max_position_embeddings=4096, rope_theta=10000.0, tie_word_embeddings=False)
YARN = dict(type="yarn", factor=16, original_max_position_embeddings=64, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=0.7)

VARIANTS = {
    # V2-Lite: one query projection, softmax scores, no groups, two shared experts.
    "v2-lite": (dict(BASE, model_type="deepseek_v2", q_lora_rank=None, scoring_func="softmax", topk_method="greedy", n_group=1, topk_group=1,
                     norm_topk_prob=False, routed_scaling_factor=1.0, n_shared_experts=2, num_attention_heads=5, rope_scaling=dict(YARN, mscale=0.707, mscale_all_dim=0.707)), "BF16", 1),
    # V2: group-limited greedy, a cosine factor other than 1, another epsilon and base; shards with an index; F16.
    "v2-groups": (dict(BASE, model_type="deepseek_v2", scoring_func="softmax", topk_method="group_limited_greedy", n_group=4, topk_group=2, norm_topk_prob=False,
                       routed_scaling_factor=16.0, n_shared_experts=3, rope_scaling=YARN, rms_norm_eps=1e-5, rope_theta=5000.0, v_head_dim=32), "F16", 2),
    # Plain rotary embedding, tied embeddings, every second layer with experts, no shared expert, one head.
    "tied-plain": (dict(BASE, rope_scaling=None, tie_word_embeddings=True, moe_layer_freq=2, first_k_dense_replace=0, num_hidden_layers=4,
                        n_shared_experts=None, num_attention_heads=1, qk_nope_head_dim=40, v_head_dim=48, rms_norm_eps=1e-3), "F32", 1),
    # Experts in pairs with equal router rows and biases: every choice ties.
    "router-ties": (dict(BASE, n_routed_experts=16, n_group=8, topk_group=3, num_experts_per_tok=5, rope_scaling=YARN, num_attention_heads=3), "BF16", 1),
    # FP8 with dimensions that no block divides: 128 x 128 blocks are partial everywhere.
    "fp8-partial": (dict(BASE, hidden_size=136, intermediate_size=200, moe_intermediate_size=72, q_lora_rank=72, kv_lora_rank=48, num_attention_heads=7,
                         qk_nope_head_dim=20, qk_rope_head_dim=12, v_head_dim=28, num_hidden_layers=2, n_routed_experts=8, n_group=2, topk_group=1, rope_scaling=YARN,
                         quantization_config=dict(quant_method="fp8", weight_block_size=[128, 128])), "BF16", 1),
    # FP8 in blocks that cut across panels of any power of two; V2-Lite's single query projection.
    "fp8-blocks": (dict(BASE, q_lora_rank=None, num_attention_heads=6, num_hidden_layers=2, n_routed_experts=6, n_group=1, topk_group=1, rope_scaling=None,
                        quantization_config=dict(quant_method="fp8", weight_block_size=[48, 20])), "BF16", 1),
}


def write(name, seed):
    config, dtype, n_files = VARIANTS[name]
    rng = np.random.default_rng(seed)
    tensors = weights(config, rng, dtype)
    if name == "router-ties":
        tie_routers(config, tensors)
    out = os.path.join(HERE, name)
    os.makedirs(out, exist_ok=True)
    json.dump(config, open(f"{out}/config.json", "w"), indent=1)
    names = list(tensors)
    if n_files == 1:
        write_safetensors(f"{out}/model.safetensors", tensors)
    else:
        of = {t: f"model-{i * n_files // len(names) + 1:05}-of-{n_files:05}.safetensors" for i, t in enumerate(names)}
        for file in sorted(set(of.values())):
            write_safetensors(f"{out}/{file}", {t: tensors[t] for t in names if of[t] == file})
        json.dump(dict(metadata={}, weight_map=of), open(f"{out}/model.safetensors.index.json", "w"), indent=1)
    model, golden, logits, smallest = Model(config, tensors), {}, {}, math.inf
    for prompt, n in (("short", 9), ("long", 75)):
        ids = [int(t) for t in rng.integers(0, config["vocab_size"], n)]
        greedy = []
        while len(greedy) < N_OUT:
            row = model.logits(ids + greedy)
            if not greedy:
                logits[f"{prompt}.logits_first"] = store(row, "F32")
            top = np.sort(row)[-2:]
            smallest = min(smallest, (top[1] - top[0]) / np.abs(row).max())
            greedy.append(int(row.argmax()))
        logits[f"{prompt}.logits_last"] = store(row, "F32")
        golden[prompt] = dict(prompt=ids, greedy=greedy)
    json.dump(golden, open(f"{out}/golden.json", "w"), separators=(",", ":"))
    write_safetensors(f"{out}/golden.safetensors", logits)
    size = sum(os.path.getsize(f"{out}/{f}") for f in os.listdir(out))
    print(f"{name:12} {size / 1e6:.2f} MB, smallest relative top-2 gap {smallest:.1e}")
    assert smallest > 1e-3, "choose another seed: greedy tokens hang on rounding"
    assert size < 1.5e6


if __name__ == "__main__":
    for i, name in enumerate(VARIANTS):
        write(name, 100 + i)
