"use strict";
// How the token microscope measures and paints: values of all tokens with their scales, as colours on a canvas and as text.
window.jaxvitTokenView = (() => {
  const tokens = window.jaxvitTokens;

  // Ramps of colours, from low to high; both can be told apart by readers who are colour-blind.
  const SEQUENTIAL = ramp("000004 1c1044 4f127b 812581 b5367a e55064 fb8761 fec287 fcfdbf");
  const DIVERGING = ramp("2166ac 4393c3 92c5de d1e5f0 f7f7f7 fddbc7 f4a582 d6604d b2182b");
  const HIDDEN = 0.35; // opacity of the lowest values over the image, as a share of that of the highest

  // Values smaller than these do not fill the scale: tiny changes would look large, and codes are not exact.
  const LEAST = { attention: 0.005, cosine: 0.02, colours: 0.02, norm: 0.03 };
  const LOWEST_RATIO = -20; // log2 of the norm's ratio where the token has become zeros

  // What can be shown, in order: its name, and what its values are of the chosen token.
  const QUANTITIES = {
    attention: { name: "attention", title: "attention from it" },
    cosine: { name: "cosine", title: "cosine to it" },
    colours: { name: "PCA colours", title: "PCA colours" },
    norm: { name: "norm", title: "norm" },
  };

  function ramp(stops) {
    const colours = stops.split(" ").map((stop) => [0, 2, 4].map((i) => parseInt(stop.slice(i, i + 2), 16)));
    return Array.from({ length: 256 }, (_, step) => {
      const place = (step / 255) * (colours.length - 1);
      const first = Math.min(Math.floor(place), colours.length - 2);
      return colours[first].map((low, channel) => Math.round(low + (place - first) * (colours[first + 1][channel] - low)));
    });
  }

  // The largest size of values of the patches: CLS and registers, which print theirs, do not set a scale.
  function largest(model, ...arrays) {
    let most = 0;
    for (const array of arrays) {
      for (let token = model.prefix; array && token < array.length; token++) {
        if (Number.isFinite(array[token])) most = Math.max(most, Math.abs(array[token]));
      }
    }
    return most;
  }

  const difference = (after, before) => after && before && after.map((value, token) => value - before[token]);
  const sequential = (low, high) => ({ low, high, ramp: SEQUENTIAL });
  const diverging = (reach) => ({ low: -reach, high: reach, ramp: DIVERGING });

  // All that is shown of one token at one block: {quantity: {full, ablated, change: {values, scale} or {pixels}}}; values are null where
  // they were not kept. `view` has layer, condition (an index), head (null for their mean) and token.
  function measure(model, codes, headCodes, view) {
    const { layer, condition, head, token } = view;
    const source = head === null ? codes : headCodes;
    const pair = (of) => [of(0), of(condition)];
    const [weights, ablatedWeights] = pair((c) => tokens.attention(model, source, c, layer, head, token));
    const [cosine, ablatedCosine] = pair((c) => tokens.cosines(model, codes, c, layer, token));
    const [norm, ablatedNorm] = pair((c) => tokens.norms(model, codes, c, layer));
    const [pixels, ablatedPixels] = pair((c) => tokens.colours(model, codes, c, layer));
    return {
      attention: compared(
        [weights, ablatedWeights],
        sequential(0, Math.max(LEAST.attention, largest(model, weights, ablatedWeights))),
        (change) => diverging(Math.max(LEAST.attention, largest(model, change))),
      ),
      cosine: compared([cosine, ablatedCosine], diverging(1), (change) =>
        diverging(Math.max(LEAST.cosine, 2 * model.cosineError, largest(model, change))),
      ),
      colours: {
        full: { pixels },
        ablated: { pixels: ablatedPixels },
        change: movementOf(model, codes, condition, layer),
      },
      norm: {
        ...compared([norm, ablatedNorm], normScale(model, norm, ablatedNorm), () => null),
        change: normChange(model, norm, ablatedNorm),
      },
    };
  }

  function compared([full, ablated], scale, changeScale) {
    const change = difference(ablated, full);
    return { full: { values: full, scale }, ablated: { values: ablated, scale }, change: { values: change, scale: changeScale(change) } };
  }

  function movementOf(model, codes, condition, layer) {
    const values = tokens.movement(model, codes, condition, layer);
    return { values, scale: sequential(0, Math.max(LEAST.colours, 2 * model.cosineError, largest(model, values))) };
  }

  function normScale(model, ...norms) {
    const ofPatches = norms.flatMap((array) => [...array.subarray(model.prefix)]);
    return sequential(Math.min(...ofPatches), Math.max(...ofPatches));
  }

  // The base-2 logarithm of the ratio; NaN where the token is zeros in full.
  function normChange(model, before, after) {
    const values = after.map((value, token) => (before[token] ? Math.max(LOWEST_RATIO, Math.log2(value / before[token])) : NaN));
    const become = values.map((value) => (value <= LOWEST_RATIO ? NaN : value)); // zeros do not set the scale: nothing else would show
    return { values, scale: diverging(Math.max(LEAST.norm, largest(model, become))) };
  }

  // A value as text.
  function said(quantity, view, value) {
    if (!Number.isFinite(value)) return "not defined: zeros";
    const sign = value < 0 ? "−" : "+";
    if (view !== "change") {
      return {
        attention: () => `${(100 * value).toFixed(2)} %`,
        cosine: () => value.toFixed(2).replace("-", "−"),
        norm: () => short(value),
      }[quantity]();
    }
    return {
      attention: () => `${sign}${Math.abs(100 * value).toFixed(2)} points`,
      cosine: () => `${sign}${Math.abs(value).toFixed(2)}`,
      colours: () => `1 − cosine = ${value.toFixed(3)}`,
      norm: () => `× ${value <= LOWEST_RATIO ? 0 : (2 ** value).toFixed(2)}`,
    }[quantity]();
  }

  const short = (value) => (value === 0 ? "0" : value.toPrecision(3).includes("e") ? value.toFixed(0) : value.toPrecision(3));

  // The colour of a token as [red, green, blue]; null where its value is not defined.
  function colourOf({ values, pixels, scale }, token) {
    if (pixels) return [...pixels.subarray(3 * token, 3 * token + 3)];
    if (!Number.isFinite(values[token])) return null;
    return scale.ramp[Math.round(255 * shareOf(scale, values[token]))];
  }

  const shareOf = ({ low, high }, value) => Math.max(0, Math.min(1, (value - low) / (high - low || 1)));
  const css = (colour) => `rgb(${colour.join(",")})`;
  const gradient = ({ ramp }) => `linear-gradient(90deg, ${[0, 32, 64, 96, 128, 160, 192, 224, 255].map((i) => css(ramp[i])).join(", ")})`;

  // Black or white, whichever can be read on a colour (relative luminance of WCAG).
  function inkOn(colour) {
    const [red, green, blue] = colour.map((part) => (part <= 10 ? part / 3294 : ((part / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000" : "#fff";
  }

  // Paints the patches of a measured view. `options`: image (under the map) and opacity; chosen and pointed tokens; strip, the height of a
  // row of CLS and registers below.
  function paint(canvas, model, shown, options = {}) {
    const [rows, columns] = model.grid;
    const width = canvas.clientWidth;
    if (!width) return;
    const height = Math.round((width * rows) / columns);
    const strip = options.strip ? options.strip + 3 : 0;
    const context = prepared(canvas, width, height + strip);
    if (options.image?.naturalWidth) context.drawImage(options.image, 0, 0, width, height);
    if (shown.values || shown.pixels) paintPatches(context, model, shown, width, height, options);
    else paintNotKept(context, width, height);
    if (options.strip) paintStrip(context, model, shown, width, height + 3, options.strip);
    for (const [token, colour, thickness] of [[options.pointed, "#fff", 1], [options.chosen, "#31e981", options.image ? 2.5 : 1.5]]) {
      if (token >= 0) outline(context, tokenBox(model, token, width, height, options.strip), colour, thickness);
    }
  }

  // The context of a canvas whose pixels are the device's.
  function prepared(canvas, width, height) {
    const density = window.devicePixelRatio || 1;
    const [across, down] = [Math.round(width * density), Math.round(height * density)];
    if (canvas.width !== across || canvas.height !== down) Object.assign(canvas, { width: across, height: down });
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    context.setTransform(density, 0, 0, density, 0, 0);
    context.clearRect(0, 0, width, height);
    return context;
  }

  const small = document.createElement("canvas"); // one pixel a patch

  function paintPatches(context, model, shown, width, height, { image, opacity = 1 }) {
    const [rows, columns] = model.grid;
    Object.assign(small, { width: columns, height: rows });
    const pixels = small.getContext("2d").createImageData(columns, rows);
    for (let patch = 0; patch < rows * columns; patch++) {
      const token = patch + model.prefix;
      const colour = colourOf(shown, token);
      const clear = image && shown.scale?.ramp === SEQUENTIAL ? HIDDEN + (1 - HIDDEN) * shareOf(shown.scale, shown.values[token]) : 1;
      if (colour) pixels.data.set([...colour, 255 * (image ? opacity * clear : 1)], 4 * patch);
    }
    small.getContext("2d").putImageData(pixels, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, width, height);
    context.imageSmoothingEnabled = true;
  }

  function paintNotKept(context, width, height) {
    context.fillStyle = "rgba(128, 128, 128, .55)";
    context.fillRect(0, 0, width, height);
    context.fillStyle = "#fff";
    context.font = `600 ${width > 200 ? 16 : 12}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText("not kept", width / 2, height / 2);
  }

  function paintStrip(context, model, shown, width, top, height) {
    const across = width / Math.max(model.prefix, 5);
    context.font = "600 11px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (let token = 0; token < model.prefix; token++) {
      const colour = (shown.values || shown.pixels ? colourOf(shown, token) : null) ?? [128, 128, 128];
      context.fillStyle = css(colour);
      context.fillRect(token * across, top, across - 2, height);
      context.fillStyle = inkOn(colour);
      const name = shortName(model, token);
      const text = context.measureText(name).width < across - 1 ? name : name[0];
      context.fillText(text, (token + 0.5) * across - 1, top + height / 2 + 0.5);
    }
  }

  function tokenBox(model, token, width, height, strip) {
    const [rows, columns] = model.grid;
    const patch = token - model.prefix;
    if (patch >= 0) {
      const [across, down] = [width / columns, height / rows];
      return [(patch % columns) * across, Math.floor(patch / columns) * down, across, down];
    }
    const across = width / Math.max(model.prefix, 5);
    return strip ? [token * across, height + 3, across - 2, strip] : null;
  }

  function outline(context, box, colour, thickness) {
    if (!box) return;
    for (const [stroke, lineWidth] of [["#000", thickness + 2], [colour, thickness]]) {
      Object.assign(context, { strokeStyle: stroke, lineWidth });
      context.strokeRect(...box);
    }
  }

  // The token at a place of a canvas, -1 where there is none.
  function tokenAt(canvas, model, x, y, strip = 0) {
    const [rows, columns] = model.grid;
    const width = canvas.clientWidth;
    const height = Math.round((width * rows) / columns);
    if (x < 0 || y < 0 || x >= width) return -1;
    if (y < height) return model.prefix + Math.floor((y / height) * rows) * columns + Math.floor((x / width) * columns);
    const token = Math.floor(x / (width / Math.max(model.prefix, 5)));
    return strip && y >= height + 3 && y < height + 3 + strip && token < model.prefix ? token : -1;
  }

  function shortName(model, token) {
    if (token < model.prefix) return token ? `r${token}` : "CLS";
    const patch = token - model.prefix;
    return `patch ${Math.floor(patch / model.grid[1]) + 1},${(patch % model.grid[1]) + 1}`;
  }

  // "CLS", "r1", "patch in row 4, column 5".
  function longName(model, token) {
    return shortName(model, token).replace(/patch (\d+),(\d+)/, "patch in row $1, column $2");
  }

  // "CLS 1.2 %, registers 3.0 %, patches 95.8 %", and what is lost where the sum is below 1.
  function sharesText(model, weights) {
    const sum = (from, to) => weights.subarray(from, to).reduce((total, weight) => total + weight, 0);
    const parts = [["CLS", 0, 1], ["registers", 1, model.prefix], ["patches", model.prefix, model.tokens]];
    const texts = parts.filter(([, from, to]) => to > from).map(([name, from, to]) => `${name} ${(100 * sum(from, to)).toFixed(1)} %`);
    const lost = 1 - sum(0, model.tokens);
    return texts.join(", ") + (lost > 0.0005 ? ` (${(100 * lost).toFixed(1)} % lost to the cut)` : "");
  }

  // The token beside another one; CLS and registers are a row below the patches. Null for keys that lead nowhere.
  function neighbour(model, token, key) {
    const [prefix, [, columns]] = [model.prefix, model.grid];
    const last = model.tokens - 1;
    if (token < prefix) {
      const above = last + 1 - columns + Math.min(columns - 1, Math.round((token / prefix) * columns));
      const [left, right] = [Math.max(0, token - 1), Math.min(prefix - 1, token + 1)];
      return { ArrowLeft: left, ArrowRight: right, ArrowUp: above, ArrowDown: token }[key] ?? null;
    }
    const [left, right] = [Math.max(prefix, token - 1), Math.min(last, token + 1)];
    const above = token - columns < prefix ? token : token - columns;
    const inPrefix = Math.min(prefix - 1, Math.floor((((token - prefix) % columns) / columns) * prefix));
    const below = token + columns > last ? inPrefix : token + columns;
    return { ArrowLeft: left, ArrowRight: right, ArrowUp: above, ArrowDown: below }[key] ?? null;
  }

  // An element with its fields and children.
  function element(tag, fields = {}, ...children) {
    const made = Object.assign(document.createElement(tag), fields);
    made.append(...children);
    return made;
  }

  // Gives a select its options, of [value, text].
  function fill(select, options, value) {
    select.replaceChildren(...options.map(([key, text]) => element("option", { value: key, textContent: text })));
    select.value = value;
    select.disabled = options.length < 2;
  }

  // The small maps with their titles and scales, for `views` of {name: text}: CSS lays them out, quantities across and views down on wide
  // screens.
  function mapGrid(views) {
    const cells = Object.entries(QUANTITIES).flatMap(([quantity, { title }], column) => [
      titleOf(quantity, title, column),
      ...Object.keys(views).map((name, row) => {
        const canvas = element("canvas", { className: "ms-map" });
        Object.assign(canvas.dataset, { quantity, view: name });
        const cell = element("div", { className: "ms-cell", style: `--column: ${column}; --row: ${row}` }, canvas);
        if (name === "change") cell.append(scaleBar(quantity, "change"));
        return cell;
      }),
    ]);
    const names = Object.entries(views).map(([name, text], row) => {
      const className = name === "ablated" ? "ms-name ms-condition-name" : "ms-name";
      return element("div", { className, style: `--row: ${row}`, textContent: text });
    });
    return [...names, ...cells];
  }

  function titleOf(quantity, title, column) {
    const fields = { className: "ms-title", style: `--column: ${column}` };
    return element("div", fields, element("b", { textContent: title }), scaleBar(quantity, "full"));
  }

  function scaleBar(quantity, name) {
    const bar = element("div", { className: "ms-scale" });
    Object.assign(bar.dataset, { quantity, view: name });
    return bar;
  }

  return {
    QUANTITIES,
    ...{ measure, said, colourOf, inkOn, css, gradient, sharesText, shortName, longName },
    ...{ paint, tokenAt, tokenBox, neighbour },
    ...{ element, fill, mapGrid },
  };
})();
