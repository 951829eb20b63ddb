// Reads out the values under the pointer, and under the arrow keys in a picture that has the focus.
"use strict";
const NAMESPACE = "http://www.w3.org/2000/svg";

function nearest(steps, wanted) {
  let low = 0, high = steps.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < wanted) low = middle + 1; else high = middle;
  }
  return low > 0 && wanted - steps[low - 1] < steps[low] - wanted ? low - 1 : low;
}

function element(name, attributes) {
  const made = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function readable(value) {
  const size = Math.abs(value);
  return size && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : value.toLocaleString("en", { maximumSignificantDigits: 4 });
}

function follow(figure) {
  const lines = JSON.parse(figure.querySelector("script").textContent).filter((line) => line.x.length);
  const output = figure.querySelector(".read-out");
  const steps = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  if (!steps.length) return;

  for (const svg of figure.querySelectorAll(".plot > svg")) {
    const [left, right] = svg.dataset.x.split(" ").map(Number);
    const bounds = svg.dataset.y.split(" ").map(Number);
    const isLog = svg.dataset.log === "1";
    const scaled = isLog ? Math.log10 : (value) => value;
    const [bottom, top] = bounds.map(scaled);
    const pointer = svg.querySelector(".pointer");
    let current = steps.length - 1;

    const percent = (step) => `${(100 * (step - left)) / (right - left)}%`;
    const show = (index) => {
      current = Math.max(0, Math.min(steps.length - 1, index));
      const step = steps[current];
      const marks = [element("line", { x1: percent(step), x2: percent(step), y1: 0, y2: "100%" })];
      const words = [`step ${step.toLocaleString("en")}`];
      for (const line of lines) {
        const at = nearest(line.x, step);
        // Of a line with few points only those that are near: the others say nothing about this step.
        const near = Math.abs(line.x[at] - step) <= (right - left) / 50;
        if (!near) continue;
        const height = 100 - (100 * (scaled(line.y[at]) - bottom)) / (top - bottom);
        if (Number.isFinite(height)) marks.push(element("circle", { class: line.style, cx: percent(line.x[at]), cy: `${height}%`, r: 4 }));
        words.push(`${lines.length > 1 ? line.label + " " : ""}${readable(line.y[at])}`);
      }
      pointer.replaceChildren(...marks);
      output.textContent = words.join("  ·  ");
    };
    const hide = () => { pointer.replaceChildren(); output.textContent = ""; };

    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      show(nearest(steps, left + ((event.clientX - box.left) / box.width) * (right - left)));
    });
    svg.addEventListener("pointerleave", hide);
    svg.setAttribute("tabindex", "0");
    svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) show(current); });
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const stride = Math.max(1, Math.round(steps.length / 50));
      const moves = { ArrowLeft: current - 1, ArrowRight: current + 1, PageUp: current - stride, PageDown: current + stride, Home: 0, End: steps.length - 1 };
      if (!(event.key in moves)) return;
      event.preventDefault();
      show(moves[event.key]);
    });
  }
}

document.querySelectorAll("figure.chart").forEach(follow);
