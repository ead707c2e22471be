"use strict";
// Light, dark, or as the system says; charts are drawn on a canvas, so they ask for colours and redraw on a change.

const theme = (() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const choices = ["auto", "light", "dark"];
  const listeners = [];
  const probe = document.body.appendChild(document.createElement("span"));
  probe.hidden = true;

  function stored() {
    try {
      const value = localStorage.getItem("mir-theme");
      return choices.includes(value) ? value : "auto";
    } catch {
      return "auto"; // storage is refused to some pages opened from disk
    }
  }

  function apply(choice) {
    if (choice === "auto") delete root.dataset.theme;
    else root.dataset.theme = choice;
    button.textContent = `Theme: ${choice}`;
    listeners.forEach((listener) => listener());
  }

  function colour(name) {
    probe.style.color = `var(--${name})`; // the probe turns light-dark() into the colour that counts now
    return getComputedStyle(probe).color;
  }

  let chosen = stored();
  button.hidden = false;
  button.addEventListener("click", () => {
    chosen = choices[(choices.indexOf(chosen) + 1) % choices.length];
    try {
      localStorage.setItem("mir-theme", chosen);
    } catch {
      // the choice then lasts as long as the page
    }
    apply(chosen);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => apply(chosen));
  addEventListener("beforeprint", () => apply("light"));
  addEventListener("afterprint", () => apply(chosen));
  apply(chosen);
  return { colour, onChange: (listener) => listeners.push(listener) };
})();
