// No markup is made from strings here, and the browser sees to it (require-trusted-types-for). Let
// through: XML that is parsed and never shown, and the constant strings of Leaflet, which tries
// with the first whether the browser draws SVG.

const LEAFLET = ["<svg/>", "+", "−"];

globalThis.trustedTypes?.createPolicy("default", {
  createHTML: (markup, _, sink) =>
    sink === "DOMParser parseFromString" || LEAFLET.includes(markup) ? markup : null,
});
