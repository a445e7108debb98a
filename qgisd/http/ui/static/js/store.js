// All that the page knows of the daemon. Views read it and are told when it changed.

import { call, Refused } from "./api.js";

/** A request that runs for so long is shown on its own, to be ended with one click. */
export const LONG_S = 2;
const HISTORY_MS = 5000;
const FULL_MS = 1000;
/** Rows of the history that are shown: an hour, and the minute that is under way. */
const MINUTES = 61;

export const store = {
  /** What GET /api/v1/ says: version, role, routes of pools. */
  about: null,
  /** As in GET /api/v1/stats, newer parts merged in. */
  pools: [],
  /** performance.now() when the times in `pools` were true. */
  at: 0,
  /** What happened, newest first. */
  events: [],
  /** pool → [{number, seconds, projects: {key: [requests, errors, answered, run_s]}}], oldest first;
   * the last one is not complete yet. */
  history: new Map(),
};

const listeners = new Set();

export function subscribe(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function changed() {
  for (const listener of [...listeners]) {
    listener();
  }
}

export function takeFull(pools) {
  store.pools = pools;
  store.at = performance.now();
  changed();
}

/** A message of the stream: all that moves, by the second. */
export function takeStats(content) {
  let whole = content.pools.length === store.pools.length;
  store.pools = content.pools.map((fresh) => {
    const known = store.pools.find((pool) => pool.pool === fresh.pool);
    const before = new Map((known?.projects ?? []).map((project) => [project.project, project]));
    const projects = fresh.projects.map((project) => {
      const old = before.get(project.project);
      whole &&= old !== undefined && old.state === project.state;
      const { workers, ...rest } = project;
      return { error: "", generations: [], ...old, ...rest };
    });
    return { services: [], plugins: [], qgis: "", ...known, ...fresh, projects };
  });
  store.at = performance.now();
  if (!whole) {
    refresh();
  }
  changed();
}

export function takeEvent(happened) {
  store.events = [happened, ...store.events].slice(0, 300);
  refresh();
  changed();
}

let due = null;

/** Ask for all of it, soon, and at most once a second. */
export function refresh() {
  due ??= setTimeout(async () => {
    try {
      takeFull(await call("GET", "/stats"));
    } catch (error) {
      if (!(error instanceof Refused)) {
        throw error;
      }
    } finally {
      due = null;
    }
  }, FULL_MS);
}

/** Keep the history: at once, then what is new. */
export async function followHistory() {
  for (;;) {
    try {
      await takeHistory();
    } catch (error) {
      if (!(error instanceof Refused)) {
        throw error;
      }
    }
    await new Promise((resolve) => setTimeout(resolve, HISTORY_MS));
  }
}

async function takeHistory() {
  if (document.hidden) {
    return;
  }
  // The last row that is known is not complete: it is asked for again.
  const known = [...store.history.values()].map((rows) => rows.at(-1).number - 1);
  const since = known.length ? Math.min(...known) : 0;
  for (const { pool, rows } of await call("GET", "/history", { since })) {
    const old = (store.history.get(pool) ?? []).filter((row) => row.number <= since);
    // After a restart of the daemon the numbers begin anew.
    const kept = rows[0].number > since ? old : [];
    store.history.set(pool, [...kept, ...rows].slice(-MINUTES));
  }
  changed();
}

/**
 * What a project did: requests a minute and mean latency in seconds, by minutes of the last hour,
 * oldest first, null where there is nothing to tell; and both of the last one to two minutes.
 */
export function trends(pool, project) {
  const rows = (store.history.get(pool) ?? []).map((row) => {
    const [requests, , answered, run] = row.projects[project] ?? [0, 0, 0, 0];
    return { seconds: row.seconds, requests, latency: answered ? run / answered : null };
  });
  const last = rows.slice(-2);
  return {
    speeds: rows.map((row) => perMinute([row])),
    latencies: rows.map((row) => row.latency),
    speed: perMinute(last),
    latency: last.map((row) => row.latency).filter((value) => value !== null).at(-1) ?? null,
  };
}

/** null for rows too short to tell. */
function perMinute(rows) {
  const sum = (name) => rows.reduce((total, row) => total + row[name], 0);
  return sum("seconds") > 5 ? (60 * sum("requests")) / sum("seconds") : null;
}

/** Seconds that a worker's request has been running, now. */
export function running(worker) {
  return worker.request_id ? worker.running_s + (performance.now() - store.at) / 1000 : 0;
}

/** Workers whose request takes long, longest first, with their pool. */
export function longRunning() {
  return store.pools
    .flatMap((pool) => pool.workers.map((worker) => ({ ...worker, pool: pool.pool })))
    .filter((worker) => worker.state !== "killing" && running(worker) >= LONG_S)
    .sort((a, b) => running(b) - running(a));
}

export function mayAct() {
  return store.about?.role !== "read";
}

/** The public path of a project: what its clients ask. */
export function publicPath(pool, project) {
  const route = store.about?.pools?.find((one) => one.pool === pool)?.route ?? "";
  const path = project.split("/").map(encodeURIComponent).join("/");
  return `${route}/ows/p/${path}`;
}
