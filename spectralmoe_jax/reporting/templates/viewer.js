"use strict";
(async () => {
  const about = JSON.parse(document.getElementById("about").textContent);
  const canvas = document.getElementById("view"), pen = canvas.getContext("2d");
  const opacity = document.getElementById("opacity"), layer = document.getElementById("layer");
  const answer = document.getElementById("answer");
  const [rows, columns] = about.shown;

  // 1. pictures, and the numbers in them
  const load = address => new Promise((done, failed) => {
    const picture = new Image();
    picture.onload = () => done(picture);
    picture.onerror = failed;
    picture.src = address;
  });
  const pixelsOf = picture => {
    const aside = document.createElement("canvas");
    aside.width = picture.naturalWidth;
    aside.height = picture.naturalHeight;
    const context = aside.getContext("2d", { willReadFrequently: true });
    context.drawImage(picture, 0, 0);
    return context.getImageData(0, 0, aside.width, aside.height);
  };
  const image = await load(about.image);
  const values = pixelsOf(await load(about.values));
  const experts = await Promise.all(about.layers.map(async one => pixelsOf(await load(one.picture))));

  // 2. overlays, drawn when they are first shown
  const overlays = new Map();
  const painted = (pixels, colourOf) => {
    const made = document.createElement("canvas");
    made.width = pixels.width;
    made.height = pixels.height;
    const target = new ImageData(pixels.width, pixels.height);
    for (let i = 0; i < pixels.data.length; i += 4) target.data.set(colourOf(pixels.data, i), i);
    made.getContext("2d").putImageData(target, 0, 0);
    return made;
  };
  const colours = {
    classes: (data, i) => data[i] === 255 ? [0, 0, 0, 0] : [...about.palette[data[i]], 255],
    confidence: (data, i) => data[i + 1] === 255 ? [0, 0, 0, 0] : [data[i + 1], data[i + 1], data[i + 1], 255],
    expert: (data, i) => [...about.experts[data[i] % about.experts.length], 255],  // of tokens, no pixels
  };
  const overlay = name => {
    if (!overlays.has(name)) {
      const isExpert = !(name in colours);
      overlays.set(name, painted(isExpert ? experts[Number(name)] : values, colours[isExpert ? "expert" : name]));
    }
    return overlays.get(name);
  };

  // 3. position: the picture's pixel (x, y) is at scale * (x, y) + shift on the canvas
  let scale = 1, shift = [0, 0], asked = null;
  const fit = () => {
    scale = Math.min(canvas.width / columns, canvas.height / rows);
    shift = [(canvas.width - scale * columns) / 2, (canvas.height - scale * rows) / 2];
  };
  const zoom = (factor, [x, y]) => {
    const smallest = Math.min(canvas.width / columns, canvas.height / rows) / 2;
    const next = Math.min(Math.max(scale * factor, smallest), Math.max(64, 8 * smallest));
    shift = [x - (x - shift[0]) * next / scale, y - (y - shift[1]) * next / scale];
    scale = next;
    draw();
  };
  const move = (x, y) => {
    shift = [shift[0] + x, shift[1] + y];
    draw();
  };
  const draw = () => {
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.setTransform(scale, 0, 0, scale, ...shift);
    pen.imageSmoothingEnabled = scale < 1;
    pen.drawImage(image, 0, 0, columns, rows);
    pen.globalAlpha = opacity.value / 100;
    const shown = overlay(layer.value), isPixels = layer.value in colours;
    // tokens at the right and bottom may reach beyond the scene
    const across = isPixels ? columns : shown.width * about.patch * columns / about.size[1];
    const down = isPixels ? rows : shown.height * about.patch * rows / about.size[0];
    pen.save();
    pen.beginPath();
    pen.rect(0, 0, columns, rows);
    pen.clip();
    pen.drawImage(shown, 0, 0, across, down);
    pen.restore();
    pen.globalAlpha = 1;
    if (asked) {
      pen.lineWidth = 2 / scale;
      pen.strokeStyle = "#fff";
      pen.strokeRect(asked[0] - 2 / scale, asked[1] - 2 / scale, 1 + 4 / scale, 1 + 4 / scale);
      pen.strokeStyle = "#000";
      pen.strokeRect(asked[0] - 4 / scale, asked[1] - 4 / scale, 1 + 8 / scale, 1 + 8 / scale);
    }
  };
  const place = event => {
    const box = canvas.getBoundingClientRect(), ratio = canvas.width / box.width;
    return [(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio];
  };

  // 4. what is known of a pixel
  const ask = ([x, y]) => {
    const column = Math.floor((x - shift[0]) / scale), row = Math.floor((y - shift[1]) / scale);
    if (column < 0 || row < 0 || column >= columns || row >= rows) return;
    asked = [column, row];
    const full = [(row + 0.5) * about.size[0] / rows, (column + 0.5) * about.size[1] / columns];
    const said = [`row ${Math.floor(full[0])}, column ${Math.floor(full[1])}`];
    if (about.transform) {
      const [a, b, c, d, e, f] = about.transform;
      const point = [a * full[1] + b * full[0] + c, d * full[1] + e * full[0] + f];
      said[0] += ` (${point.map(v => v.toFixed(Math.abs(v) < 1000 ? 6 : 1)).join(", ")}${about.crs && " " + about.crs})`;
    }
    const i = 4 * (row * columns + column);
    if (values.data[i] === 255) {
      said.push("no data");
    } else {
      said.push(`class: ${about.classes[values.data[i]]}`);
      said.push(`probability: ${(100 * values.data[i + 1] / 254).toFixed(0)} %`);
      const shown = layer.value in colours ? experts.length - 1 : Number(layer.value);
      if (shown >= 0) {
        const grid = experts[shown];
        const [r, c] = full.map(value => Math.floor(value / about.patch));
        said.push(`expert: ${grid.data[4 * (r * grid.width + c)] + 1} (${about.layers[shown].name})`);
      }
    }
    answer.textContent = said.join("; ");
    draw();
  };

  // 5. mouse, fingers and keys
  const fingers = new Map();
  let travelled = 0;
  canvas.addEventListener("pointerdown", event => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, place(event));
    travelled = fingers.size > 1 ? Infinity : 0;
  });
  canvas.addEventListener("pointermove", event => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const now = place(event);
    if (fingers.size === 2) {
      const [other] = [...fingers].filter(([key]) => key !== event.pointerId).map(([, point]) => point);
      zoom(Math.hypot(now[0] - other[0], now[1] - other[1]) / Math.hypot(before[0] - other[0], before[1] - other[1]) || 1, other);
    } else {
      travelled += Math.hypot(now[0] - before[0], now[1] - before[1]);
      move(now[0] - before[0], now[1] - before[1]);
    }
    fingers.set(event.pointerId, now);
  });
  canvas.addEventListener("pointerup", event => {
    if (fingers.delete(event.pointerId) && travelled < 4) ask(place(event));
  });
  canvas.addEventListener("pointercancel", event => fingers.delete(event.pointerId));
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), place(event));
  }, { passive: false });
  const middle = () => [canvas.width / 2, canvas.height / 2];
  const keys = {
    ArrowLeft: () => move(40, 0), ArrowRight: () => move(-40, 0), ArrowUp: () => move(0, 40),
    ArrowDown: () => move(0, -40), "+": () => zoom(1.3, middle()), "-": () => zoom(1 / 1.3, middle()),
    Enter: () => ask(middle()),
  };
  canvas.addEventListener("keydown", event => {
    if (!(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
  document.getElementById("closer").addEventListener("click", () => zoom(1.5, middle()));
  document.getElementById("farther").addEventListener("click", () => zoom(1 / 1.5, middle()));
  document.getElementById("whole").addEventListener("click", () => { fit(); draw(); });
  opacity.addEventListener("input", draw);
  layer.addEventListener("change", draw);

  // 6. size of the canvas, in pixels of the screen; what was in the middle stays there
  const resize = () => {
    const box = canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
    const before = middle();
    canvas.width = Math.round(box.width * ratio);
    canvas.height = Math.round(box.height * ratio);
    move(middle()[0] - before[0], middle()[1] - before[1]);
  };
  window.addEventListener("resize", resize);
  resize();
  fit();
  draw();
  document.body.dataset.ready = "yes";
})();
