"use strict";
// The token microscope: controls, state, keys and links. `microscope_data.js` decodes the data, `microscope_view.js` measures and paints.
//
// `window.jaxvitMicroscope` is for tests and for readers' own scripts: `models`, `state`, `set({...})`, `settled()`, `measured()`.
(() => {
  const root = document.getElementById("microscope");
  const source = document.getElementById("microscope-models");
  if (!root || !source) return;
  const { models, problem, missing, pictures } = JSON.parse(source.textContent);
  for (const described of models) described.images = described.images.map((number) => pictures[number]);
  const data = window.jaxvitTokens;
  const view = window.jaxvitTokenView;
  const { element } = view;
  const find = (name) => document.getElementById(`ms-${name}`);
  const say = (name, text) => {
    find(name).textContent = text;
    find(name).hidden = !text;
  };
  say("problem", problem);
  if (!models.length) return;
  root.hidden = false;

  const VIEWS = { full: "full", ablated: "condition", change: "change" };
  const STRIP = 16; // pixels of CLS and registers below a small map
  const PREFERRED = "zero_registers";
  const LINK_DELAY = 250; // milliseconds without a change until the address is written
  const spaced = (name) => name.replaceAll("_", " ");

  // All that determines what is shown. Letters of the link: m=&i=&l=&h=&c=&t=&q=&v=
  const state = { model: "", image: 0, layer: Infinity, head: "mean", condition: "", token: 0, quantity: "attention", view: "full" };
  const LETTERS = { m: "model", i: "image", l: "layer", h: "head", c: "condition", t: "token", q: "quantity", v: "view" };
  const NUMBERS = new Set(["image", "layer", "token"]);

  let model = models[0];
  let measured = null; // what is on the screen, of `view.measure`
  let pointed = -1; // the token whose values are read, by pointer or by Shift and arrows
  let tipPlace = null; // arguments of the last `showTip` while the tip is there
  let current = Promise.resolve(); // the render under way
  let scheduled = false;
  let linkTimer = 0;
  const picture = new Image();
  const isOpen = () => !root.closest("details:not([open])");
  const plain = () => model.conditions.length < 2; // nothing to compare with
  const conditionIndex = () => Math.max(0, model.conditions.indexOf(state.condition));
  const headNumber = () => (state.head === "mean" ? null : Number(state.head));

  // ---- state

  // Brings the state into what the model has: links may be old, and another model has other conditions.
  function settle() {
    model = models.find(({ id }) => id === state.model) ?? models[0];
    state.model = model.id;
    const within = (value, count) => Math.max(0, Math.min(count - 1, Number.isNaN(value) ? 0 : Math.floor(value)));
    state.image = within(state.image, model.images.length);
    state.layer = within(state.layer, model.layers);
    state.token = within(state.token, model.tokens);
    if (!model.headAttention.length || !(Number(state.head) < model.heads)) state.head = "mean";
    const others = model.conditions.slice(1);
    if (!others.includes(state.condition)) state.condition = others.includes(PREFERRED) ? PREFERRED : (others[0] ?? "");
    if (!(state.quantity in view.QUANTITIES)) state.quantity = "attention";
    if (!(state.view in VIEWS) || plain()) state.view = "full";
  }

  function set(changes) {
    Object.assign(state, changes);
    settle();
    showControls();
    render();
    writeLink();
    return current;
  }

  const choose = (token) => token >= 0 && token < model.tokens && token !== state.token && set({ token });
  const flip = () => set({ view: state.view === "full" ? "ablated" : "full" });
  const moveLayer = (step) => set({ layer: Math.max(0, state.layer + step) });

  // ---- links

  function readLink() {
    if (!location.hash.startsWith("#ms:")) return false;
    for (const [letter, value] of new URLSearchParams(location.hash.slice("#ms:".length))) {
      const name = LETTERS[letter];
      if (name) state[name] = NUMBERS.has(name) ? Number(value) : value;
    }
    settle();
    return true;
  }

  const link = () => `#ms:${new URLSearchParams(Object.entries(LETTERS).map(([letter, name]) => [letter, state[name]]))}`;

  function writeLink() {
    clearTimeout(linkTimer);
    linkTimer = setTimeout(() => history.replaceState(null, "", link()), LINK_DELAY);
  }

  // ---- controls

  function radios(fieldset, name, options) {
    fieldset.querySelectorAll("label").forEach((label) => label.remove());
    fieldset.append(
      ...options.map(([value, ...label]) => element("label", {}, element("input", { type: "radio", name: `ms-${name}`, value }), ...label)),
    );
  }

  const check = (name, value) =>
    root.querySelectorAll(`[name="ms-${name}"]`).forEach((radio) => (radio.checked = radio.value === String(value)));

  // What depends on the model alone is made anew where the model has changed.
  let shownModel = null;
  function showControls() {
    if (shownModel !== model) showModel();
    find("condition").value = state.condition;
    find("head").value = state.head;
    find("layer").value = state.layer;
    find("layer-text").textContent = `${state.layer} of 0 to ${model.layers - 1}`;
    check("image", state.image);
    check("quantity", state.quantity);
    check("view", state.view);
    root.querySelectorAll(".ms-condition-name").forEach((name) => (name.textContent = spaced(state.condition)));
    if (picture.src !== model.images[state.image]) {
      picture.src = model.images[state.image];
      picture.decode().then(paint, () => {});
    }
  }

  function showModel() {
    shownModel = model;
    pointed = -1;
    root.classList.toggle("ms-plain", plain());
    view.fill(find("model"), models.map(({ id, label }) => [id, label]), model.id);
    const note = (index) => (model.attention.includes(index) ? "" : " (attention not kept)");
    const conditions = model.conditions.map((name, index) => [name, spaced(name) + note(index)]);
    view.fill(find("condition"), conditions.slice(1), state.condition);
    const heads = model.headAttention.length ? Array.from({ length: model.heads }, (_, head) => [String(head), `head ${head}`]) : [];
    view.fill(find("head"), [["mean", heads.length ? "mean of heads" : "mean (heads not kept)"], ...heads], state.head);
    find("layer").max = model.layers - 1;
    const thumbnail = (uri, i) => [i, element("img", { src: uri, alt: `test image ${i + 1}` })];
    radios(find("images"), "image", model.images.map(thumbnail));
    find("prefix").replaceChildren(...Array.from({ length: model.prefix }, (_, token) => prefixButton(token)));
    say("note", model.note);
    const absent = missing.length ? ` Not run: ${missing.join(", ")}.` : "";
    say("kept", `Kept of ${model.label}: ${model.kept}${absent}`);
    find("maps").replaceChildren(...view.mapGrid(plain() ? { full: VIEWS.full } : VIEWS));
  }

  function prefixButton(token) {
    const button = element("button", { type: "button" }, element("b", { textContent: view.shortName(model, token) }), element("span"));
    button.dataset.token = token;
    return button;
  }

  // ---- what is shown

  // Measures and paints at the next frame, once for all changes until then.
  function render() {
    if (scheduled || !isOpen()) return;
    scheduled = true;
    current = new Promise((resolve) => requestAnimationFrame(resolve)).then(async () => {
      scheduled = false;
      const [of, image, withHeads] = [model, state.image, headNumber() !== null];
      const [codes, headCodes] = await Promise.all([data.image(of, image), withHeads ? data.heads(of, image) : null]);
      if (!codes) throw new Error(`the page has no data of image ${image + 1} of ${of.label}`);
      if (of !== model || image !== state.image || withHeads !== (headNumber() !== null)) return; // another render is on its way
      const { layer, token } = state;
      measured = view.measure(model, codes, headCodes, { layer, token, condition: conditionIndex(), head: headNumber() });
      paint();
      showTexts();
      say("problem", "");
    });
    current = current.catch((error) => say("problem", `The data of the microscope cannot be opened in this browser: ${error.message}`));
  }

  function paint() {
    if (!measured || !isOpen()) return;
    const marks = { chosen: state.token, pointed };
    const over = { image: picture, opacity: find("opacity").value / 100 };
    view.paint(find("picture"), model, measured[state.quantity][state.view], { ...marks, ...over });
    for (const canvas of root.querySelectorAll(".ms-map")) {
      view.paint(canvas, model, measured[canvas.dataset.quantity][canvas.dataset.view], { ...marks, strip: STRIP });
    }
    find("prefix").querySelectorAll("button").forEach(paintPrefix);
  }

  function paintPrefix(button) {
    const token = Number(button.dataset.token);
    const shown = measured[state.quantity][state.view];
    const colour = (shown.values || shown.pixels ? view.colourOf(shown, token) : null) ?? [128, 128, 128];
    Object.assign(button.style, { background: view.css(colour), color: view.inkOn(colour) });
    button.setAttribute("aria-pressed", token === state.token);
    button.classList.toggle("ms-pointed", token === pointed);
    const text = shown.values && view.said(state.quantity, state.view, shown.values[token]).replace(/1 − cosine = | points/, "");
    button.lastChild.textContent = text || (shown.pixels ? "" : "not kept");
  }

  function showTexts() {
    for (const bar of root.querySelectorAll(".ms-maps .ms-scale")) showScale(bar, bar.dataset.quantity, bar.dataset.view);
    showScale(find("scale"), state.quantity, state.view);
    for (const canvas of root.querySelectorAll(".ms-map")) {
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", mapText(canvas.dataset.quantity, canvas.dataset.view));
    }
    find("say").textContent = sentence();
    if (tipPlace) showTip(...tipPlace); // its values have changed
  }

  function showScale(bar, quantity, name) {
    const { values, pixels, scale } = measured[quantity][name];
    bar.replaceChildren();
    if (pixels) bar.append(element("small", { textContent: "one basis and scale for all conditions" }));
    if (!values) return;
    const strip = element("i");
    strip.style.background = view.gradient(scale);
    const text = (end) => view.said(quantity, name, end).replace(/1 − cosine = | points/, "");
    const ends = [scale.low, scale.high].map((end) => element("span", { textContent: text(end) }));
    bar.append(strip, element("small", {}, ...ends));
  }

  function mapText(quantity, name) {
    const under = { full: "in full", ablated: `under ${spaced(state.condition)}`, change: `change by ${spaced(state.condition)}` }[name];
    return `${view.QUANTITIES[quantity].title.replace("it", view.longName(model, state.token))}, block ${state.layer}, ${under}`;
  }

  // "patch in row 4, column 5 at block 5 attends to CLS 1.2 %, registers 3.0 %, patches 95.8 % in full; to ... under zero registers."
  function sentence() {
    const { full, ablated } = measured.attention;
    const name = view.longName(model, state.token);
    const where = `at block ${state.layer}${headNumber() === null ? "" : ` in head ${state.head}`}`;
    const who = `${name.replace(/^p/, "P")} ${where}`;
    const inFull = full.values && view.sharesText(model, full.values);
    const start = inFull ? `${who} attends to ${inFull} in full` : `${who}: its attention in full was not kept`;
    if (plain()) return `${start}.`;
    const condition = spaced(state.condition);
    const ablation = model.ablated[conditionIndex()];
    const what = ablation ? ` (${ablation.includes("->") ? "cuts" : "ablates"} ${ablation.replaceAll("->", "→")})` : "";
    const under = `under ${condition}${what}`;
    return `${start}; ${ablated.values ? `to ${view.sharesText(model, ablated.values)} ${under}` : `${under} it was not kept`}.`;
  }

  // ---- reading values: a tip where the pointer is, or at the token that Shift and arrows lead to

  function valueLines(quantity, token) {
    const lines = Object.keys(plain() ? { full: "" } : VIEWS).map((name) => {
      const { values } = measured[quantity][name];
      if (!values) return measured[quantity][name].pixels ? "" : `${name === "ablated" ? spaced(state.condition) : name}: not kept`;
      return `${name === "ablated" ? spaced(state.condition) : name}: ${view.said(quantity, name, values[token])}`;
    });
    const title = view.QUANTITIES[quantity].title.replace("it", view.shortName(model, state.token));
    return [`${view.longName(model, token)}: ${title}`, ...lines.filter(Boolean)];
  }

  function showTip(quantity, token, x, y) {
    const tip = find("tip");
    tip.hidden = token < 0 || !measured;
    tipPlace = tip.hidden ? null : [quantity, token, x, y];
    if (tip.hidden) return;
    const [title, ...lines] = valueLines(quantity, token);
    tip.replaceChildren(element("b", { textContent: title }), ...lines.map((line) => element("div", { textContent: line })));
    tip.style.left = `${Math.max(6, Math.min(document.documentElement.clientWidth - tip.offsetWidth - 6, x + 14))}px`;
    tip.style.top = `${y + 20 + tip.offsetHeight > innerHeight ? Math.max(6, y - tip.offsetHeight - 12) : y + 20}px`;
  }

  function point(token, quantity, x, y) {
    if (token !== pointed) {
      pointed = token;
      if (find("follow").checked) choose(token);
      paint();
    }
    showTip(quantity, token, x, y);
  }

  // Values of another token by keyboard: the tip at it, and its text for readers of the screen.
  function pointByKeys(token) {
    const canvas = find("picture");
    const part = token < model.prefix ? find("prefix").children[token] : canvas;
    const box = part.getBoundingClientRect();
    const inside = part === canvas ? view.tokenBox(model, token, canvas.clientWidth, canvas.clientHeight) : [0, 0, 0, box.height];
    const [left, top, across, down] = inside;
    point(token, state.quantity, box.left + left + across, box.top + top + down);
    find("read").textContent = valueLines(state.quantity, token).join(". ");
  }

  function leave() {
    pointed = -1;
    tipPlace = null;
    find("tip").hidden = true;
    paint();
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, input")) return;
    const onTokens = event.target.closest("#ms-picture, #ms-prefix");
    const next = onTokens ? view.neighbour(model, event.shiftKey && pointed >= 0 ? pointed : state.token, event.key) : null;
    if (next !== null && event.shiftKey) pointByKeys(next);
    else if (next !== null) leave(), choose(next);
    else if (event.key.toLowerCase() === "f" && !plain()) flip();
    else if (event.key === "[" || event.key === "]") moveLayer(event.key === "[" ? -1 : 1);
    else if (event.key === "Escape") leave();
    else return;
    event.preventDefault();
  }

  // ---- events

  function listen() {
    for (const name of ["model", "condition", "head"]) find(name).addEventListener("change", ({ target }) => set({ [name]: target.value }));
    find("layer").addEventListener("input", ({ target }) => set({ layer: Number(target.value) }));
    find("opacity").addEventListener("input", paint);
    root.addEventListener("change", ({ target }) => {
      const name = target.type === "radio" ? target.name.replace("ms-", "") : null;
      if (name) set({ [name]: name === "image" ? Number(target.value) : target.value });
    });
    find("flip").addEventListener("click", flip);
    find("link").addEventListener("click", copyLink);
    find("prefix").addEventListener("click", ({ target }) => choose(Number(target.closest("button")?.dataset.token ?? -1)));
    root.addEventListener("keydown", onKey);
    listenToPointer();
    addEventListener("hashchange", () => readLink() && (showControls(), render(), root.scrollIntoView()));
    addEventListener("resize", paint);
    root.closest("details")?.addEventListener("toggle", render);
    addEventListener("beforeprint", paint);
  }

  function listenToPointer() {
    const at = (event) => {
      const canvas = event.target.closest("canvas");
      if (!canvas) return { token: Number(event.target.closest("[data-token]")?.dataset.token ?? -1), quantity: state.quantity };
      const box = canvas.getBoundingClientRect();
      const strip = canvas.dataset.quantity ? STRIP : 0;
      const token = view.tokenAt(canvas, model, event.clientX - box.left, event.clientY - box.top, strip);
      return { token, quantity: canvas.dataset.quantity ?? state.quantity };
    };
    root.addEventListener("pointermove", (event) => {
      const { token, quantity } = at(event);
      if (token >= 0) point(token, quantity, event.clientX, event.clientY);
      else if (pointed >= 0) leave();
    });
    root.addEventListener("pointerleave", leave);
    root.addEventListener("click", (event) => {
      if (!event.target.closest("canvas")) return;
      const { token, quantity } = at(event);
      choose(token);
      if (event.pointerType === "touch") point(token, quantity, event.clientX, event.clientY); // a finger does not hover
    });
    find("prefix").addEventListener("focusin", ({ target }) => {
      if (!measured || !target.matches(":focus-visible")) return;
      const box = target.getBoundingClientRect();
      point(Number(target.dataset.token), state.quantity, box.left, box.bottom);
    });
    root.addEventListener("focusout", leave);
  }

  async function copyLink({ target }) {
    const label = target.textContent;
    history.replaceState(null, "", link());
    try {
      await navigator.clipboard.writeText(location.href);
      target.textContent = "copied";
    } catch {
      target.textContent = "the link is in the address bar";
    }
    setTimeout(() => (target.textContent = label), 2000);
  }

  radios(find("quantities"), "quantity", Object.entries(view.QUANTITIES).map(([value, { name }]) => [value, name]));
  radios(find("views"), "view", Object.entries(VIEWS));
  const linked = readLink();
  settle();
  showControls();
  listen();
  if (linked) {
    root.closest("details").open = true;
    root.scrollIntoView();
  }
  render();
  const settled = async () => {
    for (let seen = null; seen !== current; ) {
      seen = current;
      await seen;
    }
  };
  window.jaxvitMicroscope = { models, state, set, settled, measured: () => measured };
})();
