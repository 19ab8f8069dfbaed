"use strict";
// The page works without this; it adds the texts of what is pointed at, and the switch of the theme.
const tip = document.getElementById("tip");

function show(event) {
  const about = event.target.closest("[data-tip]");
  tip.hidden = !about;
  if (!about) return;
  tip.textContent = about.dataset.tip;
  const { clientX: x, clientY: y } = event;
  tip.style.left = `${Math.max(8, Math.min(x + 12, document.documentElement.clientWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${y + 16 + tip.offsetHeight > innerHeight ? y - 12 - tip.offsetHeight : y + 16}px`;
}
for (const name of ["pointerover", "pointermove", "pointerdown"]) document.addEventListener(name, show);
document.addEventListener("scroll", () => { tip.hidden = true; });

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement.style;
  const dark = root.colorScheme ? root.colorScheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.colorScheme = dark ? "light" : "dark";
});
