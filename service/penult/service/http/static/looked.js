"use strict";
// Draws over the photo where the default scorer looked: what each place adds to the score of a class.

// As in penult.bundle.overlay: orange for the class, blue against it, fullest at the limit.
const FOR = [235, 96, 0], AGAINST = [0, 105, 210], OPACITY = 0.65, GROWTH = 0.8, OUTSIDE = "rgba(0, 0, 0, .6)";
const FINER = 16, LONGEST = 800;

// The values [height * width] on a grid that is FINER times as fine, linear between the middles of places.
function finer(values, width, height) {
  const found = [], last = (at, size) => Math.min(Math.max((at + 0.5) / FINER - 0.5, 0), size - 1);
  for (let row = 0; row < FINER * height; row++) {
    const y = last(row, height), top = Math.floor(y), low = Math.min(top + 1, height - 1), down = y - top;
    for (let column = 0; column < FINER * width; column++) {
      const x = last(column, width), left = Math.floor(x), right = Math.min(left + 1, width - 1), across = x - left;
      const at = (line) => values[line * width + left] * (1 - across) + values[line * width + right] * across;
      found.push(at(top) * (1 - down) + at(low) * down);
    }
  }
  return found;
}

function coloured(values, width, height, limit) {
  const canvas = make("canvas", { width: FINER * width, height: FINER * height }), brush = canvas.getContext("2d");
  const pixels = brush.createImageData(canvas.width, canvas.height);
  finer(values, width, height).forEach((value, n) => {
    const share = Math.min(Math.abs(value) / limit, 1);
    pixels.data.set([...(value < 0 ? AGAINST : FOR), Math.round(255 * OPACITY * share ** GROWTH)], 4 * n);
  });
  brush.putImageData(pixels, 0, 0);
  return canvas;
}

const signed = (value) => `${value < 0 ? "−" : "+"}${Number(Math.abs(value).toPrecision(2))}`;
const term = (value) => `${value < 0 ? "−" : "+"}${number(Math.abs(value))}`;

// A photo that a map can be drawn over: `node` is what the page shows, show() draws, clear() shows the photo alone.
function mappable(photo) {
  const canvas = make("canvas", { class: "map", role: "img" }), scale = make("div", { class: "range", hidden: "" });
  const over = make("div", { class: "over" }, photo, canvas), node = make("div", {}, over, scale);
  const frame = { node, photo, by: null, clear, show };
  canvas.hidden = true;

  function clear() {
    canvas.hidden = scale.hidden = true;
    over.classList.remove("on");
    frame.by = null;
  }

  function show(by, { scorer, width, height, area, classes }, place) {
    const { label, values, offset } = classes[place], limit = Math.max(...values.map(Math.abs)) || 1;
    const scaled = LONGEST / Math.max(photo.naturalWidth, photo.naturalHeight);
    canvas.width = Math.max(1, Math.round(scaled * photo.naturalWidth));
    canvas.height = Math.max(1, Math.round(scaled * photo.naturalHeight));
    const brush = canvas.getContext("2d"), [left, top, right, bottom] = area.map((at) => scaled * at);
    brush.fillStyle = OUTSIDE;
    brush.fillRect(0, 0, canvas.width, canvas.height);
    brush.clearRect(left, top, right - left, bottom - top);
    brush.drawImage(coloured(values, width, height, limit), left, top, right - left, bottom - top);
    canvas.setAttribute("aria-label", `orange places count for ${label}, blue ones against it`);
    const places = values.reduce((sum, value) => sum + value, 0);
    scale.replaceChildren(make("div", { class: "hues" }), make("p", { class: "ends quiet" },
      make("span", {}, `${signed(-limit)} against ${label}`), make("span", {}, "0"), make("span", {}, `for ${label} ${signed(limit)}`)),
    make("p", { class: "quiet" }, `What each place adds to the score of ${scorer}: ${number(places + offset)} = places ${term(places)}, offset ${term(offset)}.`));
    canvas.hidden = scale.hidden = false;
    over.classList.add("on");
    frame.by = by;
  }

  return frame;
}

// A button that shows the map of the best class, with a choice of others; or why there is none.
function looked(data, frame) {
  if (!data.maps) return data.why_no_maps ? make("p", { class: "quiet" }, `It cannot show where it looked: ${data.why_no_maps}.`) : null;
  const button = make("button", { type: "button", "aria-pressed": "false" }, "where it looked");
  const choice = make("select", { "aria-label": "the class of the map" }, ...data.maps.classes.map((each, place) => make("option", { value: place }, each.label)));
  const draw = () => {
    frame.by?.setAttribute("aria-pressed", "false");
    frame.show(button, data.maps, Number(choice.value));
    button.setAttribute("aria-pressed", "true");
  };
  button.addEventListener("click", () => {
    if (frame.by !== button) return draw();
    button.setAttribute("aria-pressed", "false");
    return frame.clear();
  });
  choice.addEventListener("change", draw);
  const note = data.why_no_maps ? make("span", { class: "quiet" }, `of ${data.maps.scorer}; ${data.default_scorer} has no maps: ${data.why_no_maps}`) : null;
  const node = make("p", { class: "looked" }, button, " ", choice, note);
  frame.photo.addEventListener("error", () => node.remove());  // nothing to draw over
  return node;
}
