/**
 * The ladder: so many rows a side that never come or go. A frame writes only what changed, so that
 * nothing flickers and a row that is being read stays where it is.
 */

import { grouped } from "./book.js";
import { text } from "./decimals.js";

const ROWS = 14;

export class Ladder {
  constructor(asks, bids, spread) {
    // Asks are drawn from the worst shown down to the best, next to the spread.
    this.askRows = rowsIn(asks, "ask").reverse();
    this.bidRows = rowsIn(bids, "bid");
    this.spread = spread;
  }

  draw(book, step) {
    const asks = grouped(book.sortedAsks(), step, false).slice(0, ROWS);
    const bids = grouped(book.sortedBids(), step, true).slice(0, ROWS);
    const most = Math.max(sum(asks), sum(bids), 1);
    fill(this.askRows, asks, most, book);
    fill(this.bidRows, bids, most, book);
    this.drawSpread(book);
  }

  drawSpread(book) {
    const bid = Math.max(...book.bids.keys());
    const ask = Math.min(...book.asks.keys());
    const both = Number.isFinite(bid) && Number.isFinite(ask);
    const spread = both ? `spread ${text(ask - bid, book.priceDecimals)}` : "one side is empty";
    write(this.spread, spread);
  }
}

/** Set the text of an element only if it is another one. */
export function write(element, content) {
  if (element.textContent !== content) element.textContent = content;
}

function sum(levels) {
  return levels.reduce((total, [, quantity]) => total + quantity, 0);
}

function rowsIn(body, side) {
  return Array.from({ length: ROWS }, () => {
    const row = body.insertRow();
    row.dataset.side = side;
    for (const name of ["price", "quantity", "total"]) row.insertCell().dataset.field = name;
    return row;
  });
}

function fill(rows, levels, most, book) {
  let total = 0;
  rows.forEach((row, index) => {
    const [price, quantity] = levels[index] ?? [0, 0];
    total += quantity;
    const [priceCell, quantityCell, totalCell] = row.cells;
    write(priceCell, quantity ? text(price, book.priceDecimals) : "");
    write(quantityCell, quantity ? text(quantity, book.quantityDecimals) : "");
    write(totalCell, quantity ? text(total, book.quantityDecimals) : "");
    const share = quantity ? `${((100 * total) / most).toFixed(1)}%` : "0%";
    if (row.style.getPropertyValue("--share") !== share) row.style.setProperty("--share", share);
  });
}
