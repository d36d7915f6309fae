"use strict";
// Asks the server what the knobs would do, and draws the answer beside the frontier. Text from the server is only ever set as text.
// The address holds the knobs that were moved and the points that were kept, so a link shows the same page again.
(() => {
  const $ = (id) => document.getElementById(id);
  const NS = "http://www.w3.org/2000/svg";
  const L = 48, R = 466, T = 24, B = 292;
  const MAX_KEPT = 12;
  let space, last;
  let kept = [];

  const make = (tag, attributes, text) => {
    const e = document.createElementNS(NS, tag);
    for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
    if (text !== undefined) e.textContent = text;
    return e;
  };
  const html = (tag, text, cls) => {
    const e = document.createElement(tag);
    if (text !== undefined) e.textContent = text;
    if (cls) e.className = cls;
    return e;
  };
  const nice = (x) => {
    const power = 10 ** Math.floor(Math.log10(x));
    return [1, 2, 2.5, 5, 10].map((f) => f * power).find((f) => f >= x * 0.999);
  };
  const short = (x) => (Number.isInteger(x) || x >= 100 ? Math.round(x) : x >= 10 ? x.toFixed(1) : x.toFixed(2)).toString();

  const draw = () => {
    const p = last && last.prediction;
    const points = kept.map((k) => k.answer.prediction).filter(Boolean);
    const corners = space.frontier.concat(space.cloud, points.map((q) => [q.tokens_per_user.value, q.tokens_per_gpu.value]));
    const xs = corners.map((c) => c[0]), ys = corners.map((c) => c[1]);
    if (p) { xs.push(p.tokens_per_user.high); ys.push(p.tokens_per_gpu.high); }
    const most = (values) => values.reduce((a, b) => Math.max(a, b), 1);
    const sx = nice(most(xs) / 5), sy = nice(most(ys) / 5);
    const mx = Math.ceil(most(xs) / sx) * sx, my = Math.ceil(most(ys) / sy) * sy;
    const X = (v) => L + (v / mx) * (R - L), Y = (v) => B - (v / my) * (B - T);
    const svg = $("chart");
    svg.replaceChildren();
    for (let v = 0; v <= my * 1.001; v += sy) {
      svg.append(make("path", { class: "grid", d: `M${L} ${Y(v)}H${R}` }), make("text", { x: L - 5, y: Y(v) + 3.5, "text-anchor": "end" }, +v.toPrecision(6)));
    }
    for (let v = 0; v <= mx * 1.001; v += sx) svg.append(make("text", { x: X(v), y: B + 16, "text-anchor": "middle" }, +v.toPrecision(6)));
    svg.append(make("path", { class: "axis", d: `M${L} ${B}H${R}` }), make("text", { x: 2, y: 12 }, "tokens/s/GPU"));
    svg.append(make("text", { x: R, y: B + 32, "text-anchor": "end" }, "tokens/s/user"));
    svg.append(make("path", { class: "cloud", d: space.cloud.map(([x, y]) => `M${X(x).toFixed(1)} ${Y(y).toFixed(1)}h2v2h-2z`).join("") }));
    if (space.frontier.length) {
      const stairs = space.frontier.map(([x, y]) => `V${Y(y)}H${X(x)}`).join("");
      svg.append(make("path", { class: "frontier", d: `M${L} ${Y(space.frontier[0][1])}${stairs}V${B}` }));
    }
    for (const [x, y] of space.frontier) {
      const g = make("g", { class: "c0" });
      g.append(make("circle", { class: "dot", cx: X(x), cy: Y(y), r: 4 }));
      svg.append(g);
    }
    kept.forEach((k, i) => {
      const q = k.answer.prediction;
      if (!q) return;
      const g = make("g", { class: "c2 kept" }), x = X(q.tokens_per_user.value), y = Y(q.tokens_per_gpu.value);
      g.append(make("path", { class: "dot", d: `M${x} ${y - 7}l6 11h-12z` }), make("text", { x: x + 8, y: y - 5 }, String(i + 1)));
      svg.append(g);
    });
    if (p) {
      const u = p.tokens_per_user, t = p.tokens_per_gpu, g = make("g", { class: "c1", id: "here" });
      g.append(make("path", { class: "range", d: `M${X(u.low)} ${Y(t.value)}H${X(u.high)}M${X(u.value)} ${Y(t.low)}V${Y(t.high)}` }));
      g.append(make("rect", { class: "dot", x: X(u.value) - 6, y: Y(t.value) - 6, width: 12, height: 12 }));
      svg.append(g);
    }
  };

  const figure = (label, i, scale) => {
    const div = html("div"), dd = html("dd", short(i.value * scale)), dt = html("dt", label);
    if (i.low !== undefined) dd.append(html("span", ` ${short(i.low * scale)} to ${short(i.high * scale)}`, "of"));
    div.append(dd, dt);
    return div;
  };

  const head = (texts) => {
    const thead = html("thead"), tr = html("tr");
    texts.forEach((t) => tr.append(html("th", t)));
    thead.append(tr);
    return thead;
  };

  // The kept points beside each other: figures, the change against the present one, and the knobs in which they differ from it.
  const compare = () => {
    $("kept").hidden = kept.length === 0;
    $("keep").disabled = kept.length >= MAX_KEPT || !last;
    const body = html("tbody"), now = last && last.prediction;
    kept.forEach((k, i) => {
      const tr = html("tr"), p = k.answer.prediction;
      tr.append(html("th", String(i + 1)));
      const buttons = html("td"), back = html("button", "Show"), drop = html("button", "Remove");
      back.addEventListener("click", () => { set(k.knobs); ask(); });
      drop.addEventListener("click", () => { kept.splice(i, 1); remember(); compare(); draw(); });
      buttons.append(back, drop);
      tr.append(buttons);
      const cells = p ? [[p.tokens_per_gpu, 1, "tokens_per_gpu"], [p.tokens_per_user, 1, "tokens_per_user"], [p.tpot_s, 1e3, "tpot_s"], [p.ttft_median_s, 1, "ttft_median_s"]] : [];
      for (const [value, scale, name] of cells) {
        const change = now && now[name].value > 0 ? 100 * (value.value / now[name].value - 1) : 0;
        tr.append(html("td", short(value.value * scale) + (Math.abs(change) >= 0.5 ? ` (${change > 0 ? "+" : "−"}${short(Math.abs(change))} %)` : "")));
      }
      if (!p) {
        const td = html("td", k.answer.fits ? "not predicted" : "does not work");
        td.colSpan = 4;
        tr.append(td);
      }
      tr.append(html("td", String(k.answer.gpus)));
      const names = [...new Set([...Object.keys(k.knobs), ...Object.keys(moved())])];
      const all = { ...values(), ...moved() };
      const theirs = (name) => (name in k.knobs ? k.knobs[name] : initial(name));
      const differs = names.filter((name) => theirs(name) !== all[name]).map((name) => `${name}=${theirs(name)}`);
      tr.append(html("td", differs.length ? differs.join(" ") : "as now", "knobs"));
      body.append(tr);
    });
    $("kept-table").replaceChildren(head(["", "", "tokens/s/GPU", "tokens/s/user", "ms TPOT", "s TTFT", "GPUs", "knobs that differ from now"]), body);
  };

  const show = (answer) => {
    last = answer;
    const verdict = $("verdict");
    verdict.textContent = answer.verdict + (answer.bound ? `; throughput is limited by ${answer.bound}` : "");
    verdict.className = answer.fits ? "good" : "bad";
    document.querySelectorAll(".knob").forEach((box) => box.classList.toggle("binding", !answer.fits && box.dataset.name === answer.knob));
    if (!answer.fits && document.querySelector("#folded .binding")) $("folded").open = true;
    const p = answer.prediction;
    $("figures").replaceChildren(...(p ? [
      figure("tokens/s/GPU", p.tokens_per_gpu, 1), figure("tokens/s/user", p.tokens_per_user, 1), figure("ms TPOT", p.tpot_s, 1e3),
      figure("s TTFT, median", p.ttft_median_s, 1), figure("s TTFT, p99", p.ttft_p99_s, 1), figure("GPUs", { value: answer.gpus }, 1),
    ] : []));
    $("why").textContent = answer.notes.join("\n");
    const table = $("memory"), rows = answer.memory;
    table.replaceChildren();
    $("ranks").hidden = rows.length === 0;
    if (rows.length) {
      const tbody = html("tbody");
      rows.forEach((cells) => { const tr = html("tr"); cells.forEach((c) => tr.append(html("td", c))); tbody.append(tr); });
      table.append(head(["", "device", "weights", "workspace", "KV cache", "left over", "sequences it holds", "batch"]), tbody);
    }
    $("command").textContent = answer.command;
    compare();
    draw();
    document.documentElement.dataset.shown = String(++shown);
  };

  const sliders = () => [...document.querySelectorAll(".knob input")];
  const axis = (slider) => space.axes[slider.dataset.axis];
  const initial = (name) => { const a = space.axes.find((x) => x.name === name); return a ? a.values[a.at] : undefined; };
  const values = () => Object.fromEntries(sliders().map((s) => [s.name, axis(s).values[s.value]]));
  // Axes of the space, and what else is not as the recipe has it: knobs that follow from others go on following.
  const moved = () => Object.fromEntries(sliders().filter((s) => axis(s).is_axis || Number(s.value) !== axis(s).at).map((s) => [s.name, axis(s).values[s.value]]));

  const label = (slider) => {
    const value = axis(slider).values[slider.value], box = slider.closest(".knob");
    box.querySelector("output").textContent = value;
    box.classList.toggle("moved", Number(slider.value) !== axis(slider).at);
    slider.setAttribute("aria-valuetext", value);
  };

  // Puts the sliders where these knobs are, all others back; a value that no slider has is added to its end.
  const set = (knobs) => {
    for (const slider of sliders()) {
      const a = axis(slider), wanted = knobs[slider.name];
      let at = wanted === undefined ? a.at : a.values.indexOf(wanted);
      if (at < 0) {
        at = a.values.push(wanted) - 1;
        slider.max = at;
      }
      slider.value = at;
      label(slider);
    }
  };

  const written = (knobs) => Object.entries(knobs).map(([k, v]) => `${encodeURIComponent(k)}=${encodeURIComponent(v)}`).join("&");
  const read = (text) => Object.fromEntries(text.split("&").filter((pair) => pair.includes("=")).map((pair) => pair.split("=", 2).map(decodeURIComponent)));
  const remember = () => {
    const parts = [moved(), ...kept.map((k) => k.knobs)].map(written);
    history.replaceState(null, "", "#" + parts.join(";"));
  };

  const question = async (knobs) => {
    const reply = await fetch("api/predict", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ knobs }) });
    const answer = await reply.json();
    return reply.ok ? answer : { fits: false, verdict: answer.error, prediction: null, notes: [], memory: [], command: "", gpus: 0 };
  };

  // One question at a time; while it is out only the latest wish is kept.
  let shown = 0, busy = false, wish = null;
  const ask = async () => {
    wish = moved();
    if (busy) return;
    busy = true;
    try {
      while (wish) {
        const knobs = wish;
        wish = null;
        show(await question(knobs));
        remember();
      }
    } catch {
      $("verdict").textContent = "The server has gone: start tandem explore --serve again.";
      $("verdict").className = "bad";
    }
    busy = false;
  };

  const copy = async (text, what) => {
    let note = `${what} copied`;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      note = what === "Link" ? "The link is the address of this page" : "Mark the command below to copy it";
    }
    $("copied").textContent = note;
  };

  const start = async () => {
    space = await (await fetch("api/space")).json();
    $("recipe").textContent = space.recipe;
    space.axes.forEach((a, i) => {
      const box = html("div", undefined, "knob"), name = html("label", a.name), slider = html("input");
      box.dataset.name = a.name;
      Object.assign(slider, { type: "range", min: 0, max: a.values.length - 1, step: 1, value: a.at, name: a.name, id: "k" + i });
      slider.dataset.axis = i;
      slider.title = a.doc;
      name.title = a.doc;
      name.htmlFor = slider.id;
      slider.addEventListener("input", () => { label(slider); ask(); });
      box.append(name, html("output"), slider);
      $(a.is_folded ? "folded" : "sliders").append(box);
      label(slider);
    });
    $("keep").addEventListener("click", () => {
      if (!last || kept.length >= MAX_KEPT) return;
      kept.push({ knobs: moved(), answer: last });
      remember();
      compare();
      draw();
    });
    $("reset").addEventListener("click", () => { set({}); ask(); });
    $("copy-link").addEventListener("click", () => copy(location.href, "Link"));
    $("copy-command").addEventListener("click", () => copy($("command").textContent, "Command"));
    // A link that was made before: its knobs, then the points that were kept.
    const [first, ...others] = location.hash.slice(1).split(";").map(read);
    if (Object.keys(first).length) set(first);
    for (const knobs of others.slice(0, MAX_KEPT)) kept.push({ knobs, answer: await question(knobs) });
    await ask();
  };
  start();
})();
