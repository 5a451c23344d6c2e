"use strict";
// What the figures of sections do beyond HTML and CSS. Without it every state stands below the other, and everything can be read.
//
// <div class="views"> shows those of its panels that its controls choose. A panel says what it belongs to: data-view="m0 3" has one value for
// each control, in their order, "*" for any; data-view="none" is shown where no other beside it is. Panels may stand in panels, and in drawings.
// A control is <fieldset class="switch"> of radios, <select>, or <input type="range"> (its <output> shows data-label and the value).
// Controls with the same data-group, of whatever views, are moved together as far as each has the value.
//
// <svg class="map"> is a picture whose pixels are numbers between data-low (or 0) and data-high, coloured by the picture #ramp. Where it is
// pointed at, and with the arrow keys, the <output class="value"> of its figure says the number: read off the picture, to 1/255 of the range.
{
  const chosen = new Map(); // by group

  const value = (control) => (control.matches("fieldset") ? control.querySelector("input:checked")?.value : control.value);
  const choose = (control, wanted) => {
    if (control.matches("fieldset")) {
      for (const radio of control.querySelectorAll("input")) if (radio.value === wanted) radio.checked = true;
    } else if (control.matches("select")) {
      if ([...control.options].some((option) => option.value === wanted)) control.value = wanted;
    } else if (+wanted >= +control.min && +wanted <= +control.max) control.value = wanted;
  };

  const own = (views, kind) => [...views.querySelectorAll(kind)].filter((element) => element.parentElement.closest(".views") === views);
  const controlsOf = (views) => own(views, "fieldset.switch, select, input[type=range]");

  const show = (views) => {
    const controls = controlsOf(views);
    const values = controls.map(value);
    const fits = (panel) => {
      const wanted = panel.dataset.view.split(" ").filter(Boolean);
      return wanted.every((one, i) => one === "*" || one === values[i]);
    };
    const panels = own(views, "[data-view]");
    const beside = new Set(); // places that show a panel
    for (const panel of panels) {
      const fit = panel.dataset.view !== "none" && fits(panel);
      panel.toggleAttribute("hidden", !fit);
      if (fit) beside.add(panel.parentElement);
    }
    for (const panel of panels) if (panel.dataset.view === "none") panel.hidden = beside.has(panel.parentElement);
    for (const control of controls) {
      const output = control.matches("input") && control.parentElement.querySelector("output");
      if (output) output.value = `${control.dataset.label ?? ""} ${control.value}`.trim();
    }
  };

  const moved = (control) => {
    const group = control.dataset.group;
    if (!group) return;
    chosen.set(group, value(control));
    for (const other of document.querySelectorAll(`[data-group="${CSS.escape(group)}"]`)) {
      if (other === control || !other.closest(".views.on")) continue;
      choose(other, value(control));
      show(other.closest(".views"));
    }
  };

  const activateViews = (views) => {
    if (views.classList.contains("on")) return;
    views.classList.add("on");
    for (const control of controlsOf(views)) {
      if (chosen.has(control.dataset.group)) choose(control, chosen.get(control.dataset.group));
      control.addEventListener("input", () => {
        show(views);
        moved(control);
      });
    }
    show(views);
  };

  // the pixels of a picture, once for all who read it
  const read = new Map();
  const pixels = (image) => {
    if (!read.has(image)) {
      const load = async () => {
        const copy = new Image();
        copy.src = image.getAttribute("href");
        await copy.decode();
        const canvas = new OffscreenCanvas(copy.naturalWidth, copy.naturalHeight);
        const context = canvas.getContext("2d");
        context.drawImage(copy, 0, 0);
        return context.getImageData(0, 0, canvas.width, canvas.height);
      };
      read.set(image, load());
    }
    return read.get(image);
  };
  const at = (picture, x, y) => picture.data.subarray(4 * (y * picture.width + x), 4 * (y * picture.width + x) + 3).join();
  const ramp = async () => {
    const picture = await pixels(document.querySelector("#ramp"));
    return new Map([...Array(256).keys()].map((i) => [at(picture, i, 0), i]));
  };

  const activateMap = (map) => {
    if (map.classList.contains("on")) return;
    map.classList.add("on");
    map.tabIndex = 0;
    const { width, height } = map.viewBox.baseVal;
    const values = map.querySelector("use:last-of-type");
    const figure = map.closest("figure");
    const output = figure.querySelector("output.value");
    const marker = map.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "rect"));
    for (const [name, size] of Object.entries({ class: "marker", width: 1, height: 1, visibility: "hidden" })) marker.setAttribute(name, size);
    let [x, y] = [0, 0];

    const say = async (column, row) => {
      [x, y] = [Math.min(Math.max(column, 0), width - 1), Math.min(Math.max(row, 0), height - 1)];
      marker.setAttribute("x", x);
      marker.setAttribute("y", y);
      marker.setAttribute("visibility", "visible");
      const picture = await pixels(document.querySelector(values.getAttribute("href")));
      const share = (await ramp()).get(at(picture, x - (+values.getAttribute("x") || 0), y - (+values.getAttribute("y") || 0))) / 255;
      const [low, high] = [+(map.dataset.low ?? 0), +map.dataset.high];
      const number = (low + share * (high - low)).toPrecision(3);
      output.value = `${map.getAttribute("aria-label").split(":")[0]}, row ${y + 1}, column ${x + 1}: ${number}${figure.dataset.unit ?? ""}`;
    };
    const leave = (event) => {
      if (event.pointerType === "touch") return; // the finger leaves at once: what it chose stays
      marker.setAttribute("visibility", "hidden");
      output.value = "";
    };
    map.addEventListener("pointermove", (event) => {
      const box = map.getBoundingClientRect();
      say(Math.floor(((event.clientX - box.left) / box.width) * width), Math.floor(((event.clientY - box.top) / box.height) * height));
    });
    map.addEventListener("pointerleave", leave);
    map.addEventListener("focus", () => map.matches(":focus-visible") && say(x, y));
    map.addEventListener("blur", leave);
    map.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      say(x + step[0], y + step[1]);
    });
  };

  window.jaxvitFigures = (root) => {
    root.querySelectorAll(".views").forEach(activateViews);
    root.querySelectorAll("svg.map").forEach(activateMap);
  };
  window.jaxvitFigures(document);
  addEventListener("pageshow", () => document.querySelectorAll(".views.on").forEach(show)); // browsers restore controls after a reload
}
