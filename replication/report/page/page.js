// What needs no script is there without one: this adds filters, a switch of colours, links that open
// what they point to, a hint where a table scrolls, and printing with everything open.
(() => {
  "use strict";
  const root = document.documentElement;

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const button = document.createElement("button");
  const store = {
    get: () => { try { return localStorage.getItem("theme"); } catch { return null; } },
    set: (value) => { try { localStorage.setItem("theme", value); } catch { /* not kept */ } },
  };
  const current = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const label = () => { button.textContent = current() === "dark" ? "Light" : "Dark"; };
  const kept = store.get();
  if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  button.type = "button";
  button.className = "theme";
  button.title = "Switch between light and dark";
  button.addEventListener("click", () => {
    root.dataset.theme = current() === "dark" ? "light" : "dark";
    store.set(root.dataset.theme);
    label();
  });
  dark.addEventListener("change", label);
  label();
  document.querySelector("nav").append(button);

  const form = document.getElementById("filters");
  const claims = [...document.querySelectorAll(".claim")];
  const show = () => {
    const statuses = new Set([...form.querySelectorAll("[name=status]:checked")].map((b) => b.value));
    const family = form.elements.family.value;
    let shown = 0;
    for (const claim of claims) {
      const fits = statuses.has(claim.dataset.status)
        && (!family || claim.dataset.families.split(" ").includes(family));
      claim.hidden = !fits;
      shown += fits;
    }
    document.getElementById("shown").textContent = `${shown} of ${claims.length} claims shown.`;
  };
  form.hidden = false;
  form.addEventListener("change", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  show();

  const expand = document.getElementById("expand");
  expand.addEventListener("click", () => {
    const open = expand.dataset.open !== "yes";
    for (const one of document.querySelectorAll(".claim > details")) one.open = open;
    expand.dataset.open = open ? "yes" : "no";
    expand.textContent = open ? "Close all claims" : "Open all claims";
  });

  // A link opens what it points to, and shows a claim that the filters hide.
  const reveal = () => {
    const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (!target) return;
    target.hidden = false;
    const start = target.matches(".claim") ? target.querySelector("details") : target;
    for (let one = start; one; one = one.parentElement) {
      if (one.tagName === "DETAILS") one.open = true;
    }
    target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  // The address stays the same where a link is followed again.
  for (const link of document.querySelectorAll("main a[href^='#']")) {
    link.addEventListener("click", () => { if (link.hash === location.hash) reveal(); });
  }
  reveal();

  const wide = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      target.classList.toggle("overflows", target.scrollWidth > target.clientWidth + 1);
    }
  });
  for (const one of document.querySelectorAll(".scroll")) wide.observe(one);

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const one of closed) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of closed) one.open = false; });

  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      const link = links.get(entry.target.id);
      link.setAttribute("aria-current", "true");
      const list = link.closest("ul");
      list.scrollLeft = link.offsetLeft - list.offsetLeft - 40;
    }
  }, { rootMargin: "-20% 0px -75% 0px" });
  for (const id of links.keys()) observer.observe(document.getElementById(id));
})();
