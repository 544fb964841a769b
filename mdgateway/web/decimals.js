/**
 * Exact decimal text as whole numbers and back.
 *
 * Prices and quantities come as text with a fixed number of decimals for each pair. Without the
 * point they are whole numbers below 2^53, which a JavaScript number holds exactly; all adding and
 * comparing on this page is done with those.
 */

/** Return the whole number of a decimal text: "64000.10" is 6400010. */
export function whole(text) {
  return Number(text.replace(".", ""));
}

/** Return how many digits stand after the point. */
export function decimalsOf(text) {
  const point = text.indexOf(".");
  return point < 0 ? 0 : text.length - point - 1;
}

/** Return the decimal text of a whole number, with thousands apart. */
export function text(number, decimals) {
  const digits = String(Math.abs(number)).padStart(decimals + 1, "0");
  const head = digits.slice(0, digits.length - decimals).replace(/\B(?=(\d{3})+$)/g, "\u202f");
  const tail = decimals ? "." + digits.slice(digits.length - decimals) : "";
  return (number < 0 ? "\u2212" : "") + head + tail;
}

/** Return decimal text with thousands apart, otherwise as it is. */
export function spaced(value) {
  return text(whole(value), decimalsOf(value));
}

/** Return a number in few characters, for amounts that nobody reads to the last digit. */
export function brief(value) {
  const number = Number(value);
  return number < 10_000
    ? number.toFixed(2)
    : new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 }).format(number);
}
