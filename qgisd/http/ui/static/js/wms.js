// The public WMS of a project, asked as its clients ask it. Version 1.1.1: its axes are x, y in
// every reference system.

import { ask } from "./api.js";

/** What the service answered instead of what was asked for. */
export class ServiceError extends Error {}

export class Wms {
  constructor(path) {
    this.path = path;
  }

  /** One request: {response, took in seconds, id}. Raises ServiceError with the service's words. */
  async ask(parameters, signal) {
    const query = new URLSearchParams({ SERVICE: "WMS", VERSION: "1.1.1", ...parameters });
    const begun = performance.now();
    const response = await ask(`${this.path}?${query}`, { signal, cache: "default" });
    const body = await response.blob();
    const id = response.headers.get("X-Request-Id") ?? "";
    const took = (performance.now() - begun) / 1000;
    const kind = response.headers.get("Content-Type") ?? "";
    if (!response.ok || /xml/.test(kind)) {
      const text = await body.text();
      const problem = response.ok && !/ServiceException/.test(text) ? "" : errorOf(text);
      if (problem || !response.ok) {
        throw new ServiceError(`${parameters.REQUEST}: ${problem || `status ${response.status}`} (request ${id})`);
      }
    }
    return { body, took, id };
  }

  async capabilities(signal) {
    const { body } = await this.ask({ REQUEST: "GetCapabilities" }, signal);
    return readCapabilities(await body.text());
  }

  picture(parameters, signal) {
    return this.ask({ FORMAT: "image/png", STYLES: "", ...parameters }, signal);
  }
}

function parse(text) {
  return new DOMParser().parseFromString(text, "application/xml");
}

function errorOf(text) {
  const found = parse(text).querySelector("ServiceException, ExceptionText");
  return (found?.textContent ?? text).trim().slice(0, 1000);
}

/** {title, boxes: {SRS: [minx, miny, maxx, maxy]}, layers: [{name, title, queryable}]}. */
export function readCapabilities(text) {
  const root = parse(text).querySelector("Capability > Layer");
  if (root === null) {
    throw new ServiceError("GetCapabilities: no layers in the answer");
  }
  const boxes = {};
  for (const box of root.querySelectorAll(":scope > BoundingBox")) {
    const corners = ["minx", "miny", "maxx", "maxy"].map((name) => Number(box.getAttribute(name)));
    if (corners.every(Number.isFinite) && corners[0] < corners[2] && corners[1] < corners[3]) {
      boxes[box.getAttribute("SRS")] = corners;
    }
  }
  const child = (layer, name) => layer.querySelector(`:scope > ${name}`)?.textContent ?? "";
  const leaves = [...root.querySelectorAll("Layer")].filter(
    (layer) => layer.querySelector(":scope > Layer") === null && child(layer, "Name"),
  );
  const layers = leaves.map((layer) => ({
    name: child(layer, "Name"),
    title: child(layer, "Title") || child(layer, "Name"),
    queryable: layer.getAttribute("queryable") === "1",
  }));
  return { title: child(root, "Title"), boxes, layers };
}

/** The reference system to begin with: web maps' own, unless the project reaches the poles. */
export function firstSystem(boxes) {
  const degrees = boxes["EPSG:4326"];
  const polar = degrees && (degrees[1] < -85.06 || degrees[3] > 85.06);
  const wanted = polar ? ["EPSG:4326"] : ["EPSG:3857", "EPSG:4326"];
  return wanted.find((system) => system in boxes) ?? Object.keys(boxes)[0] ?? null;
}
