"use strict";
// What the page does beyond HTML and CSS: it marks the section that is read in the contents, closes the contents of a narrow screen once a
// section is chosen, opens a folded section where a link leads to it, starts the controls of a section when it is opened first, and opens
// all before they are printed. Without it everything is still there, folded.
(() => {
  const contents = document.querySelector("nav details");
  const links = [...contents.querySelectorAll("a")];
  const target = (hash) => document.getElementById(decodeURIComponent(hash.slice(1)));
  const parts = links.map((link) => target(link.hash));
  const sections = [...document.querySelectorAll("main > details.section")];
  const visible = new Set();

  // Controls are those of figures.js, where the page has it.
  const started = new Set();
  function start(part) {
    if (started.has(part)) return;
    started.add(part);
    window.jaxvitFigures?.(part);
  }

  function open(section) {
    section.open = true;
    start(section);
  }

  // Unfolds what an address leads to, and all around it.
  function openTarget() {
    let part = null;
    try {
      part = target(location.hash);
    } catch {
      return; // no address of this page
    }
    for (let inside = part; inside; inside = inside.parentElement) if (inside.tagName === "DETAILS") inside.open = true;
    part?.scrollIntoView();
  }

  function mark() {
    const current = parts.findIndex((part) => visible.has(part));
    links.forEach((link, i) => (i === current ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
  }
  const observer = new IntersectionObserver(
    (entries) => {
      entries.forEach((entry) => visible[entry.isIntersecting ? "add" : "delete"](entry.target));
      mark();
    },
    { rootMargin: "0px 0px -60% 0px" },
  );
  parts.forEach((part) => part && observer.observe(part));

  links.forEach((link) =>
    link.addEventListener("click", () => {
      const part = target(link.hash);
      if (part?.tagName === "DETAILS") open(part);
      if (matchMedia("(max-width: 60.99rem)").matches) contents.open = false;
    }),
  );
  sections.forEach((section) => section.addEventListener("toggle", () => section.open && start(section)));
  addEventListener("hashchange", openTarget);

  const folded = [];
  addEventListener("beforeprint", () => {
    folded.push(...document.querySelectorAll("main details:not([open])"));
    folded.forEach((part) => (part.open = true));
    sections.forEach(start);
  });
  addEventListener("afterprint", () => folded.splice(0).forEach((part) => (part.open = false)));

  // The scripts that follow this one are there once the page is.
  addEventListener("DOMContentLoaded", () => {
    start(document.getElementById("summary"));
    sections.filter((section) => section.open).forEach(start);
    if (location.hash.length > 1) openTarget();
  });
})();
