"use strict";
/* The map: points on a canvas, beside lists of them. Words of the data are only ever put into text nodes. */
(() => {
  const data = JSON.parse(document.getElementById("values").textContent);
  const $ = (id) => document.getElementById(id);
  const canvas = $("plane"), context = canvas.getContext("2d");
  const sheets = [...document.querySelectorAll("img.sheet")];
  const count = data.modality.length;
  const NUM_COLOURS = 10, NUM_LISTED = 40, PICTURE_PX = 36, NEAR_PX = 14;
  const KINDS = { modality: data.modalities, split: data.splits, label: data.labels };
  const hidden = { modality: new Set(), split: new Set(), label: new Set() };
  const visible = new Uint8Array(count), found = new Uint8Array(count);
  const state = { layout: 0, colour: "modality", query: "", chosen: -1, over: -1, zoom: 1, x: 0, y: 0 };
  let colours = {}, extent, wanted = false;

  /* Names and colours of categories; labels beyond the first few, by frequency, share a colour and a switch. */
  const OTHER = -2;
  const counts = {}, shownLabels = new Map();
  for (const kind of Object.keys(KINDS)) {
    counts[kind] = new Map();
    for (const value of data[kind]) counts[kind].set(value, (counts[kind].get(value) || 0) + 1);
  }
  [...counts.label.keys()].filter((value) => value >= 0)
    .sort((a, b) => counts.label.get(b) - counts.label.get(a) || a - b)
    .slice(0, NUM_COLOURS).sort((a, b) => a - b).forEach((value, place) => shownLabels.set(value, place));
  const category = (kind, point) => {
    const value = data[kind][point];
    return kind === "label" && value >= 0 && !shownLabels.has(value) ? OTHER : value;
  };
  const nameOf = (kind, value) => value === OTHER ? "other labels" : value < 0 ? "no label" : KINDS[kind][value];
  const colourOf = (kind, value) => {
    const place = kind === "label" ? shownLabels.get(value) : value;
    return place === undefined || value < 0 ? colours.other : colours.at[place % NUM_COLOURS];
  };
  const readColours = () => {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    colours = { text: of("--text"), line: of("--line"), card: of("--card"), other: of("--other"), at: [] };
    for (let i = 0; i < NUM_COLOURS; i++) colours.at.push(of("--c" + i));
  };

  /* Places on the screen. */
  const size = () => ({ w: canvas.clientWidth, h: canvas.clientHeight });
  const measure = () => {
    extent = data.layouts[state.layout].map((axis) => {
      let low = Infinity, high = -Infinity;
      for (const value of axis) { low = Math.min(low, value); high = Math.max(high, value); }
      return [low, high];
    });
  };
  const scale = () => {
    const { w, h } = size(), [[x0, x1], [y0, y1]] = extent;
    return state.zoom * Math.min((w - 48) / (x1 - x0 || 1), (h - 48) / (y1 - y0 || 1));
  };
  const place = (point) => {
    const { w, h } = size(), s = scale(), [xs, ys] = data.layouts[state.layout];
    return [(xs[point] - state.x) * s + w / 2, h / 2 - (ys[point] - state.y) * s];
  };
  const showAll = () => {
    const [[x0, x1], [y0, y1]] = extent;
    Object.assign(state, { zoom: 1, x: (x0 + x1) / 2, y: (y0 + y1) / 2 });
    draw();
  };
  const zoomAt = (factor, px, py) => {
    const { w, h } = size(), before = scale();
    const x = state.x + (px - w / 2) / before, y = state.y - (py - h / 2) / before;
    state.zoom = Math.min(2000, Math.max(0.5, state.zoom * factor));
    const after = scale();
    state.x = x - (px - w / 2) / after;
    state.y = y + (py - h / 2) / after;
    draw();
  };
  const move = (dx, dy) => {
    const s = scale();
    state.x -= dx / s;
    state.y += dy / s;
    draw();
  };

  /* Drawing. */
  const shape = (to, kind, x, y, r) => {
    to.beginPath();
    if (kind === 0) to.arc(x, y, r, 0, 2 * Math.PI);
    else if (kind === 1) to.rect(x - r * .85, y - r * .85, r * 1.7, r * 1.7);
    else if (kind === 2) { to.moveTo(x, y - r * 1.2); to.lineTo(x + r * 1.1, y + r * .8); to.lineTo(x - r * 1.1, y + r * .8); to.closePath(); }
    else { to.moveTo(x, y - r * 1.25); to.lineTo(x + r * 1.25, y); to.lineTo(x, y + r * 1.25); to.lineTo(x - r * 1.25, y); to.closePath(); }
  };
  const picture = (to, point, x, y, side) => {
    const tile = data.tile[point];
    const sheet = tile < 0 ? undefined : sheets[Math.floor(tile / data.sheet_tiles)];
    if (!sheet || !sheet.complete || !sheet.naturalWidth) return null;
    const at = tile % data.sheet_tiles, [tw, th] = data.tile_size[tile], fit = side / Math.max(tw, th);
    const sx = (at % data.sheet_columns) * data.tile_px, sy = Math.floor(at / data.sheet_columns) * data.tile_px;
    const w = tw * fit, h = th * fit;
    to.drawImage(sheet, sx, sy, tw, th, x - w / 2, y - h / 2, w, h);
    return [w, h];
  };
  const colourAt = (point) => colourOf(state.colour, category(state.colour, point));
  const line = (from, to, dashes, colour) => {
    context.beginPath();
    context.setLineDash(dashes);
    context.strokeStyle = colour;
    context.lineWidth = 1.25;
    context.moveTo(...place(from));
    context.lineTo(...place(to));
    context.stroke();
    context.setLineDash([]);
  };
  const framed = (point, x, y, side) => {
    const drawn = picture(context, point, x, y, side);
    if (!drawn) return false;
    context.strokeStyle = colourAt(point);
    context.lineWidth = 2;
    context.strokeRect(x - drawn[0] / 2, y - drawn[1] / 2, drawn[0], drawn[1]);
    return true;
  };
  const paint = () => {
    wanted = false;
    const { w, h } = size(), ratio = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
      canvas.width = Math.round(w * ratio);
      canvas.height = Math.round(h * ratio);
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, w, h);
    const radius = Math.min(6, Math.max(2.2, 90 / Math.sqrt(count)) * Math.min(2, Math.max(1, Math.sqrt(state.zoom) / 2)));
    const focus = state.over >= 0 ? state.over : state.chosen;
    const near = [], taken = new Set(), pictures = [];
    for (let point = 0; point < count; point++) {
      if (!visible[point]) continue;
      const [x, y] = place(point);
      if (x < -40 || y < -40 || x > w + 40 || y > h + 40) continue;
      near.push([point, x, y]);
    }
    for (const [point, x, y] of near) {
      context.globalAlpha = found[point] ? .8 : .08;
      context.fillStyle = colourAt(point);
      shape(context, data.modality[point], x, y, radius);
      context.fill();
      if (!$("pictures").checked || data.tile[point] < 0 || !found[point]) continue;
      /* A picture where none is near yet; the others stay dots until there is room. */
      const column = Math.floor(x / PICTURE_PX), row = Math.floor(y / PICTURE_PX);
      let free = true;
      for (let i = -1; i <= 1 && free; i++) for (let j = -1; j <= 1 && free; j++) free = !taken.has((column + i) + "," + (row + j));
      if (free) { taken.add(column + "," + row); pictures.push([point, x, y]); }
    }
    context.globalAlpha = 1;
    for (const [point, x, y] of pictures) framed(point, x, y, PICTURE_PX);
    if (focus >= 0) {
      context.globalAlpha = .8;
      for (const other of data.neighbours[focus]) if (visible[other]) line(focus, other, [3, 4], colours.text);
      for (const other of data.partners[focus]) if (visible[other]) line(focus, other, [], colours.text);
      context.globalAlpha = 1;
      const [x, y] = place(focus);
      if (!framed(focus, x, y, PICTURE_PX * 1.6)) {
        shape(context, data.modality[focus], x, y, radius + 3);
        context.fillStyle = colourAt(focus);
        context.fill();
      }
      context.strokeStyle = colours.text;
      context.lineWidth = 2;
      context.beginPath();
      context.arc(x, y, data.tile[focus] < 0 ? radius + 7 : PICTURE_PX * 1.15, 0, 2 * Math.PI);
      context.stroke();
    }
  };
  const draw = () => {
    if (wanted) return;
    wanted = true;
    requestAnimationFrame(paint);
  };

  /* Elements. */
  const element = (tag, text, kind) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const icon = (side, fill) => {
    const made = element("canvas"), ratio = window.devicePixelRatio || 1;
    made.width = made.height = side * ratio;
    made.style.width = made.style.height = side + "px";
    made.setAttribute("aria-hidden", "true");
    const to = made.getContext("2d");
    to.scale(ratio, ratio);
    fill(to);
    return made;
  };
  const iconOf = (point, side) => icon(side, (to) => {
    if (picture(to, point, side / 2, side / 2, side)) return;
    to.fillStyle = colourAt(point);
    shape(to, data.modality[point], side / 2, side / 2, Math.min(7, side / 5));
    to.fill();
  });
  const isText = (point) => data.caption[point] !== "";
  const titleOf = (point) => {
    if (isText(point)) return data.caption[point];
    const texts = data.partners[point].filter(isText);
    if (!texts.length) return data.id[point];
    return data.caption[texts.reduce((one, other) => data.num_partners[other] < data.num_partners[one] ? other : one)];
  };
  const rowOf = (point, number) => {
    const item = element("li"), button = element("button");
    button.type = "button";
    const words = element("bdi", titleOf(point));
    words.dir = "auto";
    button.append(iconOf(point, 32), words);
    if (number !== undefined) button.append(element("span", number.toFixed(3), "score"));
    button.setAttribute("aria-label", data.modalities[data.modality[point]] + ": " + titleOf(point) + (number === undefined ? "" : ", distance " + number.toFixed(3)));
    button.addEventListener("click", () => choose(point, true));
    item.append(button);
    return item;
  };
  const section = (into, title, rows) => {
    if (!rows.length) return;
    const list = element("ul", undefined, "rows");
    list.append(...rows);
    into.append(element("h3", title), list);
  };
  const describe = (point) => {
    const panel = $("chosen");
    panel.replaceChildren(element("h2", state.over >= 0 && state.over !== state.chosen ? "Under the pointer" : "Chosen point"));
    if (point < 0) {
      panel.append(element("p", "Point at something on the map, or choose it in the list below.", "soft small"));
      return;
    }
    const top = element("div", undefined, "top"), words = element("div");
    const title = element("bdi", isText(point) ? data.caption[point] : data.id[point], "words");
    title.dir = "auto";
    const facts = element("p", undefined, "facts");
    const told = [data.modalities[data.modality[point]], data.splits[data.split[point]]];
    if (data.label[point] >= 0) told.push("label " + data.labels[data.label[point]]);
    if (isText(point)) told.push(data.id[point]);
    told.forEach((word, i) => { if (i) facts.append(" · "); facts.append(element("bdi", word)); });
    words.append(title, facts);
    top.append(iconOf(point, data.tile[point] < 0 ? 32 : 112), words);
    panel.append(top);
    const partners = data.partners[point], total = data.num_partners[point];
    const what = isText(point) ? "Belongs to" : "Its texts";
    section(panel, total > partners.length ? what + " (" + partners.length + " of " + total + ")" : what, partners.map((other) => rowOf(other)));
    section(panel, "Nearest points, and their distance", data.neighbours[point].map((other, i) => rowOf(other, data.distances[point][i])));
  };
  const choose = (point, bring) => {
    state.chosen = point;
    state.over = -1;
    if (point >= 0 && bring) {
      const [x, y] = place(point), { w, h } = size();
      if (x < 20 || y < 20 || x > w - 20 || y > h - 20) {
        state.x = data.layouts[state.layout][0][point];
        state.y = data.layouts[state.layout][1][point];
      }
    }
    describe(point);
    draw();
  };

  /* What is drawn. */
  const folded = (text) => text.toLocaleLowerCase();
  const wordsOf = Array.from({ length: count }, (_, point) => folded(
    [data.caption[point], data.id[point], data.label[point] < 0 ? "" : data.labels[data.label[point]]].join("\n")));
  const select = () => {
    const query = folded(state.query.trim());
    const has = (point) => wordsOf[point].includes(query);
    let drawn = 0, matches = [];
    for (let point = 0; point < count; point++) {
      visible[point] = Object.keys(KINDS).every((kind) => !hidden[kind].has(category(kind, point))) ? 1 : 0;
      found[point] = has(point) || (!isText(point) && data.partners[point].some(has)) ? 1 : 0;
      drawn += visible[point];
      if (visible[point] && found[point]) matches.push(point);
    }
    $("status").textContent = (query ? matches.length.toLocaleString("en") + " found, " : "") + drawn.toLocaleString("en") + " of " + count.toLocaleString("en") + " points shown";
    $("list").replaceChildren(...matches.slice(0, NUM_LISTED).map((point) => rowOf(point)));
    const rest = matches.length - NUM_LISTED;
    $("more").textContent = rest > 0 ? "and " + rest.toLocaleString("en") + " more; search to narrow them down" : "";
    draw();
  };
  const legend = () => {
    $("legend").replaceChildren();
    for (const kind of Object.keys(KINDS)) {
      const values = [...new Set(data[kind].map((_, point) => category(kind, point)))].sort((a, b) => (a < 0) - (b < 0) || a - b);
      if (kind !== "modality" && values.length === 1) {
        $("colour").querySelector("[value=" + kind + "]").disabled = true;
        continue;
      }
      const group = element("fieldset");
      group.append(element("legend", kind));
      for (const value of values) {
        const label = element("label"), box = element("input");
        box.type = "checkbox";
        box.checked = !hidden[kind].has(value);
        box.addEventListener("change", () => { hidden[kind][box.checked ? "delete" : "add"](value); select(); });
        const total = value === OTHER ? [...counts.label].reduce((sum, [v, n]) => sum + (v >= 0 && !shownLabels.has(v) ? n : 0), 0) : counts[kind].get(value);
        const swatch = icon(16, (to) => {
          to.fillStyle = state.colour === kind ? colourOf(kind, value) : colours.other;
          shape(to, kind === "modality" ? value : 1, 8, 8, 5);
          to.fill();
        });
        label.append(box);
        if (kind === "modality" || state.colour === kind) label.append(swatch);
        label.append(element("bdi", nameOf(kind, value)), element("span", total.toLocaleString("en"), "score"));
        group.append(label);
      }
      $("legend").append(group);
    }
  };
  const refresh = () => { readColours(); legend(); select(); describe(state.chosen); };

  /* Pointer, touch and keys. */
  const local = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const pointAt = (px, py) => {
    let best = -1, least = NEAR_PX * NEAR_PX;
    for (let point = 0; point < count; point++) {
      if (!visible[point] || !found[point]) continue;
      const [x, y] = place(point), distance = (x - px) ** 2 + (y - py) ** 2;
      if (distance < least) { least = distance; best = point; }
    }
    return best;
  };
  const fingers = new Map();
  let travelled = 0;
  canvas.addEventListener("pointerdown", (event) => {
    if (!fingers.size) travelled = 0;
    fingers.set(event.pointerId, local(event));
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = local(event), last = fingers.get(event.pointerId);
    if (!last) {
      const over = pointAt(x, y);
      if (over !== state.over) { state.over = over; describe(over >= 0 ? over : state.chosen); draw(); }
      return;
    }
    travelled += Math.abs(x - last[0]) + Math.abs(y - last[1]);
    if (fingers.size === 2) {
      const other = [...fingers].find(([id]) => id !== event.pointerId)[1];
      const before = Math.hypot(last[0] - other[0], last[1] - other[1]), after = Math.hypot(x - other[0], y - other[1]);
      if (before > 4 && after > 4) zoomAt(after / before, (x + other[0]) / 2, (y + other[1]) / 2);
      move((x - last[0]) / 2, (y - last[1]) / 2);
    } else if (travelled > 4) move(x - last[0], y - last[1]);
    fingers.set(event.pointerId, [x, y]);
  });
  const lift = (event) => {
    const [x, y] = local(event);
    if (event.type === "pointerup" && fingers.size === 1 && travelled <= 4) choose(pointAt(x, y), false);
    fingers.delete(event.pointerId);
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", () => { if (state.over >= 0) { state.over = -1; describe(state.chosen); draw(); } });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const step = Math.max(-240, Math.min(240, event.deltaMode === 1 ? event.deltaY * 32 : event.deltaY));
    zoomAt(Math.exp(-step / 400), ...local(event));
  }, { passive: false });
  const zoomMiddle = (factor) => { const { w, h } = size(); zoomAt(factor, w / 2, h / 2); };
  const KEYS = {
    ArrowLeft: () => move(60, 0), ArrowRight: () => move(-60, 0), ArrowUp: () => move(0, 60), ArrowDown: () => move(0, -60),
    "+": () => zoomMiddle(1.4), "=": () => zoomMiddle(1.4), "-": () => zoomMiddle(1 / 1.4), 0: showAll, Escape: () => choose(-1, false),
  };
  canvas.addEventListener("keydown", (event) => {
    const act = event.ctrlKey || event.metaKey || event.altKey ? undefined : KEYS[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  $("closer").addEventListener("click", () => zoomMiddle(1.4));
  $("farther").addEventListener("click", () => zoomMiddle(1 / 1.4));
  $("all").addEventListener("click", showAll);
  $("pictures").addEventListener("change", draw);
  $("centred").addEventListener("change", () => { state.layout = $("centred").checked ? 1 : 0; measure(); showAll(); });
  $("colour").addEventListener("change", () => { state.colour = $("colour").value; refresh(); });
  $("search").addEventListener("input", () => { state.query = $("search").value; select(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { refresh(); draw(); });
  new ResizeObserver(draw).observe(canvas);

  if (data.splits.length > 1) { state.colour = "split"; }
  $("colour").value = state.colour;
  readColours();
  measure();
  showAll();
  refresh();
  Promise.all(sheets.map((sheet) => sheet.decode().catch(() => null))).then(refresh);
})();
