"use strict";
// The data of the token microscope: opens the chunks of the page and decodes them. It draws nothing.
//
// A chunk is base64 of zlib of arrays; which ones, `experiments/report/token_data.py` says. What their codes stand for,
// `experiments/features/token_codes.py` says. Arrays are little-endian, as every browser's typed arrays are.
window.jaxvitTokens = (() => {
  const chunks = new Map(); // promises of opened chunks, by id

  // The bytes of a chunk, or null where the page has none of this id. Its element is removed: the text is needed once.
  async function inflate(id) {
    const element = document.getElementById(id);
    if (!element) return null;
    const bytes = Uint8Array.from(atob(element.textContent), (character) => character.charCodeAt(0));
    element.remove();
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  }

  // A chunk that is opened once, by whoever asks first.
  function opened(id, decode) {
    if (!chunks.has(id)) chunks.set(id, inflate(id).then((buffer) => buffer && decode(buffer)));
    return chunks.get(id);
  }

  // Takes one array after the other from a buffer.
  function reader(buffer) {
    let offset = 0;
    return (Type, size) => {
      const array = new Type(buffer, offset, size);
      offset += array.byteLength;
      return array;
    };
  }

  // Conditions after the first are stored minus the first; typed arrays add modulo their range, as they were subtracted.
  function restored(array, conditions) {
    const size = array.length / Math.max(conditions, 1);
    for (let i = size; i < array.length; i++) array[i] += array[i % size];
    return array;
  }

  // Codes of an image: norms [C][L][T], sums [A][L][T], attention [A][L][T][T], features [C][L][D][T], colours [C][L][3][T].
  function image(model, number) {
    const [C, A, L, T] = [model.conditions.length, model.attention.length, model.layers, model.tokens];
    return opened(`d.${model.id}.${number}`, (buffer) => {
      const take = reader(buffer);
      return {
        norms: restored(take(Uint16Array, C * L * T), C),
        sums: restored(take(Uint16Array, A * L * T), A),
        attention: restored(take(Uint8Array, A * L * T * T), A),
        features: restored(take(Int8Array, C * L * model.dims * T), C),
        colours: restored(take(Uint8Array, C * L * 3 * T), C),
      };
    });
  }

  // Codes of the heads of an image: sums [A][L][H][T], attention [A][L][H][T][T]; null where they were not kept.
  function heads(model, number) {
    const [A, L, H, T] = [model.headAttention.length, model.layers, model.heads, model.tokens];
    return opened(`d.${model.id}.${number}.h`, (buffer) => {
      const take = reader(buffer);
      return { sums: restored(take(Uint16Array, A * L * H * T), A), attention: restored(take(Uint8Array, A * L * H * T * T), A) };
    });
  }

  // Attention of one query over all tokens, as shares of 1: its sum is below 1 where a cut loses weight. Null where it was not kept.
  // `codes` are those of `image` (head null) or of `heads`.
  function attention(model, codes, condition, layer, head, token) {
    const kept = (head === null ? model.attention : model.headAttention).indexOf(condition);
    if (kept < 0 || !codes) return null;
    const map = head === null ? kept * model.layers + layer : (kept * model.layers + layer) * model.heads + head;
    const row = map * model.tokens + token;
    const roots = codes.attention.subarray(row * model.tokens, (row + 1) * model.tokens);
    let squares = 0;
    for (const root of roots) squares += root * root;
    const share = squares ? codes.sums[row] / model.levels.sum / squares : 0;
    return Float32Array.from(roots, (root) => root * root * share);
  }

  // The coordinates of all tokens at a block, [D][T].
  function plane(model, codes, condition, layer) {
    const size = model.dims * model.tokens;
    const start = (condition * model.layers + layer) * size;
    return codes.features.subarray(start, start + size);
  }

  // Cosine of every token with one; 1 with itself, 0 where either is a token of zeros.
  function cosines(model, codes, condition, layer, token) {
    const coordinates = plane(model, codes, condition, layer);
    const products = new Float32Array(model.tokens);
    for (let d = 0; d < model.dims; d++) {
      const own = coordinates[d * model.tokens + token] * model.step ** 2;
      for (let other = 0; own && other < model.tokens; other++) products[other] += own * coordinates[d * model.tokens + other];
    }
    if (products[token]) products[token] = 1;
    return products.map((product) => Math.max(-1, Math.min(1, product)));
  }

  // 1 - the cosine of every token with itself under the first condition; NaN where either is a token of zeros.
  function movement(model, codes, condition, layer) {
    const [now, before] = [plane(model, codes, condition, layer), plane(model, codes, 0, layer)];
    const [products, nowSquares, beforeSquares] = [0, 0, 0].map(() => new Float32Array(model.tokens));
    now.forEach((value, i) => {
      const token = i % model.tokens;
      products[token] += value * before[i];
      nowSquares[token] += value * value;
      beforeSquares[token] += before[i] * before[i];
    });
    return products.map((product, token) => 1 - product / Math.sqrt(nowSquares[token] * beforeSquares[token]));
  }

  // Norms of all tokens at a block; 0 for a token of zeros.
  function norms(model, codes, condition, layer) {
    const start = (condition * model.layers + layer) * model.tokens;
    const [low, high] = model.normRange;
    const norm = (code) => (code ? low * (high / low) ** ((code - 1) / model.levels.norm) : 0);
    return Float32Array.from(codes.norms.subarray(start, start + model.tokens), norm);
  }

  // Red, green and blue of all tokens at a block, [T][3] of 0..255: three principal components, computed by the study.
  function colours(model, codes, condition, layer) {
    const start = (condition * model.layers + layer) * 3 * model.tokens;
    const pixels = new Uint8ClampedArray(3 * model.tokens);
    for (let channel = 0; channel < 3; channel++) {
      for (let token = 0; token < model.tokens; token++) {
        pixels[3 * token + channel] = codes.colours[start + channel * model.tokens + token];
      }
    }
    return pixels;
  }

  return { image, heads, attention, cosines, movement, norms, colours };
})();
