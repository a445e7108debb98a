// The map of a project, as its clients get it: one picture for what is to be seen, with the legend,
// and a click for what is there.
//
// Leaflet's plane (CRS.Simple) takes the units of the project's reference system as they are, so
// any system can be shown, and no projection is needed here.

import "./trusted.js";
import { h, say } from "./dom.js";
import { span } from "./format.js";
import { firstSystem, ServiceError, Wms } from "./wms.js";
import { Refused } from "./api.js";

/** The legend of more layers than this is not asked for at once. */
const MOST_LEGENDS = 40;
const SETTLE_MS = 150;

/** The panel with the map of the project at `path`. `offer(well)`: shown at once if all is well. */
export function preview(path, name) {
  const left = new AbortController();
  const start = h("button", { type: "button" }, "Show the map");
  const body = h("div", {});
  const what = "It asks GetCapabilities, GetMap and GetLegendGraphic, as any client would.";
  const words = h("p", { class: "muted" }, what);
  let shown = false;
  async function show() {
    shown = true;
    start.hidden = words.hidden = true;
    await showMap(body, path, name, left.signal);
  }
  start.addEventListener("click", show);
  return {
    element: h("section", { class: "card" }, h("h2", {}, "Map"), words, start, body),
    offer(well) {
      if (well && !shown) {
        show();
      }
    },
    /** The page shows something else: nobody waits for the pictures any more. */
    leave: () => left.abort(),
  };
}

async function showMap(body, path, name, left) {
  const wms = new Wms(path);
  const status = h("p", { class: "muted", role: "status" }, "asking for the capabilities …");
  body.replaceChildren(status);
  try {
    const capabilities = await wms.capabilities(left);
    const system = firstSystem(capabilities.boxes);
    if (system === null || capabilities.layers.length === 0) {
      say(status, "The project serves no layers by WMS.");
      return;
    }
    await import("../leaflet/leaflet.js");
    left.throwIfAborted();
    body.replaceChildren(...new MapPanel(wms, capabilities, system, name, status, left).elements);
  } catch (error) {
    tell(status, error);
  }
}

function tell(status, error) {
  const words = wordsOf(error);
  if (words) {
    status.className = "problem";
    say(status, words);
  }
}

/** What the service said; "" if we went away ourselves; what is a defect of this page is thrown. */
function wordsOf(error) {
  if (error.name === "AbortError") {
    return "";
  }
  if (error instanceof ServiceError || error instanceof Refused) {
    return error.message;
  }
  throw error;
}

class MapPanel {
  constructor(wms, capabilities, system, name, status, left) {
    this.wms = wms;
    this.capabilities = capabilities;
    this.status = status;
    this.shown = new Set(capabilities.layers.map((layer) => layer.name));
    this.left = left;
    this.drawing = null;
    this.timer = null;
    this.plane = h("div", { class: "map", role: "application", "aria-label": `Map of ${name}` });
    this.info = h("pre", { class: "info", tabindex: 0, role: "status" }, "Click on the map to ask what is there.");
    this.legend = h("img", { class: "legend", alt: `Legend of ${name}` });
    this.centre = h("button", { type: "button" }, "What is at the centre?");
    this.centre.addEventListener("click", () => this.askAt(this.map.getCenter()));
    this.systems = h(
      "select",
      { id: "system" },
      Object.keys(capabilities.boxes).map((one) => h("option", { value: one, selected: one === system }, one)),
    );
    this.systems.addEventListener("change", () => this.begin());
    this.elements = [
      h("div", { class: "map-panel" }, h("div", { class: "map-side" }, this.plane, status), this.makeSide()),
    ];
    // Leaflet measures the element, which must be in the page by then.
    requestAnimationFrame(() => this.left.aborted || this.open());
    this.left.addEventListener("abort", () => this.close());
  }

  makeSide() {
    const boxes = this.capabilities.layers.map((layer) => {
      const box = h("input", { type: "checkbox", checked: true });
      box.addEventListener("change", () => {
        this.shown[box.checked ? "add" : "delete"](layer.name);
        this.draw();
        this.drawLegend();
      });
      return h("li", {}, h("label", {}, box, " ", layer.title));
    });
    return h(
      "div",
      { class: "map-side" },
      h("p", {}, h("label", { for: "system" }, "Reference system "), this.systems, " ", this.centre),
      h("h3", {}, "What is there"),
      this.info,
      h("details", {}, h("summary", {}, "Layers"), h("ul", { class: "layers" }, boxes)),
      h("details", { open: true }, h("summary", {}, "Legend"), this.legend),
    );
  }

  open() {
    const L = globalThis.L;
    this.map = L.map(this.plane, {
      crs: L.CRS.Simple, attributionControl: false, zoomControl: false, zoomSnap: 0.25,
      minZoom: -30, maxZoom: 30, fadeAnimation: false,
    });
    L.control.zoom({ zoomInText: "+", zoomOutText: "−" }).addTo(this.map);
    // A picture that is replaced as a whole; Leaflet moves the old one while the new one comes.
    this.picture = null;
    this.map.on("moveend", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.draw(), SETTLE_MS);
    });
    this.map.on("click", (event) => this.askAt(event.latlng));
    this.begin();
    this.drawLegend();
  }

  close() {
    clearTimeout(this.timer);
    this.drawing?.abort();
    this.map?.remove();
  }

  begin() {
    this.system = this.systems.value;
    const [left, bottom, right, top] = this.capabilities.boxes[this.system];
    this.picture?.remove();
    this.picture = null;
    this.map.fitBounds([[bottom, left], [top, right]], { animate: false });
  }

  /** The parameters of a picture of what is to be seen. */
  view() {
    const bounds = this.map.getBounds();
    const size = this.map.getSize();
    // The first layer of the capabilities lies on top, the first of GetMap below all.
    const layers = this.capabilities.layers.filter((layer) => this.shown.has(layer.name)).reverse();
    return {
      bounds,
      layers,
      parameters: {
        LAYERS: layers.map((layer) => layer.name).join(","),
        SRS: this.system,
        BBOX: [bounds.getWest(), bounds.getSouth(), bounds.getEast(), bounds.getNorth()].join(","),
        WIDTH: size.x,
        HEIGHT: size.y,
      },
    };
  }

  async draw() {
    this.drawing?.abort();
    const drawing = new AbortController();
    this.drawing = drawing;
    const { bounds, layers, parameters } = this.view();
    if (layers.length === 0) {
      this.picture?.remove();
      this.picture = null;
      return;
    }
    this.plane.setAttribute("aria-busy", "true");
    try {
      const asked = { REQUEST: "GetMap", TRANSPARENT: "TRUE", ...parameters };
      const { body, took, id } = await this.wms.picture(asked, drawing.signal);
      const url = URL.createObjectURL(body);
      const fresh = globalThis.L.imageOverlay(url, bounds, { className: "map-picture" });
      fresh.on("load", () => URL.revokeObjectURL(url));
      fresh.addTo(this.map);
      this.picture?.remove();
      this.picture = fresh;
      this.status.className = "muted";
      const size = `${parameters.WIDTH} × ${parameters.HEIGHT}`;
      this.status.replaceChildren(
        `GetMap ${size} in ${span(took)}, request `,
        h("a", { href: `#/request/${encodeURIComponent(id)}` }, id),
      );
    } catch (error) {
      tell(this.status, error);
    } finally {
      if (this.drawing === drawing) {
        this.plane.removeAttribute("aria-busy");
      }
    }
  }

  async askAt(place) {
    const { layers, parameters } = this.view();
    const names = layers.filter((layer) => layer.queryable).map((layer) => layer.name);
    if (names.length === 0) {
      say(this.info, "None of the layers that are shown can be asked.");
      return;
    }
    const point = this.map.latLngToContainerPoint(place).round();
    say(this.info, "asking …");
    try {
      const { body } = await this.wms.ask({
        REQUEST: "GetFeatureInfo", ...parameters, STYLES: "", FORMAT: "image/png",
        QUERY_LAYERS: names.join(","), INFO_FORMAT: "text/plain", FEATURE_COUNT: 10,
        X: point.x, Y: point.y,
      }, this.left);
      say(this.info, (await body.text()).trim() || "Nothing.");
    } catch (error) {
      say(this.info, wordsOf(error));
    }
  }

  async drawLegend() {
    const names = this.view().layers.map((layer) => layer.name).slice(-MOST_LEGENDS);
    this.legend.hidden = names.length === 0;
    if (names.length === 0) {
      return;
    }
    try {
      const { body } = await this.wms.picture({ REQUEST: "GetLegendGraphic", LAYER: names.join(",") }, this.left);
      const url = URL.createObjectURL(body);
      this.legend.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
      this.legend.src = url;
    } catch (error) {
      this.legend.hidden = true;
      tell(this.status, error);
    }
  }
}
