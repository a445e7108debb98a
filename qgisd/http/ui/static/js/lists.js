// Lists that are asked for: requests under way, the slow log, one request's story; and events.

import { actionButton, endRequest } from "./actions.js";
import { call, projectLink, Refused } from "./api.js";
import { h, keyed, mark, row, say, table } from "./dom.js";
import { bytes, moment, span } from "./format.js";
import { store } from "./store.js";

const ASK_MS = 2000;

/** A view that asks the API every two seconds while it is shown. */
function asking(title, path, parts, show, empty) {
  const note = h("p", { class: "muted", role: "status" }, "asking …");
  let asked = 0;
  let pending = false;
  async function tick() {
    if (pending || performance.now() - asked < ASK_MS) {
      return;
    }
    pending = true;
    try {
      const content = await call("GET", path);
      show(content);
      say(note, content.length === 0 ? empty : "");
    } catch (error) {
      if (!(error instanceof Refused)) {
        throw error;
      }
      say(note, error.message);
    } finally {
      asked = performance.now();
      pending = false;
    }
  }
  const element = h("section", { class: "card" }, h("h1", {}, title), ...parts, note);
  return { element, title, update: tick, tick };
}

const REQUESTS = [
  ["Request", ""],
  ["State", ""],
  ["Project", "name"],
  ["Class", ""],
  ["Running", "number"],
  ["Age", "number"],
  ["Worker", "number"],
  ["URL", "url"],
  ["Action", ""],
];

export function requestsView() {
  const { element, body } = table("Oldest first", REQUESTS);
  const show = (content) =>
    keyed(body, content, (request) => `${request.pool} ${request.request_id} ${request.worker}`, makeRequest);
  return asking("Requests under way", "/requests", [element], show, "None.");
}

function makeRequest(request) {
  const { element, cells } = row(REQUESTS);
  const [id, state, project, kind, time, age, worker, url, action] = cells;
  const badge = h("span", { class: "badge" });
  let current = request;
  id.append(storyLink(request.request_id));
  state.append(badge);
  project.append(h("a", { href: projectLink(request.pool, request.project) }, request.project));
  say(kind, request.request_class);
  url.append(h("code", {}, request.url));
  action.append(actionButton("End …", () => endRequest(current), { danger: true }));
  action.firstChild.setAttribute("aria-label", `End request ${request.request_id} …`);
  return {
    element,
    update(now) {
      current = now;
      say(badge, now.abandoned ? `${now.state}, client gone` : now.state);
      mark(badge, "data-state", now.state);
      say(time, now.state === "queued" ? "–" : span(now.running_s));
      say(age, span(now.age_s));
      say(worker, now.worker ?? "–");
    },
  };
}

function storyLink(request) {
  return h("a", { href: `#/request/${encodeURIComponent(request)}` }, request);
}

export function slowlogView() {
  const list = slowList();
  return asking(
    "Slow log",
    "/slowlog",
    [h("p", { class: "muted" }, "Requests that are or were slow, or ended at their deadline; newest first."), list.element],
    list.show,
    "Nothing was slow.",
  );
}

/** The slow log, of one project or of all. */
export function slowList(only = () => true) {
  const element = h("ol", { class: "log" });
  return {
    element,
    show(content) {
      const entries = content.filter(only).reverse();
      keyed(element, entries, (slow) => `${slow.pool} ${slow.request_id}`, makeSlow);
      return entries.length;
    },
  };
}

function makeSlow(slow) {
  const when = h("time", {});
  const time = h("strong", { class: "number" });
  const state = h("span", {});
  const worker = h("span", {});
  const stack = h("pre", { tabindex: 0 });
  const stuck = h("details", {}, h("summary", {}, "What it was doing"), stack);
  const element = h(
    "li",
    {},
    when,
    " ",
    time,
    " ",
    state,
    " · ",
    h("a", { href: projectLink(slow.pool, slow.project) }, slow.project),
    ` · ${slow.request_class} · `,
    worker,
    " · ",
    storyLink(slow.request_id),
    h("code", { class: "block" }, slow.url),
    stuck,
  );
  return {
    element,
    /** One that is under way goes on, and ends. */
    update(now) {
      say(when, moment(now.when));
      say(time, span(now.seconds));
      say(state, now.outcome.replaceAll("_", " "));
      say(worker, now.worker ? `worker ${now.worker}` : "no worker");
      say(stack, now.stack);
      stuck.hidden = !now.stack;
    },
  };
}

/** The story of one request. */
export function storyView(request) {
  const facts = h("dl", { class: "facts story" });
  const view = asking(
    `Request ${request}`,
    `/requests/${encodeURIComponent(request)}`,
    [facts],
    (story) => keyed(facts, storyFacts(story), ([name]) => name, makeFact),
    "",
  );
  return view;
}

function storyFacts(story) {
  const milliseconds = (value) => span(value / 1000);
  const facts = {
    State: story.state,
    Outcome: story.outcome.replaceAll("_", " "),
    Status: story.status,
    Project: h("a", { href: projectLink(story.pool, story.project) }, story.project),
    Generation: story.generation,
    Class: story.request_class,
    Began: moment(story.when),
    "Took in all": milliseconds(story.total_ms),
    "Waited for a worker": milliseconds(story.queue_ms),
    "Waited for the load": milliseconds(story.load_ms),
    Rendered: milliseconds(story.render_ms),
    Sent: bytes(story.bytes),
    Worker: story.worker,
    Attempts: story.attempts,
    Reason: story.reason,
    Detail: story.detail,
    URL: h("code", { class: "block" }, `${story.method} ${story.url}`),
  };
  return Object.entries(facts)
    .filter(([, value]) => value !== "" && value !== 0); // there was none
}

function makeFact([name, value]) {
  const shown = h("dd", {}, value instanceof Node ? value : "");
  return {
    element: h("div", {}, h("dt", {}, name), shown),
    update([, now]) {
      if (!(now instanceof Node)) {
        say(shown, now);
      }
    },
  };
}

export function eventsView() {
  const list = h("ol", { class: "log" });
  const note = h("p", { class: "muted" });
  return {
    title: "Events",
    element: h(
      "section",
      { class: "card" },
      h("h1", {}, "Events"),
      h("p", { class: "muted" }, "What happened, newest first."),
      list,
      note,
    ),
    update() {
      keyed(list, store.events, (event) => `${event.id} ${event.time}`, makeEvent);
      say(note, store.events.length ? "" : "Nothing happened yet.");
    },
    tick() {},
  };
}

function makeEvent(event) {
  const element = h(
    "li",
    { "data-level": event.level },
    h("time", {}, moment(event.time)),
    " ",
    h("span", { class: "badge" }, event.kind.replaceAll("_", " ")),
    " ",
    event.project ? h("a", { href: projectLink(event.pool, event.project) }, event.project) : null,
    ` ${event.text}`,
    event.request_id ? " · " : null,
    event.request_id ? storyLink(event.request_id) : null,
  );
  return { element, update() {} };
}
