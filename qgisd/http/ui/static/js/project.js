// One project: how it is, its layers, its map, and what can be done.

import {
  actionButton, dropProject, loadProject, pinProject, reloadProject, unpinProject,
} from "./actions.js";
import { call, projectPath, Refused } from "./api.js";
import { h, keyed, mark, row, say, table } from "./dom.js";
import { moment, span, tally } from "./format.js";
import { slowList } from "./lists.js";
import { preview } from "./map.js";
import { longPanel, memoryBar, problemOf, trendOf } from "./overview.js";
import { publicPath, store } from "./store.js";
import { workersTable } from "./workers.js";

const LAYERS = [["Layer", "name"], ["Provider", ""], ["State", ""], ["Opened in", "number"], ["Error", "wide"]];
const GENERATIONS = [
  ["Generation", ""], ["State", ""], ["Reason", ""], ["Workers are", "wide"], ["Layers", "number"],
  ["Loaded in", "number"], ["Warmed up", "wide"],
  ["Workers", "number"],
];
const DETAIL_MS = 5000;
/** Reasons for the end of a worker that leave a record of it. */
const LOST = ["crash", "deadline", "memory"];

export function projectView(pool, name) {
  const mine = (item) => item.pool === pool && item.project === name;
  const head = headOf(pool, name);
  const long = longPanel(mine);
  const generations = table("Generations", GENERATIONS);
  const layers = table("Layers", LAYERS);
  const layersNote = h("p", { class: "muted" });
  const workers = workersTable("Its workers");
  const slow = slowList(mine);
  const slowNote = h("p", { class: "muted" });
  const crash = h("section", { class: "card", hidden: true });
  const map = preview(publicPath(pool, name), name);
  const card = (...children) => h("section", { class: "card" }, children);
  const details = detailsOf(pool, name, { layers, layersNote, slow, slowNote, crash });
  return {
    title: name,
    element: h(
      "div",
      {},
      long.element,
      head.element,
      map.element,
      card(layers.element, layersNote),
      card(workers.element),
      card(generations.element),
      crash,
      card(h("h2", {}, "Slow log"), slow.element, slowNote),
    ),
    update() {
      const all = store.pools.find((one) => one.pool === pool);
      const project = all?.projects.find((one) => one.project === name) ?? null;
      const own = (all?.workers ?? []).filter((worker) => worker.project === name);
      const ours = own.map((worker) => ({ ...worker, pool }));
      long.update();
      head.update(project, ours);
      workers.update(ours);
      keyed(generations.body, [...(project?.generations ?? [])].reverse(), (one) => one.number, makeGeneration);
      map.offer(project !== null && project.state === "serving" && long.element.hidden);
      details.update(project);
    },
    tick() {
      long.update();
      workers.tick();
    },
    leave: map.leave,
  };
}

function headOf(pool, name) {
  const badge = h("span", { class: "badge" });
  const pinned = h("span", { class: "muted" });
  const problem = h("p", { class: "problem", role: "status" });
  const buttons = h("div", { class: "buttons" });
  const memory = memoryBar();
  const trend = trendOf();
  const fact = (title, ...values) => h("div", {}, h("dt", {}, title), h("dd", {}, values));
  const numbers = ["Waiting", "Requests", "Errors", "Loads and forks", "Workers ended"].map((title) => {
    const value = h("dd", {});
    return { value, element: h("div", {}, h("dt", {}, title), value) };
  });
  let acts = "";
  let current = null;
  function offer(project) {
    const wanted = project === null ? "load" : `${project.pinned} ${project.state}`;
    if (wanted === acts) {
      return;
    }
    acts = wanted;
    const act = (label, make, danger) => actionButton(label, () => make(pool, current), { danger });
    const there = project !== null && project.state !== "unloaded";
    buttons.replaceChildren(
      ...[
        there ? act("Reload …", reloadProject) : act("Load …", loadProject),
        project?.pinned ? act("Unpin …", unpinProject) : act("Pin …", pinProject),
        there ? act("Drop …", dropProject, true) : null,
      ].filter(Boolean),
    );
  }
  return {
    element: h(
      "section",
      { class: "card" },
      h(
        "div",
        { class: "head" },
        h("h1", { class: "name" }, name),
        badge,
        pinned,
        h("span", { class: "grow" }),
        buttons,
      ),
      problem,
      h(
        "dl",
        { class: "facts" },
        fact("Pool", pool),
        fact("Memory", memory.element),
        fact("Requests a minute", trend.speed),
        fact("Latency", trend.latency),
        numbers.map((number) => number.element),
      ),
    ),
    update(project, workers) {
      current = project ?? { project: name, generations: [], pinned: false, memory_bytes: null };
      offer(project);
      const state = project?.state ?? "unloaded";
      say(badge, state);
      mark(badge, "data-state", state);
      say(pinned, project?.pinned ? "pinned" : "");
      say(problem, project ? problemOf(project) : "");
      const own = workers.reduce((sum, worker) => sum + (worker.private_bytes ?? 0), 0);
      memory.update(project?.memory_bytes ?? null, own, (project?.memory_bytes ?? 0) + own);
      trend.update(pool, name);
      const [waiting, requests, errors, forks, ended] = numbers.map((number) => number.value);
      say(waiting, project?.queued ?? 0);
      say(requests, project ? `${project.requests}, ${project.cached} of them from the cache` : "none");
      say(errors, project?.errors ?? 0);
      say(forks, project?.loads === undefined ? "–" : `${project.loads} and ${project.forks}`);
      say(ended, tally(project?.ended ?? {}) || "none");
    },
  };
}

function makeGeneration(generation) {
  const { element, cells } = row(GENERATIONS);
  const [number, state, reason, mode, layers, load, warmed, workers] = cells;
  const badge = h("span", { class: "badge" });
  say(number, `g${generation.number}`);
  state.append(badge);
  return {
    element,
    update(now) {
      say(badge, now.state);
      mark(badge, "data-state", now.state);
      say(reason, now.reason);
      say(mode, now.mode === "forked" ? "forked" : `loaded one by one: ${now.why}`);
      say(layers, now.layers);
      say(load, now.load_ms ? span(now.load_ms / 1000) : "–");
      say(warmed, [now.warmup, now.warmup_detail, now.warmup_why].filter(Boolean).join(": "));
      say(workers, now.workers);
    },
  };
}

/** What is not in the stream: layers, the last crash, the slow log; asked for now and then. */
function detailsOf(pool, name, parts) {
  let asked = -DETAIL_MS;
  let pending = false;
  async function take(project) {
    const path = projectPath(name);
    const detail = project === null ? null : await orNothing(call("GET", path, { pool }));
    showLayers(detail, parts);
    const slow = parts.slow.show(await call("GET", "/slowlog", { pool }));
    say(parts.slowNote, slow ? "" : "Nothing was slow.");
    const lost = LOST.some((reason) => project?.ended[reason]);
    const crash = lost ? await orNothing(call("GET", `${path}/last-crash`, { pool })) : null;
    showCrash(parts.crash, crash);
  }
  return {
    async update(project) {
      if (pending || store.at === 0 || performance.now() - asked < DETAIL_MS) {
        return;
      }
      pending = true;
      try {
        await take(project);
      } catch (error) {
        if (!(error instanceof Refused)) {
          throw error;
        }
      } finally {
        asked = performance.now();
        pending = false;
      }
    },
  };
}

async function orNothing(calling) {
  try {
    return await calling;
  } catch (error) {
    if (error instanceof Refused && error.status === 404) {
      return null;
    }
    throw error;
  }
}

function showLayers(detail, { layers, layersNote }) {
  const serving = detail?.generations.find((one) => one.state === "serving");
  const bad = serving?.bad_layers ?? [];
  const errors = new Map(bad.map((layer) => [layer.name, layer.message]));
  const rows = (detail?.contents ?? []).map((layer) => ({
    ...layer,
    message: layer.valid ? "" : (errors.get(layer.name) ?? "it could not be opened"),
  }));
  const listed = new Set(rows.map((layer) => layer.name));
  for (const layer of bad.filter((one) => !listed.has(one.name))) {
    rows.push({ ...layer, id: `bad ${layer.name}`, valid: false, load_ms: null });
  }
  rows.sort((a, b) => Number(a.valid) - Number(b.valid));
  keyed(layers.body, rows, (layer) => `${layer.id} ${layer.name}`, makeLayer);
  say(
    layersNote,
    serving
      ? `${serving.layers} layers, ${bad.length} of them bad.`
      : "Its layers are known when it is loaded.",
  );
}

function makeLayer() {
  const { element, cells } = row(LAYERS);
  const badge = h("span", { class: "badge" });
  cells[2].append(badge);
  return {
    element,
    update(layer) {
      say(cells[0], layer.name);
      say(cells[1], layer.provider);
      say(badge, layer.valid ? "good" : "bad");
      mark(badge, "data-state", layer.valid ? "serving" : "failed");
      say(cells[3], layer.load_ms === null ? "–" : span(layer.load_ms / 1000));
      say(cells[4], layer.message);
    },
  };
}

let shownCrash = new WeakMap();

function showCrash(element, crash) {
  element.hidden = crash === null;
  if (crash === null || shownCrash.get(element) === crash.when) {
    return;
  }
  shownCrash.set(element, crash.when);
  element.replaceChildren(
    h("h2", {}, "The last worker lost over a request"),
    h("p", {}, `${moment(crash.when)}: worker ${crash.worker}, ${crash.reason}, ${crash.detail}`),
    h("p", { class: "muted" }, "Its last requests, oldest first; the last one was under way:"),
    h(
      "ol",
      { class: "log" },
      crash.requests.map((seen) =>
        h("li", {}, seen.request_id, h("code", { class: "block" }, `${seen.method} ${seen.url}`)),
      ),
    ),
    ...(crash.stack
      ? [h("details", {}, h("summary", {}, "What it was doing"), h("pre", { tabindex: 0 }, crash.stack))]
      : []),
  );
}
