/** Dark or light: what the system says, until the button was used. */

const KEY = "holdfast-theme";

/** Wire the button; `onChange` hears the colours at once and after every change. */
export function startTheme(button, onChange) {
  const system = matchMedia("(prefers-color-scheme: light)");
  const chosen = () => localStorage.getItem(KEY) ?? (system.matches ? "light" : "dark");
  const apply = () => {
    const theme = chosen();
    document.documentElement.dataset.theme = theme;
    button.textContent = "◐";
    button.setAttribute("aria-label", theme === "dark" ? "Light theme" : "Dark theme");
    onChange(colours());
  };
  button.addEventListener("click", () => {
    localStorage.setItem(KEY, chosen() === "dark" ? "light" : "dark");
    apply();
  });
  system.addEventListener("change", apply);
  apply();
}

function colours() {
  const style = getComputedStyle(document.documentElement);
  const named = (name) => style.getPropertyValue(`--${name}`).trim();
  return {
    bid: named("bid"),
    ask: named("ask"),
    panel: named("panel"),
    text: named("quiet"),
    line: named("line"),
  };
}
