// Elements from data. Names and errors of projects are hostile, so a string becomes a text node or
// the value of an attribute, never markup: there is no innerHTML in this page (and the policy that
// it is served with forbids it).

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element. `on` in the attributes is a table of listeners; false and null leave one out. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An SVG element. */
export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) {
        element.addEventListener(event, listener);
      }
    } else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Write text only where it differs: selections and screen readers are left in peace. */
export function say(element, text) {
  if (element.textContent !== String(text)) {
    element.textContent = text;
  }
}

/** Set or remove an attribute, only where it differs. */
export function mark(element, name, value) {
  if (value === null || value === false) {
    element.removeAttribute(name);
  } else if (element.getAttribute(name) !== String(value)) {
    element.setAttribute(name, value);
  }
}

const kept = new WeakMap();

/**
 * Keep the children of `parent` in step with `items`: an item that stays keeps its element, and so
 * focus and what is unfolded. make(item) → {element, update(item)}.
 */
export function keyed(parent, items, keyOf, make) {
  const before = kept.get(parent) ?? new Map();
  const now = new Map();
  let place = parent.firstElementChild;
  for (const item of items) {
    let key = keyOf(item);
    for (let again = 2; now.has(key); again += 1) {
      key = `${keyOf(item)} ${again}`; // two are called the same, as requests of a proxy may be
    }
    const row = before.get(key) ?? make(item);
    row.update(item);
    now.set(key, row);
    if (row.element === place) {
      place = place.nextElementSibling;
    } else {
      parent.insertBefore(row.element, place);
    }
  }
  for (const [key, row] of before) {
    if (now.get(key) !== row) {
      row.element.remove();
    }
  }
  kept.set(parent, now);
}

/**
 * A table whose rows are kept by key. columns: [title, class]; hidden: the caption is heard only.
 * The roles are written out because a narrow screen shows the rows as cards, and a table that is
 * not laid out as one loses them.
 */
export function table(caption, columns, hidden = false) {
  const body = h("tbody", { role: "rowgroup" });
  const head = columns.map(([title, kind]) =>
    h("th", { scope: "col", role: "columnheader", class: kind }, title),
  );
  const element = h(
    "table",
    { role: "table" },
    h("caption", { class: hidden ? "hidden" : null }, caption),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, head)),
    body,
  );
  return { element, body };
}

/** A row of such a table, and its cells. The first cell is the row's header. */
export function row(columns, attributes = {}) {
  const cells = columns.map(([title, kind], index) =>
    index === 0
      ? h("th", { scope: "row", role: "rowheader", class: kind, "data-title": title })
      : h("td", { role: "cell", class: kind, "data-title": title }),
  );
  return { element: h("tr", { role: "row", ...attributes }, cells), cells };
}
