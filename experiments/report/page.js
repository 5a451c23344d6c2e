"use strict";
// What the page does beyond HTML and CSS: it marks the section that is read in the contents, closes the contents of a narrow screen once a
// section is chosen, and opens what is folded before it is printed. Without it everything is still there.
(() => {
  const contents = document.querySelector("nav details");
  const links = [...contents.querySelectorAll("a")];
  const parts = links.map((link) => document.getElementById(decodeURIComponent(link.hash.slice(1))));
  const visible = new Set();

  const mark = () => {
    const current = parts.findIndex((part) => visible.has(part));
    links.forEach((link, i) => (i === current ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
  };
  const observer = new IntersectionObserver(
    (entries) => {
      entries.forEach((entry) => visible[entry.isIntersecting ? "add" : "delete"](entry.target));
      mark();
    },
    { rootMargin: "0px 0px -60% 0px" },
  );
  parts.forEach((part) => part && observer.observe(part));

  links.forEach((link) => link.addEventListener("click", () => (contents.open = false)));
  addEventListener("beforeprint", () => document.querySelectorAll("main details").forEach((folded) => (folded.open = true)));
})();
