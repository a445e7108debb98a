// What an operator may do, each with what will happen, said before it happens.

import { call, projectPath } from "./api.js";
import { h, say } from "./dom.js";
import { bytes, span } from "./format.js";
import { mayAct, refresh } from "./store.js";

/** Tell what came of something, where screen readers hear it too. */
export function notice(text, bad = false) {
  const close = h("button", { type: "button", class: "quiet", "aria-label": "Dismiss" }, "×");
  const element = h("p", { class: bad ? "notice bad" : "notice" }, h("span", {}, text), close);
  close.addEventListener("click", () => element.remove());
  document.getElementById("notices").prepend(element);
  if (!bad) {
    setTimeout(() => element.remove(), 15000);
  }
}

/** A button that opens a dialog which says what will happen; `describe` is called on opening. */
export function actionButton(label, describe, { danger = false } = {}) {
  const button = h("button", { type: "button", class: danger ? "danger" : null }, label);
  button.addEventListener("click", () => confirmed(describe()));
  return gated(button);
}

/** A button that acts at once: what will happen stands beside it. */
export function directButton(label, act) {
  const button = h("button", { type: "button", class: "danger" }, label);
  button.addEventListener("click", async () => {
    button.disabled = true;
    await carryOut(act);
    button.disabled = false;
  });
  return gated(button);
}

function gated(button) {
  if (!mayAct()) {
    button.disabled = true;
    button.title = "You may look, not act: your role is “read”.";
  }
  return button;
}

async function carryOut(act) {
  try {
    const answer = await act();
    for (const outcome of Array.isArray(answer) ? answer : [answer]) {
      notice(inWords(outcome), outcome.ok === false);
    }
  } catch (error) {
    notice(error.message, true);
  }
  refresh();
}

/** What came of it, as the API tells it for projects, kills and drains. */
function inWords(outcome) {
  if ("draining" in outcome) {
    return outcome.draining
      ? `Pool ${outcome.pool} drains: ${outcome.busy} running, ${outcome.queued} waiting`
      : `Pool ${outcome.pool} is back in service`;
  }
  if ("project" in outcome) {
    return `${outcome.project || "QGIS and its plugins"}: ${outcome.detail}`;
  }
  return outcome.request_id ? `Request ${outcome.request_id} ended: ${outcome.detail}` : `Ended: ${outcome.detail}`;
}

/** Ask {title, what: [sentences], verb, act}. */
function confirmed({ title, what, verb, act, danger }) {
  const go = h("button", { type: "button", class: danger ? "danger" : "primary" }, verb);
  const cancel = h("button", { type: "button" }, "Cancel");
  const dialog = h(
    "dialog",
    { "aria-labelledby": "dialog-title" },
    h("h2", { id: "dialog-title" }, title),
    h("p", { class: "muted" }, "What will happen:"),
    h("ul", {}, what.map((sentence) => h("li", {}, sentence))),
    h("div", { class: "buttons" }, cancel, go),
  );
  cancel.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  go.addEventListener("click", async () => {
    go.disabled = true;
    say(go, "Working …");
    await carryOut(act);
    dialog.close();
  });
  document.body.append(dialog);
  dialog.showModal();
}

// of a project

export function reloadProject(pool, project) {
  const serving = project.generations.find((one) => one.state === "serving");
  return {
    title: `Reload ${project.project}?`,
    verb: "Reload",
    what: [
      "The project file is loaded again, beside what serves now" +
        (serving ? `; the last load took ${span(serving.load_ms / 1000)}.` : "."),
      "When it is ready, new requests go to it. Requests under way end where they are: none is lost.",
      "If it does not load, what serves now goes on serving, and you are told the error.",
    ],
    act: () => call("POST", "/reload", { project: project.project, pool }),
  };
}

export function loadProject(pool, project) {
  return {
    title: `Load ${project.project}?`,
    verb: "Load",
    what: ["The project is loaded now, before anybody asks for it."],
    act: () => call("POST", projectPath(project.project), { pool }),
  };
}

export function pinProject(pool, project) {
  return {
    title: `Pin ${project.project}?`,
    verb: "Pin",
    what: [
      "It stays loaded, with one worker ready, however long nobody asks for it.",
      "It is not evicted when the pool runs out of memory: other projects are.",
      "This holds until it is unpinned or qgisd restarts; pool.projects.pinned in the configuration lasts.",
    ],
    act: () => call("PUT", `${projectPath(project.project)}/pin`, { pool }),
  };
}

export function unpinProject(pool, project) {
  return {
    title: `Unpin ${project.project}?`,
    verb: "Unpin",
    what: [
      "It goes on serving. Its last worker ends when nobody asks for a while.",
      "When the pool runs out of memory it may be evicted; the next request loads it again.",
    ],
    act: () => call("DELETE", `${projectPath(project.project)}/pin`, { pool }),
  };
}

export function dropProject(pool, project) {
  const serving = project.generations.find((one) => one.state === "serving");
  return {
    title: `Drop ${project.project}?`,
    verb: "Drop",
    danger: true,
    what: [
      "It is unloaded" +
        (project.memory_bytes ? `, which frees ${bytes(project.memory_bytes)} and its workers.` : "."),
      "Requests under way are finished first.",
      "The next request loads it again and waits for that" +
        (serving ? ` (the last load took ${span(serving.load_ms / 1000)}).` : "."),
      ...(project.pinned ? ["It is no longer pinned."] : []),
    ],
    act: () => call("DELETE", projectPath(project.project), { pool }),
  };
}

// of a worker, a request

export function killWorker(pool, worker) {
  return {
    title: `Kill worker ${worker.id}?`,
    verb: "Kill",
    danger: true,
    what: [
      `Process ${worker.pid} of ${worker.project} ends at once.`,
      worker.request_id
        ? `Request ${worker.request_id}, which it works on, is answered with 503; if its answer has begun, the connection is cut.`
        : "It works on nothing: no request is lost.",
      "Another worker is forked as soon as one is wanted, within some milliseconds.",
    ],
    act: () => call("DELETE", `/workers/${worker.id}`, { pool }),
  };
}

export function endRequest(request) {
  return {
    title: `End request ${request.request_id}?`,
    verb: "End it",
    danger: true,
    what: [
      request.state === "queued"
        ? "It is taken out of the queue and answered with 503."
        : "Its worker is killed; the client gets 503, or a cut connection if the answer has begun.",
      "Other requests are not touched.",
    ],
    act: () => endNow(request),
  };
}

export function endNow(request) {
  return call("DELETE", `/requests/${encodeURIComponent(request.request_id)}`, { pool: request.pool });
}

// of a pool

export function reloadPool(pool) {
  return {
    title: `Reload everything in pool ${pool.pool}?`,
    verb: "Reload all",
    what: [
      "QGIS and its plugins are started anew, and every loaded project is loaded again, beside what serves now.",
      "While they load, memory and processor time are needed twice.",
      "Requests under way end where they are: none is lost. What does not load goes on as it is.",
    ],
    act: () => call("POST", "/reload", { pool: pool.pool }),
  };
}

export function drainPool(pool) {
  return pool.draining
    ? {
        title: `Take pool ${pool.pool} back into service?`,
        verb: "Undrain",
        what: ["New requests are served again, and /readyz says so."],
        act: () => call("POST", "/undrain", { pool: pool.pool }),
      }
    : {
        title: `Drain pool ${pool.pool}?`,
        verb: "Drain",
        danger: true,
        what: [
          "New requests are answered with 503 and Retry-After, and /readyz says 503: a load balancer sends them elsewhere.",
          `What is under way is finished (${pool.busy} running, ${pool.queued} waiting).`,
          "Nothing is unloaded; “Undrain” takes the pool back.",
        ],
        act: () => call("POST", "/drain", { pool: pool.pool }),
      };
}
