// The page: its parts by the fragment of the address, kept up to date.

import { call, Refused, setToken } from "./api.js";
import { h, mark, say } from "./dom.js";
import { eventsView, requestsView, slowlogView, storyView } from "./lists.js";
import { Live } from "./live.js";
import { overview } from "./overview.js";
import { projectView } from "./project.js";
import { followHistory, store, subscribe, takeEvent, takeFull, takeStats } from "./store.js";
import { span } from "./format.js";

const main = document.getElementById("main");
const line = document.getElementById("line");
let view = null;

function route() {
  const [page, ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decoded);
  if (page === "project" && rest.length === 2) {
    return projectView(...rest);
  }
  if (page === "request" && rest.length === 1) {
    return storyView(...rest);
  }
  const pages = { requests: requestsView, slowlog: slowlogView, events: eventsView };
  return (Object.hasOwn(pages, page) ? pages[page] : overview)();
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function show(moved) {
  view?.leave?.();
  view = route();
  main.replaceChildren(view.element);
  document.title = `${view.title} · qgisd`;
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.getAttribute("href").slice(2) === location.hash.slice(2).split("/")[0];
    mark(link, "aria-current", here ? "page" : null);
  }
  view.update();
  if (moved) {
    main.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
}

function setLine(state, words) {
  mark(line, "data-line", state);
  say(line, words);
}

const live = new Live({
  full: takeFull,
  stats: takeStats,
  event: takeEvent,
  line: setLine,
  refused: onRefused,
});

function onRefused(error) {
  if (error instanceof Refused && error.status === 401) {
    setLine("down", "a token is needed");
    askToken();
  } else if (error instanceof Refused) {
    setLine("down", "refused");
    main.replaceChildren(h("p", { class: "card problem" }, error.message));
  } else {
    setLine("down", "this page is broken");
    throw error;
  }
}

function askToken() {
  const field = h("input", { type: "password", id: "token", autocomplete: "off", required: true });
  const form = h(
    "form",
    { class: "card" },
    h("h1", {}, "Token"),
    h("p", {}, "This listener wants a token: one of admin.tokens or admin.read_tokens. It is kept for this tab only."),
    h("p", {}, h("label", { for: "token" }, "Token "), field, " ", h("button", { class: "primary" }, "Go on")),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    setToken(field.value.trim());
    main.replaceChildren();
    begin();
  });
  view = null;
  main.replaceChildren(form);
  field.focus();
}

/** Who are we to the API? Then go on with everything. */
async function begin() {
  try {
    store.about = await call("GET", "/");
  } catch (error) {
    if (error instanceof Refused && error.status === 0) {
      setLine("down", error.message);
      setTimeout(begin, 2000);
    } else {
      onRefused(error);
    }
    return;
  }
  const { version, role, uptime_s: uptime } = store.about;
  const may = role === "read" ? "; you may look, not act" : "";
  say(document.getElementById("about"), `qgisd ${version}, up for ${span(uptime)}${may}`);
  show(false);
  live.start();
  if (!following) {
    following = true;
    followHistory();
  }
}

let following = false;

subscribe(() => view?.update());
setInterval(() => view?.tick(), 1000);
addEventListener("hashchange", () => store.about !== null && show(true));
begin();
