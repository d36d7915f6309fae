"use strict";
// Shows values where the pointer or the keyboard is. Everything it shows is also in a table.
(() => {
  const tip = document.getElementById("tip");
  const show = (text, x, y) => {
    tip.textContent = text;
    tip.hidden = false;
    const r = tip.getBoundingClientRect();
    const left = x + 16 + r.width > innerWidth ? x - r.width - 12 : x + 16;
    const top = y + 16 + r.height > innerHeight ? y - r.height - 12 : y + 16;
    tip.style.left = Math.max(4, left) + "px";
    tip.style.top = Math.max(4, top) + "px";
  };
  const hide = () => { tip.hidden = true; };

  // All knobs of the mark that was pointed at last, those that tell it apart first.
  const panel = document.getElementById("picked");
  const element = (tag, text, cls) => {
    const e = document.createElement(tag);
    if (text !== undefined) e.textContent = text;
    if (cls) e.className = cls;
    return e;
  };
  const pick = (mark) => {
    const source = panel && mark.dataset.knobs && document.getElementById(mark.dataset.knobs);
    if (!source || panel.dataset.of === mark.dataset.tip) return;
    panel.dataset.of = mark.dataset.tip;
    const changed = new Map(mark.dataset.changed.split("\n").filter(Boolean).map((line) => [line.slice(0, line.indexOf("=")), line.slice(line.indexOf("=") + 1)]));
    const all = [...source.querySelectorAll("tbody tr")].map((tr) => [tr.children[0].textContent, tr.children[1].textContent]);
    const rows = [...changed].map(([name, value]) => [name, value, "own"]);
    rows.push(...all.filter(([name, value]) => !changed.has(name) && value !== "").map(([name, value]) => [name, value, ""]));
    const list = element("dl");
    for (const [name, value, cls] of rows) {
      const row = element("div", undefined, cls);
      row.append(element("dt", name), element("dd", value));
      list.append(row);
    }
    panel.replaceChildren(element("h3", mark.dataset.tip.split("\n").slice(0, 2).join(", ")), list);
    panel.hidden = false;
  };

  for (const mark of document.querySelectorAll("[data-tip]")) {
    mark.addEventListener("pointermove", (e) => {
      show(mark.dataset.tip, e.clientX, e.clientY);
      pick(mark);
    });
    mark.addEventListener("pointerleave", hide);
    mark.addEventListener("focus", () => {
      const r = mark.getBoundingClientRect();
      show(mark.dataset.tip, r.right, r.bottom);
      pick(mark);
    });
    mark.addEventListener("blur", hide);
  }

  const follow = (svg) => {
    const data = JSON.parse(svg.dataset.hover);
    const [left, top, right, bottom] = data.box;
    const keys = data.key.split("|");
    const lines = data.lines.map(([name, values]) => [name, values.split("|")]);
    const cross = document.createElementNS("http://www.w3.org/2000/svg", "path");
    cross.setAttribute("class", "cross");
    let current = 0;
    const at = (i, x, y) => {
      current = i;
      const place = data.at[i];
      cross.setAttribute("d", data.axis === "x" ? `M${place} ${top}V${bottom}` : `M${left} ${place}H${right}`);
      svg.append(cross);
      const texts = lines.map(([name, values]) => (lines.length > 1 || data.axis === "x" ? name + ": " : "") + values[i]);
      show([keys[i], ...texts].join("\n"), x, y);
    };
    const leave = () => { cross.remove(); hide(); };
    svg.addEventListener("pointermove", (e) => {
      const r = svg.getBoundingClientRect();
      const scale = 480 / r.width;
      const place = data.axis === "x" ? (e.clientX - r.left) * scale : (e.clientY - r.top) * scale;
      let best = 0;
      data.at.forEach((p, i) => { if (Math.abs(p - place) < Math.abs(data.at[best] - place)) best = i; });
      at(best, e.clientX, e.clientY);
    });
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    svg.addEventListener("keydown", (e) => {
      const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[e.key];
      if (!step || data.at.length === 0) return;
      e.preventDefault();
      const r = svg.getBoundingClientRect();
      at(Math.min(data.at.length - 1, Math.max(0, current + step)), r.left + r.width / 2, r.top + r.height / 2);
    });
  };
  document.querySelectorAll("svg[data-hover]").forEach(follow);

  // A title element would bring the browser's own tooltip on top of ours.
  for (const title of document.querySelectorAll("svg.chart > title")) {
    title.parentNode.setAttribute("aria-label", title.textContent);
    title.parentNode.removeAttribute("aria-labelledby");
    const desc = title.parentNode.querySelector("desc");
    if (desc) title.parentNode.setAttribute("aria-describedby", desc.id);
    title.remove();
  }
  addEventListener("beforeprint", () => document.querySelectorAll("details.point").forEach((d) => { d.open = true; }));
  document.documentElement.dataset.ready = document.querySelectorAll("svg.chart").length;
})();
