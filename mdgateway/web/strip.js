/** The strip of figures on top: the ticker in words, each written only when it changed. */

import { brief, spaced, whole } from "./decimals.js";
import { write } from "./ladder.js";

export class Strip {
  constructor(element) {
    this.element = element;
  }

  /** Draw a ticker, or blanks for null; `direction` is where the last price came from. */
  draw(ticker, instrument, direction) {
    const last = ticker?.last_trade?.price ?? "";
    this.set("last", spacedOr(last)).dataset.direction = last ? direction : "";
    this.change(last, ticker?.day_open);
    this.set("bid", spacedOr(ticker?.best_bid?.price));
    this.set("ask", spacedOr(ticker?.best_ask?.price));
    this.set("high", spacedOr(ticker?.high_24h));
    this.set("low", spacedOr(ticker?.low_24h));
    const { base_asset: base, quote_asset: quote } = instrument;
    this.set("volume", ticker ? `${brief(ticker.volume_24h)} ${base}` : "–");
    this.set("turnover", ticker ? `${brief(ticker.turnover_24h)} ${quote}` : "–");
    this.element.dataset.sequence = ticker?.sequence ?? "";
  }

  change(last, open) {
    const known = last && open;
    const change = known ? whole(last) - whole(open) : 0;
    const sign = change > 0 ? "+" : change < 0 ? "\u2212" : "";
    const share = known ? (Math.abs(100 * change) / whole(open)).toFixed(2) : "";
    const shown = this.set("change", known ? `${sign}${share} %` : "–");
    shown.dataset.side = change > 0 ? "buy" : change < 0 ? "sell" : "";
  }

  set(name, content) {
    const element = this.element.querySelector(`[data-field="${name}"]`);
    write(element, content);
    return element;
  }
}

function spacedOr(value) {
  return value ? spaced(value) : "–";
}
