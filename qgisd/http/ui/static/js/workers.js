// Workers as they work.

import { actionButton, killWorker } from "./actions.js";
import { projectLink } from "./api.js";
import { h, keyed, mark, row, say, table } from "./dom.js";
import { bytes, span } from "./format.js";
import { LONG_S, running } from "./store.js";

const COLUMNS = [
  ["Worker", ""],
  ["State", ""],
  ["Project", "name"],
  ["Request", ""],
  ["For", "number"],
  ["Served", "number"],
  ["Private memory", "number"],
  ["Age", "number"],
  ["Process", "number"],
  ["Action", ""],
];

export function workersTable(caption) {
  const { element, body } = table(caption, COLUMNS);
  const note = h("p", { class: "muted" }, "No worker runs. The next request forks one.");
  let shown = [];
  return {
    element: h("div", {}, element, note),
    update(workers) {
      shown = workers;
      keyed(body, workers, (worker) => `${worker.pool} ${worker.id}`, makeWorker);
      note.hidden = workers.length > 0;
    },
    tick() {
      this.update(shown);
    },
  };
}

function makeWorker(worker) {
  const { element, cells } = row(COLUMNS);
  const [id, state, project, request, time, served, memory, age, pid, action] = cells;
  const badge = h("span", { class: "badge" });
  const link = h("a", { href: projectLink(worker.pool, worker.project) }, worker.project);
  const generation = h("span", { class: "muted" }, ` g${worker.generation}`);
  const story = h("a", {});
  const kind = h("span", {});
  let current = worker;
  say(id, worker.id);
  state.append(badge);
  project.append(link, generation);
  request.append(kind, " ", story);
  action.append(
    actionButton("Kill …", () => killWorker(current.pool, current), { danger: true }),
  );
  action.firstChild.setAttribute("aria-label", `Kill worker ${worker.id} …`);
  return {
    element,
    update(now) {
      current = now;
      say(pid, now.pid || "–"); // not known yet while it is forked
      say(badge, now.state);
      mark(badge, "data-state", now.state);
      say(kind, now.request_id ? now.request_class : "–");
      story.hidden = !now.request_id;
      say(story, now.request_id);
      mark(story, "href", `#/request/${encodeURIComponent(now.request_id)}`);
      const seconds = running(now);
      say(time, now.request_id ? span(seconds) : "–");
      mark(element, "data-long", seconds >= LONG_S);
      say(served, now.served);
      say(memory, bytes(now.private_bytes));
      say(age, span(now.age_s));
    },
  };
}
