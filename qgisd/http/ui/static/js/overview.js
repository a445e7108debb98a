// The first page: what takes long, the pools, their projects and workers.

import { actionButton, directButton, drainPool, endNow, reloadPool } from "./actions.js";
import { projectLink } from "./api.js";
import { bar, sparkline } from "./chart.js";
import { h, keyed, mark, row, say, table } from "./dom.js";
import { bytes, count, rate, span, tally } from "./format.js";
import { LONG_S, longRunning, running, store, trends } from "./store.js";
import { workersTable } from "./workers.js";

/** Rows that are shown before somebody asks for more. */
const SHOWN = 100;

export function overview() {
  const long = longPanel();
  const pools = h("div", { class: "pools" });
  const projects = projectsPanel();
  const workers = workersTable("Workers");
  const element = h(
    "div",
    {},
    h("h1", { class: "hidden" }, "Overview"),
    long.element,
    pools,
    projects.element,
    h("section", { class: "card" }, workers.element),
  );
  return {
    element,
    title: "Overview",
    update() {
      long.update();
      keyed(pools, store.pools, (pool) => pool.pool, makePool);
      projects.update();
      workers.update(
        store.pools.flatMap((pool) => pool.workers.map((worker) => ({ ...worker, pool: pool.pool }))),
      );
    },
    tick() {
      long.update();
      workers.tick();
    },
  };
}

/** Requests that take long, of one project or of all; each ends with one click. */
export function longPanel(only = () => true) {
  const list = h("ul", { class: "long" });
  const title = h("h2", { "aria-live": "polite" });
  const element = h(
    "section",
    { class: "card alarm", hidden: true },
    title,
    h(
      "p",
      { class: "muted" },
      "“End it” acts at once: the worker is killed, its client gets 503 (or a cut connection, if the " +
        "answer has begun), and another worker is forked when one is wanted. Other requests are not touched.",
    ),
    list,
  );
  return {
    element,
    update() {
      const found = longRunning().filter(only);
      element.hidden = found.length === 0;
      say(title, `${count(found.length, "request")} running for more than ${LONG_S} s`);
      keyed(list, found, (worker) => `${worker.pool} ${worker.id} ${worker.request_id}`, makeLong);
    },
  };
}

function makeLong(worker) {
  const time = h("strong", { class: "number" });
  const end = directButton("End it", () => endNow(worker));
  end.setAttribute("aria-label", `End it: request ${worker.request_id}`);
  const element = h(
    "li",
    {},
    time,
    h(
      "span",
      { class: "grow" },
      h("a", { href: projectLink(worker.pool, worker.project) }, worker.project),
      ` · ${worker.request_class} · worker ${worker.id} · request `,
      h("a", { href: `#/request/${encodeURIComponent(worker.request_id)}` }, worker.request_id),
    ),
    end,
  );
  return { element, update: (now) => say(time, span(running(now))) };
}

function makePool(pool) {
  const titles = ["Running", "Waiting", "Workers", "Workers ended", "Plugins", "Memory"];
  const facts = titles.map((name) => {
    const value = h("dd", {});
    return { value, element: h("div", {}, h("dt", {}, name), value) };
  });
  const memory = memoryBar();
  facts.at(-1).value.append(memory.element);
  const problem = h("p", { class: "problem" });
  const state = h("span", { class: "badge" });
  const version = h("span", { class: "muted" });
  const drain = h("span", {});
  let draining = null;
  let current = pool;
  const element = h(
    "section",
    { class: "card" },
    h(
      "div",
      { class: "head" },
      h("h2", {}, "Pool ", pool.pool),
      state,
      version,
      h("span", { class: "grow" }),
      h("div", { class: "buttons" }, actionButton("Reload all …", () => reloadPool(current)), drain),
    ),
    problem,
    h("dl", { class: "facts" }, facts.map((fact) => fact.element)),
  );
  return {
    element,
    update(now) {
      current = now;
      if (draining !== now.draining) {
        draining = now.draining;
        const label = draining ? "Undrain …" : "Drain …";
        drain.replaceChildren(actionButton(label, () => drainPool(current), { danger: !draining }));
      }
      const up = now.zygote === "up";
      say(state, now.draining ? "draining" : up ? "up" : `QGIS ${now.zygote}`);
      mark(state, "data-state", now.draining ? "stale" : up ? "serving" : "failed");
      say(version, now.qgis ? `QGIS ${now.qgis}` : "");
      const [busy, waiting, workers, ended, plugins] = facts.map((fact) => fact.value);
      say(busy, `${now.busy} of ${now.slots}`);
      say(waiting, now.queued);
      say(workers, tally(countBy(now.workers, (worker) => worker.state)) || "none");
      const held = now.projects.reduce((sum, project) => sum + (project.memory_bytes ?? 0), 0);
      const own = now.workers.reduce((sum, worker) => sum + (worker.private_bytes ?? 0), 0);
      const limit = now.memory_limit_bytes;
      const all = limit ? `${bytes(now.memory_bytes)} of ${bytes(limit)}: ` : "";
      memory.update(held, own, limit ?? held + own, all);
      say(plugins, tally(countBy(now.plugins, (plugin) => plugin.state)) || "none");
      const failed = now.plugins.filter((plugin) => plugin.error);
      say(problem, failed.map((plugin) => `plugin ${plugin.name}: ${plugin.error}`).join("\n"));
      say(ended, tally(sumOf(now.projects.map((project) => project.ended))) || "none");
    },
  };
}

function countBy(items, keyOf) {
  return sumOf(items.map((item) => ({ [keyOf(item)]: 1 })));
}

function sumOf(tables) {
  const sum = {};
  for (const counts of tables) {
    for (const [name, number] of Object.entries(counts)) {
      sum[name] = (sum[name] ?? 0) + number;
    }
  }
  return sum;
}

const COLUMNS = [
  ["Project", "name"],
  ["State", ""],
  ["Memory", ""],
  ["Load", "number"],
  ["Workers", ""],
  ["Waiting", "number"],
  ["Requests a minute", ""],
  ["Latency", ""],
  ["Errors", "number"],
  ["Workers ended", ""],
];
/** What needs a look comes first. */
const ORDER = ["failed", "stale", "loading", "serving", "unloaded"];

function projectsPanel() {
  const { element, body } = table("Projects", COLUMNS, true);
  const filter = h("input", { type: "search", id: "filter", autocomplete: "off" });
  const more = h("button", { type: "button", hidden: true });
  const note = h("p", { class: "muted", role: "status" });
  let shown = SHOWN;
  filter.addEventListener("input", () => panel.update());
  more.addEventListener("click", () => {
    shown *= 10;
    panel.update();
  });
  const panel = {
    element: h(
      "section",
      { class: "card" },
      h(
        "div",
        { class: "head" },
        h("h2", { class: "grow" }, "Projects"),
        h("label", { for: "filter" }, "Find a project"),
        filter,
      ),
      element,
      note,
      more,
    ),
    update() {
      const wanted = filter.value.trim().toLowerCase();
      const all = store.pools.flatMap((pool) => pool.projects.map((project) => ownMemory(pool, project)));
      const found = all.filter((project) => project.project.toLowerCase().includes(wanted));
      found.sort(
        (a, b) =>
          ORDER.indexOf(a.state) - ORDER.indexOf(b.state) ||
          b.requests - a.requests ||
          a.project.localeCompare(b.project),
      );
      const largest = Math.max(1, ...all.map((project) => (project.memory_bytes ?? 0) + project.own));
      keyed(
        body,
        found.slice(0, shown).map((project) => ({ ...project, largest })),
        (project) => `${project.pool} ${project.project}`,
        makeProject,
      );
      more.hidden = found.length <= shown;
      say(more, `Show more of ${found.length}`);
      say(
        note,
        all.length === 0
          ? "No project is loaded. The first request for one loads it."
          : found.length === 0
            ? "No project has that in its name."
            : "",
      );
    },
  };
  return panel;
}

function ownMemory(pool, project) {
  const workers = pool.workers.filter((worker) => worker.project === project.project);
  const own = workers.reduce((sum, worker) => sum + (worker.private_bytes ?? 0), 0);
  return { ...project, pool: pool.pool, workers, own };
}

function makeProject(project) {
  const { element, cells } = row(COLUMNS);
  const [name, state, memory, load, workers, waiting, requests, latency, errors, ended] = cells;
  const badge = h("span", { class: "badge" });
  const pinned = h("span", { class: "muted" });
  const problem = h("span", { class: "problem" });
  name.append(h("a", { href: projectLink(project.pool, project.project) }, project.project));
  state.append(badge, " ", pinned, problem);
  const parts = memoryBar();
  memory.append(parts.element);
  const dots = h("span", { class: "dots", role: "img" });
  const trend = trendOf();
  workers.append(dots);
  requests.append(trend.speed);
  latency.append(trend.latency);
  return {
    element,
    update(now) {
      say(badge, now.state);
      mark(badge, "data-state", now.state);
      say(pinned, now.pinned ? "pinned" : "");
      say(problem, problemOf(now));
      parts.update(now.memory_bytes, now.own, now.largest);
      const serving = now.generations.find((one) => one.state === "serving");
      const bad = serving?.bad_layers.length ?? 0;
      say(load, serving ? `${span(serving.load_ms / 1000)}${bad ? `, ${count(bad, "bad layer")}` : ""}` : "–");
      drawDots(dots, now.workers);
      say(waiting, now.queued);
      trend.update(now.pool, now.project);
      say(errors, now.errors);
      say(ended, tally(now.ended) || "–");
    },
  };
}

/** What is wrong with a project, in a line; "" if nothing is. */
export function problemOf(project) {
  const words = [];
  if (project.breaker !== "closed") {
    words.push(`breaker ${project.breaker.replace("_", " ")}: it failed too often`);
  }
  if (project.error) {
    words.push(project.error);
  }
  return words.join("; ");
}

/** Memory held once for all workers of a project against their own. */
export function memoryBar() {
  const picture = bar();
  const words = h("span", { class: "small" });
  return {
    element: h("span", { class: "memory" }, picture.element, words),
    update(shared, own, largest, before = "") {
      const parts = `${bytes(shared ?? 0)} shared, ${bytes(own)} private`;
      const told = !shared && !own ? "not measured yet" : before + parts;
      picture.update([["shared", shared ?? 0], ["private", own]], largest, told);
      say(words, told);
    },
  };
}

/** Requests a minute and latency of a project, each a sparkline with its last value. */
export function trendOf() {
  const speed = sparkWithValue();
  const mean = sparkWithValue();
  return {
    speed: speed.element,
    latency: mean.element,
    update(pool, project) {
      const found = trends(pool, project);
      speed.update(found.speeds, rate(found.speed), "requests a minute");
      mean.update(found.latencies, span(found.latency), "mean latency");
    },
  };
}

function sparkWithValue() {
  const picture = sparkline();
  const value = h("span", { class: "number" });
  return {
    element: h("span", { class: "trend" }, picture.element, " ", value),
    update(values, last, what) {
      picture.update(values, `${what}, the last hour by minutes; now ${last}`);
      say(value, last);
    },
  };
}

function drawDots(element, workers) {
  const states = countBy(workers, (worker) => worker.state);
  mark(element, "aria-label", workers.length ? tally(states) : "no workers");
  keyed(element, workers, (worker) => worker.id, () => {
    const dot = h("span", { class: "dot" });
    return {
      element: dot,
      update(worker) {
        mark(dot, "data-state", worker.state);
        dot.title = `worker ${worker.id}: ${worker.state}${worker.request_class ? `, ${worker.request_class}` : ""}`;
      },
    };
  });
}
