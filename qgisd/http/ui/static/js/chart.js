// Small pictures of numbers, each with its numbers in words.

import { mark, s } from "./dom.js";

const WIDTH = 66;
const HEIGHT = 22;
/** Steps that fill the width, if there are no more. */
const FEWEST = 15;

/** A sparkline; update(values, words): values oldest first, null where there is nothing to show. */
export function sparkline() {
  const line = s("path", { class: "spark-line" });
  const dot = s("circle", { class: "spark-dot", r: 1.8, cx: -9, cy: -9 });
  const element = s(
    "svg",
    { class: "spark", role: "img", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, height: HEIGHT },
    line,
    dot,
  );
  return {
    element,
    update(values, words) {
      mark(element, "aria-label", words);
      const highest = Math.max(...values.map((value) => value ?? 0), 1e-9);
      // The newest at the right end, however few there are.
      const step = (WIDTH - 4) / Math.max(values.length - 1, FEWEST);
      const begin = WIDTH - 2 - step * (values.length - 1);
      let path = "";
      let drawing = false;
      let last = [-9, -9]; // out of sight
      values.forEach((value, index) => {
        if (value === null) {
          drawing = false;
          return;
        }
        last = [begin + index * step, HEIGHT - 3 - (value / highest) * (HEIGHT - 6)];
        const at = last.map((number) => number.toFixed(1)).join(" ");
        path += drawing ? `L${at}` : `M${at}h.01`;
        drawing = true;
      });
      mark(line, "d", path || "M0 0");
      mark(dot, "cx", last[0].toFixed(1));
      mark(dot, "cy", last[1].toFixed(1));
    },
  };
}

/** A bar of parts; update([[class, size], …], whole, words). */
export function bar() {
  const element = s("svg", {
    class: "bar", role: "img", viewBox: "0 0 100 8", preserveAspectRatio: "none",
  });
  return {
    element,
    update(parts, whole, words) {
      mark(element, "aria-label", words);
      while (element.childElementCount < parts.length) {
        element.append(s("rect", { y: 0, height: 8 }));
      }
      let x = 0;
      parts.forEach(([kind, size], index) => {
        const width = whole > 0 ? Math.min(100 - x, (100 * size) / whole) : 0;
        const part = element.children[index];
        mark(part, "class", kind);
        mark(part, "x", x.toFixed(2));
        mark(part, "width", width.toFixed(2));
        x += width;
      });
    },
  };
}
