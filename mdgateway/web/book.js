/**
 * The book as the depth channel tells it: a snapshot, then absolute changes.
 *
 * Prices and quantities are whole numbers (see decimals.js). A change that does not follow on what
 * is here makes the book unknown until the next snapshot: a book that may be wrong is not shown.
 */

import { decimalsOf, whole } from "./decimals.js";

export class Book {
  constructor() {
    this.clear();
  }

  clear() {
    this.bids = new Map();
    this.asks = new Map();
    this.known = false;
    this.epoch = 0;
    this.sequence = 0;
    this.priceDecimals = 0;
    this.quantityDecimals = 0;
  }

  /** Take a message of the depth channel in; return false if a new snapshot is needed. */
  take(message) {
    if (message.type === "snapshot") {
      this.clear();
      this.known = true;
    } else if (
      !this.known ||
      message.epoch !== this.epoch ||
      message.previous_sequence !== this.sequence
    ) {
      this.known = false;
      return false;
    }
    this.epoch = message.epoch;
    this.sequence = message.sequence;
    this.change(this.bids, message.bids);
    this.change(this.asks, message.asks);
    return true;
  }

  change(side, levels) {
    for (const [price, quantity] of levels) {
      this.priceDecimals = decimalsOf(price);
      this.quantityDecimals = decimalsOf(quantity);
      const number = whole(quantity);
      if (number) side.set(whole(price), number);
      else side.delete(whole(price));
    }
  }

  /** Return bids, best first, as [price, quantity]. */
  sortedBids() {
    return [...this.bids].sort((a, b) => b[0] - a[0]);
  }

  /** Return asks, best first, as [price, quantity]. */
  sortedAsks() {
    return [...this.asks].sort((a, b) => a[0] - b[0]);
  }

  /** Return the best price of each side, null where there is none. */
  best() {
    const bid = Math.max(...this.bids.keys());
    const ask = Math.min(...this.asks.keys());
    return { bid: Number.isFinite(bid) ? bid : null, ask: Number.isFinite(ask) ? ask : null };
  }
}

/**
 * Return levels grouped to multiples of `step`: bids downwards, asks upwards, so that nobody is
 * shown a better price than there is.
 */
export function grouped(levels, step, isBid) {
  const groups = new Map();
  for (const [price, quantity] of levels) {
    const group = (isBid ? Math.floor(price / step) : Math.ceil(price / step)) * step;
    groups.set(group, (groups.get(group) ?? 0) + quantity);
  }
  return [...groups];
}
