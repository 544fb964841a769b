/**
 * The ladder: as many rows a side as there is room for. A frame writes only what changed, so that
 * nothing flickers and a row that is being read stays where it is.
 */

import { grouped } from "./book.js";
import { text } from "./decimals.js";

const LEAST_ROW_PX = 20;
const LEAST_ROWS = 5;
const MOST_ROWS = 50;

export class Ladder {
  /** `table` has the bodies `asks`, `middle` and `bids`; it may be as high as its parent. */
  constructor(table) {
    this.table = table;
    [this.asks, this.middle, this.bids] = table.tBodies;
    this.fit();
  }

  /** Take the number of rows from the room there is; what is left over goes to all of them. */
  fit() {
    const rest = this.table.tHead.offsetHeight + this.middle.offsetHeight;
    const room = (this.table.parentElement.clientHeight - rest) / 2;
    const count = Math.min(MOST_ROWS, Math.max(LEAST_ROWS, Math.floor(room / LEAST_ROW_PX)));
    setRows(this.asks, count, "ask");
    setRows(this.bids, count, "bid");
    const height = Math.max(LEAST_ROW_PX, Math.min(room / count, 1.4 * LEAST_ROW_PX));
    this.table.style.setProperty("--row", `${height}px`);
  }

  /** Draw the book in groups of `step`; one that is not known is drawn empty. */
  draw(book, step) {
    const count = this.bids.rows.length;
    const asks = grouped(book.known ? book.sortedAsks() : [], step, false).slice(0, count);
    const bids = grouped(book.known ? book.sortedBids() : [], step, true).slice(0, count);
    const most = Math.max(sum(asks), sum(bids), 1);
    // Asks are drawn from the worst shown down to the best, next to the middle.
    fill([...this.asks.rows].reverse(), asks, most, book);
    fill([...this.bids.rows], bids, most, book);
  }
}

/** Set the text of an element only if it is another one. */
export function write(element, content) {
  if (element.textContent !== content) element.textContent = content;
}

/** Return the spread as its amount and its size in ticks and basis points of the middle. */
export function spreadOf(book, tick) {
  const { bid, ask } = book.known ? book.best() : { bid: null, ask: null };
  if (bid === null || ask === null) {
    const missing = bid === ask ? "no orders" : bid === null ? "no bids" : "no asks";
    return { amount: book.known ? missing : "–", size: "" };
  }
  const ticks = Math.round((ask - bid) / tick);
  const points = (20_000 * (ask - bid)) / (ask + bid);
  const shown = points < 100 ? points.toFixed(2) : points.toFixed(0);
  return {
    amount: text(ask - bid, book.priceDecimals),
    size: `${text(ticks, 0)} tick${ticks === 1 ? "" : "s"} · ${shown} bp`,
  };
}

function sum(levels) {
  return levels.reduce((total, [, quantity]) => total + quantity, 0);
}

function setRows(body, count, side) {
  while (body.rows.length > count) body.deleteRow(-1);
  while (body.rows.length < count) {
    const row = body.insertRow();
    row.dataset.side = side;
    for (const name of ["price", "quantity", "total"]) row.insertCell().dataset.field = name;
  }
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
