"use strict";
// Asks the server what the knobs would do, and draws the answer beside the frontier. Text from the server is only ever set as text.
(() => {
  const $ = (id) => document.getElementById(id);
  const NS = "http://www.w3.org/2000/svg";
  const L = 48, R = 466, T = 24, B = 292;
  let space, last;

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
    const xs = space.frontier.concat(space.cloud).map((c) => c[0]);
    const ys = space.frontier.concat(space.cloud).map((c) => c[1]);
    if (p) { xs.push(p.tokens_per_user.high); ys.push(p.tokens_per_gpu.high); }
    const sx = nice(Math.max(1, ...xs) / 5), sy = nice(Math.max(1, ...ys) / 5);
    const mx = Math.ceil(Math.max(1, ...xs) / sx) * sx, my = Math.ceil(Math.max(1, ...ys) / sy) * sy;
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

  const show = (answer) => {
    last = answer;
    const verdict = $("verdict");
    verdict.textContent = answer.verdict;
    verdict.className = answer.fits ? "good" : "bad";
    const p = answer.prediction;
    $("figures").replaceChildren(...(p ? [
      figure("tokens/s/GPU", p.tokens_per_gpu, 1), figure("tokens/s/user", p.tokens_per_user, 1), figure("ms TPOT", p.tpot_s, 1e3),
      figure("s TTFT, median", p.ttft_median_s, 1), figure("s TTFT, p99", p.ttft_p99_s, 1), figure("GPUs", { value: answer.gpus }, 1),
    ] : []));
    $("why").textContent = answer.notes.join("\n");
    const table = $("memory"), rows = answer.memory;
    table.replaceChildren();
    if (rows.length) {
      const head = html("tr");
      ["memory of a rank", "device", "weights", "workspace", "KV cache", "left over", "sequences", "batch"].forEach((t) => head.append(html("th", t)));
      const thead = html("thead"), tbody = html("tbody");
      thead.append(head);
      rows.forEach((cells) => { const tr = html("tr"); cells.forEach((c) => tr.append(html("td", c))); tbody.append(tr); });
      table.append(thead, tbody);
    }
    $("command").textContent = answer.command;
    draw();
    document.documentElement.dataset.shown = String(++shown);
  };

  // One question at a time; while it is out only the latest wish is kept.
  let shown = 0, busy = false, wish = null;
  const ask = async () => {
    wish = Object.fromEntries([...document.querySelectorAll(".knob input")].map((s) => [s.name, space.axes[s.dataset.axis].values[s.value]]));
    if (busy) return;
    busy = true;
    try {
      while (wish) {
        const knobs = wish;
        wish = null;
        const reply = await fetch("api/predict", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ knobs }) });
        const answer = await reply.json();
        show(reply.ok ? answer : { fits: false, verdict: answer.error, prediction: null, notes: [], memory: [], command: "", gpus: 0 });
      }
    } catch {
      $("verdict").textContent = "The server has gone: start tandem explore --serve again.";
      $("verdict").className = "bad";
    }
    busy = false;
  };

  const start = async () => {
    space = await (await fetch("api/space")).json();
    $("recipe").textContent = space.recipe;
    space.axes.forEach((axis, i) => {
      const box = html("div", undefined, "knob"), label = html("label", axis.name), out = html("output", axis.values[axis.at]);
      const slider = html("input");
      Object.assign(slider, { type: "range", min: 0, max: axis.values.length - 1, step: 1, value: axis.at, name: axis.name, id: "k" + i });
      slider.dataset.axis = i;
      slider.title = axis.doc;
      slider.setAttribute("aria-valuetext", axis.values[axis.at]);
      label.htmlFor = slider.id;
      slider.addEventListener("input", () => {
        out.textContent = axis.values[slider.value];
        slider.setAttribute("aria-valuetext", axis.values[slider.value]);
        ask();
      });
      box.append(label, out, slider);
      $("controls").append(box);
    });
    await ask();
  };
  start();
})();
